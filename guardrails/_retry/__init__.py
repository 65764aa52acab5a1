"""Retries and fallbacks around a function. Must not import guards."""
