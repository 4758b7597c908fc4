"""Read rows of text, chat or token ids, and make token sequences with a supervision mask."""

from logitcache.data.chat import ChatTemplate
from logitcache.data.files import Row, Source, find_sources, hash_file, read_rows
from logitcache.data.pieces import LongRows, TokenSequence
from logitcache.data.prompts import PromptTokeniser
from logitcache.data.special_tokens import SpecialTokens
from logitcache.data.tally import Tally
from logitcache.data.tokenise import Positions, RowTokeniser

__all__ = [
    "ChatTemplate",
    "LongRows",
    "Positions",
    "PromptTokeniser",
    "Row",
    "RowTokeniser",
    "Source",
    "SpecialTokens",
    "Tally",
    "TokenSequence",
    "find_sources",
    "hash_file",
    "read_rows",
]
