"""What the guarded databases of Django have in common. Must not import a driver."""
