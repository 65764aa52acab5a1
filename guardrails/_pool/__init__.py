"""Slots, holders and sizes of connection pools."""
