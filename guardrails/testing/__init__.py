"""Helpers for tests of guarded code; imports nothing until one is asked for by its module."""
