"""The drop-in for pybreaker's circuit breaker. Must not import guards."""
