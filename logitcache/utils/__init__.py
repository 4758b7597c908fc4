"""What any room may use and none is about: files, progress, validation, threads."""
