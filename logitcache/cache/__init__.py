"""Open, read, publish, verify, convert, compare and list caches, in a directory or at a URL."""
