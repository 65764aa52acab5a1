"""Scopes, timers, locks across forks, waiting and the notification of listeners."""
