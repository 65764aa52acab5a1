"""What a call needs of Python: scopes, timers, locks across forks, waiting, telling listeners."""
