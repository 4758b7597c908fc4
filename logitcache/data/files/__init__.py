"""Read files and data sets as a stream of rows, each a dictionary of plain Python values."""

from logitcache.data.files.readers import read_rows
from logitcache.data.files.sources import Row, Source, find_sources, hash_file

__all__ = ["Row", "Source", "find_sources", "hash_file", "read_rows"]
