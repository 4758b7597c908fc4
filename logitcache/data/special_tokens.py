"""Which tokens stand before and after a text: what the tokenizer adds itself, and the end of a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from logitcache.data.chat import ChatTemplate
from logitcache.errors import ConfigError, DataError

#: What pretraining puts after a document, in the vocabularies that name it so. They are asked only where the
#: tokenizer's end token ends a turn of a chat instead.
_DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class SpecialTokens:
    """A tokenizer's tokens around a text.

    Attributes:
        before: what it puts before every text, such as BOS; often nothing.
        after: what it puts after every text; mostly nothing.
        end: its end token, which ends a completion.
        end_of_text: what ends a plain document; None adds nothing.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    end: int | None
    end_of_text: int | None

    @classmethod
    def of(cls, tokenizer: Any, end_of_text: str = AUTO) -> SpecialTokens:
        """Find them.

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

    def starts(self, ids: Sequence[int]) -> bool:
        """True if the tokens begin with what the tokenizer puts before a text."""
        return bool(self.before) and tuple(ids[: len(self.before)]) == self.before

    def once(self, ids: list[int]) -> tuple[list[int], bool]:
        """The tokens of a text, without a second beginning where the text held one itself; True if it did."""
        size = len(self.before)
        twice = self.starts(ids) and self.starts(ids[size:])
        return (ids[size:] if twice else ids), twice

    def ended(self, ids: list[int], end: int | None) -> tuple[list[int], int]:
        """The tokens with ``end`` after them, and how many of the last ones mark the end: never two ends."""
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
    """True if the end token stands in the tokenizer's own chats."""
    if not getattr(tokenizer, "chat_template", None):
        return False
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        return tokenizer.eos_token_id in ChatTemplate(tokenizer).encode(turn, 0, "a short chat").token_ids
    except DataError:
        return False  # a template that wants more than a turn says so when a row needs it
