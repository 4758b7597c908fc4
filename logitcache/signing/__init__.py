"""Keys, and signatures of a cache's digest."""
