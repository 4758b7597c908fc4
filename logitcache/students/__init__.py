"""Find a student, cut it from a bigger model, attach an adapter, save it, and check it against a cache."""
