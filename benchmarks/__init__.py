"""Comparisons to run by hand: `python -m benchmarks.NAME`. No test depends on their times."""
