"""Rows of text, chat or token ids to sequences with a supervision mask."""

from logitcache.data.prompts import PromptTokeniser
from logitcache.data.readers import read_rows
from logitcache.data.sources import Row, Source, find_sources, hash_file
from logitcache.data.tokenise import LongRows, Positions, RowTokeniser, TokenSequence

__all__ = [
    "LongRows",
    "Positions",
    "PromptTokeniser",
    "Row",
    "RowTokeniser",
    "Source",
    "TokenSequence",
    "find_sources",
    "hash_file",
    "read_rows",
]
