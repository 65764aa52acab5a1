"""Applications for the servers that tests start."""
