"""Measure a student on a cache, and write the report of a training run."""
