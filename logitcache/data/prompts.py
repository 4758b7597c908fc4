"""Make prompts from rows, for a teacher that generates the answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from logitcache.data.chat import ChatTemplate
from logitcache.data.files.sources import Row
from logitcache.data.pieces import TokenSequence
from logitcache.data.row_kinds import ChatRow, Document, PairRow, RowKind, RowReader
from logitcache.data.special_tokens import NONE, SpecialTokens
from logitcache.data.tally import EMPTY, Tally
from logitcache.data.token_rows import prompt_ids
from logitcache.data.tokenise import Positions, check_text
from logitcache.errors import RowError


class PromptTokeniser:
    """Makes prompts from rows. If a row has an answer, it is left out, because the teacher generates its own.

    Args:
        tokenizer: a fast transformers tokenizer.
        vocab_size: ids of tokenised rows must be below it.
        max_length: longest prompt, in tokens.
        drop_long: leave longer prompts out and count them. If False, a longer prompt is an error.
        positions: ``all`` keeps the prompt's positions too; else only those that predict the answer.
        text_column: the column to read; with None it is found by the columns' names.
        chat: the chat template; by default the tokenizer's.
        tally: where rows are counted.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        vocab_size: int,
        max_length: int,
        drop_long: bool = False,
        positions: Positions | None = None,
        text_column: str | None = None,
        chat: ChatTemplate | None = None,
        tally: Tally | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_length = max_length
        self._drop_long = drop_long
        self._positions = positions
        self._chat = chat or ChatTemplate(tokenizer)
        self._special = SpecialTokens.of(tokenizer, NONE)
        self.tally = tally or Tally()
        has_template = bool(getattr(tokenizer, "chat_template", None))
        self._reader = RowReader(text_column, has_template, self.tally, prompts=True)
        self.saw_masked = positions != "all"

    def sequences(self, row: Row, where: str) -> list[TokenSequence]:
        """The row's prompt, with its last position marked. An empty prompt is left out and counted.

        Raises:
            DataError: the column isn't there.
            RowError: the column holds the wrong kind of value, or a prompt that is too long.
        """
        kind = self._reader.kind(row, where)
        ids = [] if kind is None else self._tokenise(kind, where)
        if not ids:
            self.tally.leave_out(EMPTY, where)
            return []
        if len(ids) > self._max_length and self._drop_long:
            self.tally.leave_out(f"longer than {self._max_length} tokens", where)
            return []
        if len(ids) > self._max_length:
            raise RowError(
                f"{where}: the prompt has {len(ids)} tokens; {self._max_length} leave room for the answer. "
                "Raise --max-length, lower --max-new-tokens, or leave such rows out with --long-rows drop"
            )
        if min(ids) < 0 or max(ids) >= self._vocab_size:
            raise RowError(f"{where}: token ids must be from 0 to {self._vocab_size - 1}")
        mask_L = np.full(len(ids), self._positions == "all")
        mask_L[-1] = True
        return [TokenSequence(np.asarray(ids, dtype=np.uint32), mask_L)]

    def _tokenise(self, kind: RowKind, where: str) -> list[int]:
        if isinstance(kind, ChatRow):
            messages = list(kind.messages)
            while messages and messages[-1].get("role") == "assistant":
                messages.pop()
            if not messages:
                return []
            return self._chat.encode_prompt(messages, where, tools=kind.tools, extra=kind.extra)
        if isinstance(kind, Document | PairRow):
            return self._text(kind.text if isinstance(kind, Document) else kind.prompt, where)
        return prompt_ids(kind)

    def _text(self, text: str, where: str) -> list[int]:
        """A prompt's tokens, without end tokens that the tokenizer adds."""
        if not text:
            return []
        ids, twice = self._special.remove_second_beginning(
            list(self._tokenizer(check_text(text, where), verbose=False)["input_ids"])
        )
        if twice:
            self.tally.note("the text begins with the tokenizer's own beginning (BOS); it is kept once", where)
        after = self._special.after
        return ids[: -len(after)] if after and tuple(ids[-len(after) :]) == after else ids
