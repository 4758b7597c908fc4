"""Import caches from other programs' files, and export caches to files for other programs."""
