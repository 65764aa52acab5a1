"""The pure rooms: every moment is an argument, nothing here reads a clock, locks, logs or waits."""
