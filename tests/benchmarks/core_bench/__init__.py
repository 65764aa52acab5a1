"""The parts of bench_core.py: timing, loops, contenders, questions asked, and how answers are shown."""
