"""The drop-in for pybreaker's circuit breaker."""
