"""Bytes only: encodings, the Zarr and Arrow containers, manifest, shard table, canonical JSON."""
