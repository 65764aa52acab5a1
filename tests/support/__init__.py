"""What tests share: clients, servers, applications, scripts of other processes. It holds no tests."""
