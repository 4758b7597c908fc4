"""Helpers that every package of logitcache may use: files, progress, validation, threads."""
