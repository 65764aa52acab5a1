"""Retries and fallbacks around a function; must not import guards."""
