"""Make sequences from rows: token ids with a mask of the positions that get targets.

Position ``t`` predicts token ``t + 1``; a sequence's last token predicts nothing and never has a target.

Shape legend: L tokens of one row.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from logitcache.data.chat import ChatTemplate
from logitcache.data.files.sources import Row
from logitcache.data.pieces import LongRows, Pieces, Tokenised, TokenSequence
from logitcache.data.row_kinds import ChatRow, Document, PairRow, RowKind, RowReader
from logitcache.data.shorten import list_values, shorten
from logitcache.data.special_tokens import AUTO, NONE, SpecialTokens
from logitcache.data.tally import EMPTY, Tally
from logitcache.data.token_rows import TokenRow
from logitcache.errors import ConfigError, RowError

Positions = Literal["all", "completion"]

_CUT = {
    "split": "split into several sequences",
    "truncate": "truncated",
}
_NO_BEGIN = "token ids without what the tokenizer puts before a text (BOS); they are taken as they are"
_NO_END = "nothing ends the {}: the tokenizer has no end token{}"


class RowTokeniser:
    """Makes sequences from the rows of one corpus, and counts the rows that it leaves out or cuts.

    Args:
        tokenizer: a fast transformers tokenizer.
        vocab_size: ids of tokenised rows must be below it.
        max_length: longest sequence, in tokens.
        overlap: tokens of a long row that the next sequence repeats as context. They are targets only once.
        long_rows: what to do with rows over ``max_length`` tokens, see :class:`logitcache.data.pieces.Pieces`.
        positions: which positions get targets; None is `completion` for chat and prompt/completion rows, else `all`.
        text_column: the column to read; with None it is found by the columns' names.
        end_of_text: what ends a plain document: ``auto``, ``none`` or a token.
        chat: the chat template; by default the tokenizer's.
        tally: where rows are counted.

    Raises:
        ConfigError: there is no such end token, or the overlap leaves no room for new tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        vocab_size: int,
        max_length: int,
        overlap: int = 0,
        long_rows: LongRows = "auto",
        positions: Positions | None = None,
        text_column: str | None = None,
        end_of_text: str = AUTO,
        chat: ChatTemplate | None = None,
        tally: Tally | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._positions = positions
        self._pieces = Pieces(max_length, overlap, long_rows)
        self._special = SpecialTokens.of(tokenizer, end_of_text)
        self._no_end_wanted = end_of_text == NONE
        if overlap + len(self._special.before) >= max_length:
            raise ConfigError(f"overlap {overlap} leaves no room for new tokens in max_length {max_length}")
        self._chat = chat or ChatTemplate(tokenizer)
        self.tally = tally or Tally()
        self._reader = RowReader(text_column, bool(getattr(tokenizer, "chat_template", None)), self.tally)
        #: True if any row so far had tokens that aren't targets.
        self.saw_masked = False

    def sequences(self, row: Row, where: str) -> list[TokenSequence]:
        """The sequences of a row. A row without targets has none and is counted.

        Raises:
            DataError: the columns aren't there.
            RowError: this row can't be used; ``where`` names it.
        """
        kind = self._reader.kind(row, where)
        if kind is None:
            return self._leave_out(EMPTY, where)
        if (reason := self._no_target_reason(kind)) is not None:
            return self._leave_out(reason, where)
        tokenised = self._tokenise(kind, where)
        ids = tokenised.token_ids
        if ids and (min(ids) < 0 or max(ids) >= self._vocab_size):
            raise RowError(f"{where}: token ids must be from 0 to {self._vocab_size - 1}")
        before = self._special.before if self._special.begins(ids) else ()
        sequences = list(self._pieces.cut(tokenised, before))
        if sequences:
            self.saw_masked |= not tokenised.is_target_L[1:].all()
        self._count(tokenised, sequences, where)
        return sequences

    def _leave_out(self, reason: str, where: str) -> list[TokenSequence]:
        self.tally.leave_out(reason, where)
        return []

    def _count(self, row: Tokenised, sequences: list[TokenSequence], where: str) -> None:
        limit, choice = self._pieces.max_length, self._pieces.choice(row)
        if choice == "drop":
            self.tally.leave_out(f"longer than {limit} tokens", where)
        elif not sequences:
            first = f" in its first {limit} tokens" if choice == "truncate" else ""
            self.tally.leave_out(f"no token to predict{first}", where)
        elif choice is not None:
            lost = len(row.token_ids) - limit if choice == "truncate" else 0
            kind = "chats and completions, later pieces without their beginning" if row.has_context else "documents"
            self.tally.cut_row(_CUT[choice] + (f" ({kind})" if choice == "split" else ""), where, lost)

    def _no_target_reason(self, kind: RowKind) -> str | None:
        if self._positions == "all":
            return None
        if isinstance(kind, ChatRow):
            turns = kind.messages[kind.supervised_from :]
            if not any(message.get("role") == "assistant" for message in turns):
                roles = list_values(sorted({shorten(message.get("role")) for message in turns})) or "none"
                return f"no assistant turn (the roles are: {roles})"
        if isinstance(kind, PairRow) and not kind.completion:
            return "an empty completion"
        return None

    def _tokenise(self, kind: RowKind, where: str) -> Tokenised:
        if isinstance(kind, Document):
            return self._document(kind.text, where)
        if isinstance(kind, TokenRow):
            return self._token_row(kind, where)
        if isinstance(kind, PairRow):
            return self._pair(kind, where)
        chat = self._chat.encode(kind.messages, kind.supervised_from, where, tools=kind.tools, extra=kind.extra)
        for note in chat.notes:
            self.tally.note(note, where)
        return self._with_context(chat.token_ids, list(chat.is_target_L))

    def _document(self, text: str, where: str) -> Tokenised:
        if self._positions == "completion":
            raise RowError(f"{where}: plain text has no completion; use --positions all, or chat or prompt rows")
        if self._special.end_of_text is None and not self._no_end_wanted:
            self.tally.note(_NO_END.format("documents", "; name one with --end-of-text"), where)
        ids, _ = self._special.add_end(self._encode(text, where), self._special.end_of_text)
        return Tokenised(ids, np.ones(len(ids), dtype=np.bool_))

    def _token_row(self, row: TokenRow, where: str) -> Tokenised:
        if self._special.before and not self._special.begins(row.token_ids):
            self.tally.note(_NO_BEGIN, where)
        if row.predicted is None or self._positions == "all":
            if self._positions == "completion":
                raise RowError(f"{where}: token ids without labels have no completion; use --positions all")
            return Tokenised(row.token_ids, np.ones(len(row.token_ids), dtype=np.bool_))
        return self._with_context(row.token_ids, row.predicted)

    def _pair(self, row: PairRow, where: str) -> Tokenised:
        text = row.prompt + row.completion
        encoded = self._tokenizer(check_text(text, where), return_offsets_mapping=True, verbose=False)
        is_target = [stop > len(row.prompt) for _, stop in encoded["offset_mapping"]]
        ids = self._remove_second_beginning(list(encoded["input_ids"]), where)
        is_target = is_target[len(is_target) - len(ids) :]
        if self._special.end is None:
            self.tally.note(_NO_END.format("completions", ""), where)
        ids, ends = self._special.add_end(ids, self._special.end)
        return self._with_context(ids, [*is_target[: len(ids) - ends], *[True] * ends])

    def _with_context(self, ids: list[int], is_target: list[bool]) -> Tokenised:
        mask_L = np.asarray(is_target, dtype=np.bool_)
        has_context = not mask_L[1:].all()
        return Tokenised(ids, np.ones_like(mask_L) if self._positions == "all" else mask_L, has_context)

    def _encode(self, text: str, where: str) -> list[int]:
        return self._remove_second_beginning(
            list(self._tokenizer(check_text(text, where), verbose=False)["input_ids"]), where
        )

    def _remove_second_beginning(self, ids: list[int], where: str) -> list[int]:
        ids, twice = self._special.remove_second_beginning(ids)
        if twice:
            self.tally.note("the text begins with the tokenizer's own beginning (BOS); it is kept once", where)
        return ids


def check_text(text: str, where: str) -> str:
    """Return the text if it can be encoded.

    Raises:
        RowError: it holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(
            f"{where}: character {error.start} is half of a surrogate pair ({text[error.start]!r}), which no tokenizer "
            "takes: repair the row"
        ) from error
    return text
