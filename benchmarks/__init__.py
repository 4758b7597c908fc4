"""Measurements whose figures the docs quote. Each module is a command of its own: `python -m benchmarks.NAME`."""
