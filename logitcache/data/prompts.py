"""Rows to prompts, for a teacher that answers them itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from logitcache.data.chat import ChatTemplate
from logitcache.data.sources import Row
from logitcache.data.tokenise import Positions, TokenSequence, columns_of
from logitcache.errors import DataError

_COLUMNS = ("messages", "prompt", "input_ids", "token_ids", "text")


class PromptTokeniser:
    """Turns rows into prompts; an answer that a row brings along is left out, for the teacher to give its own.

    Args:
        tokenizer: a fast transformers tokenizer.
        vocab_size: ids of tokenised rows must be below it.
        max_length: longest prompt, in tokens.
        positions: ``all`` keeps the prompt's positions too; else those that predict the answer.
        text_column: the column to read; None finds out from the columns' names.
    """

    def __init__(
        self, tokenizer: Any, *, vocab_size: int, max_length: int, positions: Positions | None, text_column: str | None
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_length = max_length
        self._positions = positions
        self._text_column = text_column
        self._chat = ChatTemplate(tokenizer)
        self.saw_masked = positions != "all"

    def sequences(self, row: Row, where: str) -> Iterator[TokenSequence]:
        """The row's prompt, its last position marked; nothing if it is empty.

        Raises:
            DataError: the column isn't there, holds the wrong kind of value, or a prompt that is too long.
        """
        ids = self._tokenise(row, where)
        if not ids:
            return
        if len(ids) > self._max_length:
            raise DataError(
                f"{where}: the prompt has {len(ids)} tokens; {self._max_length} leave room for the answer. "
                "Raise --max-length, lower --max-new-tokens, or leave such rows out"
            )
        if min(ids) < 0 or max(ids) >= self._vocab_size:
            raise DataError(f"{where}: token ids must be from 0 to {self._vocab_size - 1}")
        mask_L = np.full(len(ids), self._positions == "all")
        mask_L[-1] = True
        yield TokenSequence(np.asarray(ids, dtype=np.uint32), mask_L)

    def _tokenise(self, row: Row, where: str) -> list[int]:
        name = self._text_column or next((name for name in _COLUMNS if name in row), None)
        if name is None or name not in row:
            wanted = f"no column {name!r}" if name else "no column messages, prompt, input_ids or text"
            raise DataError(f"{where}: there is {wanted}; {columns_of(row)}. Choose with --text-column")
        value = row[name]
        if value is None or isinstance(value, str):
            return list(self._tokenizer(value, verbose=False)["input_ids"]) if value else []
        items: list[Any] = list(value) if isinstance(value, Iterable) else [None]
        if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            return items
        if all(isinstance(item, dict) for item in items):
            while items and items[-1].get("role") == "assistant":
                items.pop()
            return self._chat.encode_prompt(items, where) if items else []
        raise DataError(
            f"{where}: column {name!r} holds {type(value).__name__}; it must be text, a list of token ids, or messages"
        )
