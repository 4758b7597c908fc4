"""Targets: the teacher's top K of each position, and entries from beyond the top."""
