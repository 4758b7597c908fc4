"""The tokens before and after a text: those that the tokenizer adds, and the end of a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from logitcache.data.chat import ChatTemplate
from logitcache.errors import ConfigError, DataError

#: Tokens that end a document in pretraining, in some vocabularies. They are used only if the tokenizer's own end token
#: ends a turn of a chat instead.
_DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class SpecialTokens:
    """A tokenizer's tokens around a text.

    Attributes:
        before: ids that it adds before every text, such as BOS; often none.
        after: ids that it adds after every text; mostly none.
        end: id of its end token, which ends a completion; None if it has none.
        end_of_text: id of the token that ends a plain document; with None none is added.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    end: int | None
    end_of_text: int | None

    @classmethod
    def of(cls, tokenizer: Any, end_of_text: str = AUTO) -> SpecialTokens:
        """Find a tokenizer's special tokens.

        Args:
            tokenizer: a fast transformers tokenizer.
            end_of_text: ``auto``, ``none``, or the token's text.

        Raises:
            ConfigError: the tokenizer has no such token.
        """
        whole, bare = _ids(tokenizer, True), _ids(tokenizer, False)
        starts = [i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare]
        start = starts[0] if starts else 0
        before, after = (whole[:start], whole[start + len(bare) :]) if starts else ([], [])
        return cls(tuple(before), tuple(after), tokenizer.eos_token_id, _end_of_text(tokenizer, end_of_text))

    def begins(self, ids: Sequence[int]) -> bool:
        """True if the ids begin with those that the tokenizer adds before a text."""
        return bool(self.before) and tuple(ids[: len(self.before)]) == self.before

    def remove_second_beginning(self, ids: list[int]) -> tuple[list[int], bool]:
        """The ids of a text without a second beginning, which a text may contain itself; and True if it did."""
        size = len(self.before)
        twice = self.begins(ids) and self.begins(ids[size:])
        return (ids[size:] if twice else ids), twice

    def add_end(self, ids: list[int], end: int | None) -> tuple[list[int], int]:
        """The ids with ``end`` after them if they have no end, and how many of the last ids aren't from the text."""
        if self.after and tuple(ids[-len(self.after) :]) == self.after:
            return ids, len(self.after)
        if end is None or (ids and ids[-1] == end):
            return ids, 0
        return [*ids, end], 1


def _ids(tokenizer: Any, special: bool) -> list[int]:
    return list(tokenizer("a", add_special_tokens=special, verbose=False)["input_ids"])


def _end_of_text(tokenizer: Any, wanted: str) -> int | None:
    if wanted == NONE:
        return None
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if wanted != AUTO:
        if wanted not in vocabulary:
            raise ConfigError(
                f"end_of_text = {wanted!r} is no token of the teacher's tokenizer; give auto, none, or a token"
            )
        return vocabulary[wanted]
    end: int | None = tokenizer.eos_token_id
    if end is None or not _ends_turns(tokenizer):
        return end
    special = set(tokenizer.all_special_tokens) | {
        str(token) for token in tokenizer.added_tokens_decoder.values() if token.special
    }
    return next((vocabulary[name] for name in _DOCUMENT_ENDS if name in special and name in vocabulary), end)


def _ends_turns(tokenizer: Any) -> bool:
    """True if the chat template writes the end token."""
    if not getattr(tokenizer, "chat_template", None):
        return False
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        return tokenizer.eos_token_id in ChatTemplate(tokenizer).encode(turn, 0, "a short chat").token_ids
    except DataError:
        return False  # a template that needs more messages raises its error when a row is encoded
