"""Keys, and signatures of a cache's digest, in OpenSSH's formats."""
