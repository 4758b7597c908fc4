"""A student: found, cut from a bigger model, adapted, saved, and checked against a cache."""
