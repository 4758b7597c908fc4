"""Rows to sequences: token ids with a mask of the positions that get targets.

Position ``t`` predicts token ``t + 1``; a sequence's last token predicts nothing and never has a target.

Shape legend: L tokens of one sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from logitcache.data.chat import ChatTemplate
from logitcache.data.sources import Row
from logitcache.errors import DataError

Positions = Literal["all", "completion"]
LongRows = Literal["split", "truncate"]

_TOKEN_COLUMNS = ("input_ids", "token_ids")


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """One sequence as the teacher will see it.

    Attributes:
        token_ids_L: uint32.
        target_mask_L: bool, True where the teacher's prediction is kept; never at the last token.
    """

    token_ids_L: NDArray[np.uint32]
    target_mask_L: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Tokenised:
    """``is_target_L[t]``: token ``t`` is to be predicted, so position ``t - 1`` is kept."""

    token_ids: Sequence[int]
    is_target_L: NDArray[np.bool_]


class RowTokeniser:
    """Turns rows of one corpus into sequences.

    Args:
        tokenizer: a fast transformers tokenizer.
        vocab_size: ids of tokenised rows must be below it.
        max_length: longest sequence, in tokens.
        overlap: tokens of a long row that the next sequence repeats as context; they are targets once only.
        long_rows: what happens to rows over ``max_length`` tokens.
        positions: which positions get targets; None is `completion` for chat and prompt/completion rows, else `all`.
        text_column: the column to read; None finds out from the columns' names.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        vocab_size: int,
        max_length: int,
        overlap: int = 0,
        long_rows: LongRows = "split",
        positions: Positions | None = None,
        text_column: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_length = max_length
        self._overlap = overlap
        self._long_rows = long_rows
        self._positions = positions
        self._text_column = text_column
        self._chat = ChatTemplate(tokenizer)
        #: True once a row had tokens that aren't to be predicted.
        self.saw_masked = False

    def sequences(self, row: Row, where: str) -> Iterator[TokenSequence]:
        """The sequences of a row; none if it holds no position to predict.

        Raises:
            DataError: the columns aren't there or hold the wrong kind of value; ``where`` names the row.
        """
        tokenised = self._tokenise(row, where)
        wide_L = np.asarray(tokenised.token_ids, dtype=np.int64)
        if wide_L.size and (wide_L.min() < 0 or wide_L.max() >= self._vocab_size):
            raise DataError(f"{where}: token ids must be from 0 to {self._vocab_size - 1}")
        ids_L = wide_L.astype(np.uint32)
        self.saw_masked |= not tokenised.is_target_L[1:].all()
        for start, stop in self._windows(len(ids_L)):
            target_mask_L = np.zeros(stop - start, dtype=np.bool_)
            target_mask_L[:-1] = tokenised.is_target_L[start + 1 : stop]
            if start:
                # What the sequence before has predicted already is context only.
                target_mask_L[: max(self._overlap - 1, 0)] = False
            if target_mask_L.any():
                yield TokenSequence(ids_L[start:stop], target_mask_L)

    def _windows(self, length: int) -> Iterator[tuple[int, int]]:
        if length <= self._max_length or self._long_rows == "truncate":
            yield 0, min(length, self._max_length)
            return
        step = self._max_length - self._overlap
        for start in range(0, length - self._overlap, step):
            yield start, min(start + self._max_length, length)

    def _tokenise(self, row: Row, where: str) -> _Tokenised:
        if self._text_column is not None:
            if self._text_column not in row:
                raise DataError(f"{where}: there is no column {self._text_column!r}; {columns_of(row)}")
            return self._column(row, self._text_column, where)
        if "messages" in row:
            return self._column(_no_text(row, "messages", where), "messages", where)
        if "prompt" in row and "completion" in row:
            return self._prompt_completion(row, where)
        for name in (*_TOKEN_COLUMNS, "text"):
            if name in row:
                return self._column(row if name == "text" else _no_text(row, name, where), name, where)
        raise DataError(
            f"{where}: found no column text, messages, prompt and completion, or input_ids; {columns_of(row)}. "
            "Choose with --text-column"
        )

    def _column(self, row: Row, name: str, where: str) -> _Tokenised:
        value = row[name]
        if value is None or value == "" or value == []:
            return _Tokenised([], np.zeros(0, dtype=np.bool_))
        if isinstance(value, str):
            return self._text(value, where)
        if isinstance(value, Iterable):
            items = list(value)
            if all(isinstance(item, dict) for item in items):
                return self._messages(items, 0, where)
            if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
                return self._token_ids(items, row.get("labels"), where)
        raise DataError(
            f"{where}: column {name!r} holds {type(value).__name__}; it must be text, a list of token ids, or messages"
        )

    def _text(self, text: str, where: str) -> _Tokenised:
        if self._positions == "completion":
            raise DataError(f"{where}: plain text has no completion; use --positions all, or chat or prompt rows")
        ids = self._tokenizer(text, verbose=False)["input_ids"]
        return _Tokenised(ids, np.ones(len(ids), dtype=np.bool_))

    def _token_ids(self, ids: list[int], labels: Any, where: str) -> _Tokenised:
        """``labels`` follow the usual convention: -100 marks tokens that aren't to be predicted."""
        if labels is None or self._positions == "all":
            if self._positions == "completion":
                raise DataError(f"{where}: token ids without labels have no completion; use --positions all")
            return _Tokenised(ids, np.ones(len(ids), dtype=np.bool_))
        if len(labels) != len(ids):
            raise DataError(f"{where}: {len(labels)} labels for {len(ids)} token ids")
        return _Tokenised(ids, np.asarray(labels) != -100)

    def _messages(self, messages: list[dict[str, Any]], supervised_from: int, where: str) -> _Tokenised:
        ids, is_assistant = self._chat.encode(messages, supervised_from, where)
        mask_L = np.asarray(is_assistant, dtype=np.bool_)
        return _Tokenised(ids, np.ones_like(mask_L) if self._positions == "all" else mask_L)

    def _prompt_completion(self, row: Row, where: str) -> _Tokenised:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            return self._messages([*prompt, *completion], len(prompt), where)
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise DataError(f"{where}: prompt and completion must both be text or both be lists of messages")
        encoded = self._tokenizer(prompt + completion, return_offsets_mapping=True, verbose=False)
        ids = list(encoded["input_ids"])
        is_target = [stop > len(prompt) for _, stop in encoded["offset_mapping"]]
        end = self._tokenizer.eos_token_id
        if end is not None and (not ids or ids[-1] != end):
            ids.append(end)
            is_target.append(True)
        mask_L = np.asarray(is_target, dtype=np.bool_)
        return _Tokenised(ids, np.ones_like(mask_L) if self._positions == "all" else mask_L)


def _no_text(row: Row, name: str, where: str) -> Row:
    """The row, unless a column that must be a list is text: taken as a document it would teach its own notation."""
    if isinstance(row[name], str) and row[name]:
        raise DataError(
            f"{where}: column {name!r} holds text, not a list (JSON that wasn't decoded?); decode it, or choose "
            f"--text-column {name} to take it as plain text"
        )
    return row


def columns_of(row: Row) -> str:
    """What to tell the user about a row in which something is missing."""
    return f"the columns are {', '.join(map(str, row))}" if row else "the row is empty"
