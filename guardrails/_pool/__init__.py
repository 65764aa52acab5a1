"""What to know about connection pools before and while they run out."""
