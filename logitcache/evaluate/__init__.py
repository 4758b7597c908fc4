"""A student measured against a cache, and the report of a training run."""
