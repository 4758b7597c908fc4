"""A cache as a thing: open, read, publish, verify, convert, compare, list; in a directory or at a URL."""
