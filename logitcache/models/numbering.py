"""Check that two tokenizers give the same ids to tokens. Unused entries, and entries that only one has, are allowed."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from logitcache.errors import TokenizerMismatchError

# Text that two tokenizers with equal vocabularies split differently if their merges or rules differ.
_PROBES = (
    "The State of the Union is strong; unemployment fell by 3.5% in 1964 — isn't that so?",
    "def f(x):\n\treturn [i**2 for i in range(0x1F)]  # größer, naïve café\r\n\n",
    "  leading spaces,   runs of    them, CamelCaseWords, UPPER lower 1234567890 1,000,000",
    "日本語の文章。Привет, мир! مرحبا 😀👍🏽 \u00e9",
)
# Some tokenizers of a family normalise Unicode and others don't (GGUF has no field for it). Their ids are the same.
_DECOMPOSED = "e\u0301, A\u030a, \u1112\u1161\u11ab"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_COMPARED = 2000  # entries of the vocabulary that are split by both
_NAMED = 3  # entries that a message names


@dataclass(frozen=True)
class Numbering:
    """The result for two tokenizers that give the same ids to all tokens that both have.

    Attributes:
        shared_ids: every id that has the same text in both is below it.
        unknown: ids that text can have with ``ours``, and that ``theirs`` lacks.
        differences: texts that the user should read; empty if the two are equal.
    """

    shared_ids: int
    unknown: tuple[int, ...] = ()
    differences: tuple[str, ...] = ()


def compare_numbering(ours: Any, theirs: Any, whose: str, place: str, family: str) -> Numbering:
    """Compare vocabularies, added tokens, and how a few difficult texts are split.

    An entry that only one of the two has is allowed if it was added to the vocabulary (special or not), or if no text
    is ever split into it (padding). An id may have two texts if one of them is such an unused entry.

    Args:
        ours: the tokenizer of the targets' ids.
        theirs: the other one. Both are from ``transformers``.
        whose, place: owner and place of ``theirs``, for messages: "the student's", "models/student".
        family: the owner of ``ours``, for messages: "the cache".

    Raises:
        TokenizerMismatchError: a token has two ids, an id has two meanings, or text is split differently.
    """
    our_vocab, their_vocab = ours.get_vocab(), theirs.get_vocab()
    names = f"{whose} tokenizer ({place})"
    found = _Differences(our_vocab, their_vocab)
    if wrong := found.wrong(_Entries(ours), _Entries(theirs)):
        raise TokenizerMismatchError(_refusal(wrong, our_vocab, their_vocab, names, family))
    for text in _probes(ours, found.one_sided):
        if _ids(ours, text) != _ids(theirs, text):
            raise TokenizerMismatchError(
                f"{names} has {family}'s vocabulary but splits text differently, for example "
                f"{_first_difference(ours, theirs, text)!r}; a student must use the teacher's tokenizer"
            )
    differences = found.described(whose, family)
    if _ids(ours, _DECOMPOSED) != _ids(theirs, _DECOMPOSED):
        differences.append("only one of the two composes accented letters (Unicode NFC)")
    shared = max((number for token, number in our_vocab.items() if their_vocab.get(token) == number), default=-1)
    return Numbering(shared + 1, found.unknown(_Entries(ours)), tuple(differences))


def _probes(tokenizer: Any, one_sided: list[str]) -> Iterator[str]:
    """Texts that both must split in the same way: difficult ones, and entries of the vocabulary, one per line.

    The last entries are included, because a tokenizer that was trained with fewer merges lacks them.
    """
    numbers = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder))
    chosen = sorted({*numbers[:: -(-len(numbers) // _COMPARED) or 1], *numbers[-_COMPARED // 4 :]})
    lines = [tokenizer.decode([number]) for number in chosen]
    text = unicodedata.normalize("NFC", "\n".join((*_PROBES, *lines)))
    # An entry that only one has may be split by the other, which is allowed, so it is cut out of the text.
    pieces = re.split("|".join(map(re.escape, one_sided)), text) if one_sided else [text]
    yield from pieces


def _first_difference(ours: Any, theirs: Any, text: str) -> str:
    """The beginning of the first line that the two split differently."""
    lines = text.split("\n")
    return next((line for line in lines if _ids(ours, line) != _ids(theirs, line)), text)[:30]


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


class _Differences:
    """Entries that only one vocabulary has, or that have different ids in the two."""

    def __init__(self, ours: dict[str, int], theirs: dict[str, int]) -> None:
        self._moved = [token for token, number in ours.items() if theirs.get(token, number) != number]
        self._only_ours = [(number, token) for token, number in ours.items() if token not in theirs]
        self._only_theirs = [(number, token) for token, number in theirs.items() if token not in ours]
        self._our_tokens = {number: token for token, number in ours.items()}
        self._their_tokens = {number: token for token, number in theirs.items()}

    @property
    def one_sided(self) -> list[str]:
        """Tokens that only one of the two has."""
        return [token for _, token in (*self._only_ours, *self._only_theirs)]

    def wrong(self, ours: _Entries, theirs: _Entries) -> list[str]:
        """The tokens whose difference isn't allowed."""
        found = list(self._moved)
        sides = (
            (self._only_ours, ours, self._their_tokens, theirs),
            (self._only_theirs, theirs, self._our_tokens, ours),
        )
        for entries, own, other_tokens, other in sides:
            for number, token in entries:
                opposite = other_tokens.get(number)
                allowed = own.added(token) if opposite is None else other.unused(opposite)
                if not (allowed or own.unused(token)):
                    found.append(token)
        return list(dict.fromkeys(found))

    def unknown(self, ours: _Entries) -> tuple[int, ...]:
        """Ids of ``ours`` that ``theirs`` lacks, except unused ones."""
        return tuple(sorted(number for number, token in self._only_ours if not ours.unused(token)))

    def described(self, whose: str, family: str) -> list[str]:
        """A text for each kind of difference."""
        parts = []
        ours, theirs = dict(self._only_ours), dict(self._only_theirs)
        both = sorted(number for number in ours.keys() | theirs.keys() if self._in_both(number))
        if both:
            named = [f"{self._our_tokens[number]!r} and {self._their_tokens[number]!r}" for number in both]
            parts.append(f"{_listed(named, 'id has two names', 'ids have two names')}, one of them unused")
        for entries, lacks in ((theirs, f"{family}'s lacks"), (ours, f"{whose} lacks")):
            named = [f"{entries[number]!r}, id {number:,}" for number in sorted(entries) if not self._in_both(number)]
            if named:
                parts.append(f"{_listed(named, 'token', 'tokens')} that {lacks}")
        return parts

    def _in_both(self, number: int) -> bool:
        return number in self._our_tokens and number in self._their_tokens


def _listed(named: list[str], one: str, many: str) -> str:
    shown = ", ".join(named[:_NAMED]) + (", …" if len(named) > _NAMED else "")
    return f"{len(named):,} {one if len(named) == 1 else many} ({shown})"


def _refusal(wrong: list[str], ours: dict[str, int], theirs: dict[str, int], names: str, family: str) -> str:
    count = "1 token" if len(wrong) == 1 else f"{len(wrong):,} tokens"
    first = min(wrong, key=lambda token: min(vocab[token] for vocab in (ours, theirs) if token in vocab))
    return (
        f"{names} is not {family}'s: {count} differ{'s' if len(wrong) == 1 else ''}, the first is {first!r} (id "
        f"{ours.get(first, 'none')} in {family}, {theirs.get(first, 'none')} in the other); a student must come from "
        "the teacher's family"
    )


class _Entries:
    """Which entries of a vocabulary were added to it, and which are unused: no text is split into them."""

    def __init__(self, tokenizer: Any) -> None:
        self._added = set(tokenizer.get_added_vocab())
        self._tokenizer = tokenizer

    @cached_property
    def _can_occur(self) -> Callable[[str], bool]:
        return _make_can_occur(self._tokenizer)

    def added(self, token: str) -> bool:
        """True for a token that was added to the vocabulary and is found in a text as a whole."""
        return token in self._added

    def unused(self, token: str) -> bool:
        """True for an ordinary entry that no text is split into."""
        return token not in self._added and not self._can_occur(token)


def _make_can_occur(tokenizer: Any) -> Callable[[str], bool]:
    """A function that says whether some text can be split into an ordinary token.

    Only byte-pair encoding has unused tokens: a token that isn't a single symbol must be the result of a merge.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = {} if backend is None else json.loads(backend.to_str())["model"]
    if model.get("type") != "BPE":
        return lambda token: True
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    merged = {left + right.removeprefix(prefix) for left, right in pairs}

    def can_occur(token: str) -> bool:
        symbols = len(token.removeprefix(prefix).removesuffix(suffix))
        if token in merged or token == model.get("unk_token") or symbols <= 1:
            return True
        if model.get("byte_fallback") and _BYTE.fullmatch(token):
            return True
        # With ignore_merges a whole piece of text is looked up in the vocabulary before merging.
        number = tokenizer.convert_tokens_to_ids(token)
        return bool(model.get("ignore_merges")) and number in _ids(tokenizer, tokenizer.decode([number]))

    return can_occur
