"""Helpers for settings, callables and imports. Depends on errors only."""
