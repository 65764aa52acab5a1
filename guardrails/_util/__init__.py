"""Small helpers that depend on nothing of ours but the errors."""
