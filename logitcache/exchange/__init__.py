"""Caches from other programs' files, and files for other programs."""
