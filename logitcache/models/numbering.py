"""Do two tokenizers number tokens alike? Entries that no text needs, or that only one of the two has, are allowed."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from logitcache.errors import TokenizerMismatchError

# Text on which two tokenizers with equal vocabularies but other merges or other splitting differ.
_PROBES = (
    "The State of the Union is strong; unemployment fell by 3.5% in 1964 — isn't that so?",
    "def f(x):\n\treturn [i**2 for i in range(0x1F)]  # größer, naïve café\r\n\n",
    "  leading spaces,   runs of    them, CamelCaseWords, UPPER lower 1234567890 1,000,000",
    "日本語の文章。Привет, мир! مرحبا 😀👍🏽 \u00e9",
)
# Some files of a family normalise Unicode and others don't (GGUF can't say it): tokens mean the same all the same.
_DECOMPOSED = "e\u0301, A\u030a, \u1112\u1161\u11ab"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_WORDS = 2000  # of the vocabulary that are split to compare
_NAMED = 3  # entries that a message names


@dataclass(frozen=True)
class Numbering:
    """Two tokenizers that number alike all tokens that both have.

    Attributes:
        shared_ids: every id that both give the same text is below it.
        unknown: ids that text may yield by the one, and that the other lacks.
        differences: what a user should know, in words; empty if the two are equal.
    """

    shared_ids: int
    unknown: tuple[int, ...] = ()
    differences: tuple[str, ...] = ()


def compare_numbering(ours: Any, theirs: Any, whose: str, place: str, family: str) -> Numbering:
    """Compare vocabularies, added tokens, and how a few awkward texts are split.

    An entry of only one of the two is allowed if it was added to the vocabulary (special or not), or if no text yields
    it: padding. So are two texts under one id, if no text yields one of them.

    Args:
        ours: the tokenizer whose ids the targets carry.
        theirs: the other one. Both from ``transformers``.
        whose, place: the other one's owner and where it is, for messages: "the student's", "models/student".
        family: the owner of ``ours``, for messages: "the cache".

    Raises:
        TokenizerMismatchError: a token has two ids, an id has two meanings, or text is split differently.
    """
    our_vocab, their_vocab = ours.get_vocab(), theirs.get_vocab()
    names = f"{whose} tokenizer ({place})"
    found = _Differences(our_vocab, their_vocab)
    if wrong := found.wrong(_Entries(ours), _Entries(theirs)):
        raise TokenizerMismatchError(_refusal(wrong, our_vocab, their_vocab, names, family))
    for text in _probes(ours, found.words):
        if _ids(ours, text) != _ids(theirs, text):
            raise TokenizerMismatchError(
                f"{names} has {family}'s vocabulary but splits text differently, for example "
                f"{_first_difference(ours, theirs, text)!r}; a student must use the teacher's tokenizer"
            )
    differences = found.described(whose, family)
    if _ids(ours, _DECOMPOSED) != _ids(theirs, _DECOMPOSED):
        differences.append("only one of the two composes accented letters (Unicode NFC)")
    shared = max((number for word, number in our_vocab.items() if their_vocab.get(word) == number), default=-1)
    return Numbering(shared + 1, found.unknown(_Entries(ours)), tuple(differences))


def _probes(tokenizer: Any, one_sided: list[str]) -> Iterator[str]:
    """Texts that both must split alike: awkward ones, and words of the vocabulary, each on a line of its own.

    A word is what its merges make of its letters; among the last ones are those that a shorter training lacks.
    """
    numbers = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder))
    chosen = sorted({*numbers[:: -(-len(numbers) // _WORDS) or 1], *numbers[-_WORDS // 4 :]})
    lines = [tokenizer.decode([number]) for number in chosen]
    text = unicodedata.normalize("NFC", "\n".join((*_PROBES, *lines)))
    # What only one of them takes as a whole says nothing about the rest.
    pieces = re.split("|".join(map(re.escape, one_sided)), text) if one_sided else [text]
    yield from pieces


def _first_difference(ours: Any, theirs: Any, text: str) -> str:
    """The first line of a text, or the beginning of it, on which the two differ."""
    lines = text.split("\n")
    return next((line for line in lines if _ids(ours, line) != _ids(theirs, line)), text)[:30]


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids


class _Differences:
    """Entries that only one vocabulary has, or that the two number differently."""

    def __init__(self, ours: dict[str, int], theirs: dict[str, int]) -> None:
        self._moved = [word for word, number in ours.items() if theirs.get(word, number) != number]
        self._only_ours = [(number, word) for word, number in ours.items() if word not in theirs]
        self._only_theirs = [(number, word) for word, number in theirs.items() if word not in ours]
        self._our_words = {number: word for word, number in ours.items()}
        self._their_words = {number: word for word, number in theirs.items()}

    @property
    def words(self) -> list[str]:
        """Those that only one of the two has."""
        return [word for _, word in (*self._only_ours, *self._only_theirs)]

    def wrong(self, ours: _Entries, theirs: _Entries) -> list[str]:
        """The words whose difference can't be allowed."""
        found = list(self._moved)
        sides = (
            (self._only_ours, ours, self._their_words, theirs),
            (self._only_theirs, theirs, self._our_words, ours),
        )
        for entries, own, other_words, other in sides:
            for number, word in entries:
                opposite = other_words.get(number)
                excuse = own.added(word) if opposite is None else other.unused(opposite)
                if not (excuse or own.unused(word)):
                    found.append(word)
        return list(dict.fromkeys(found))

    def unknown(self, ours: _Entries) -> tuple[int, ...]:
        """Ids of ours that theirs lacks, but for those that no text yields."""
        return tuple(sorted(number for number, word in self._only_ours if not ours.unused(word)))

    def described(self, whose: str, family: str) -> list[str]:
        """One part for each kind of difference."""
        parts = []
        ours, theirs = dict(self._only_ours), dict(self._only_theirs)
        both = sorted(number for number in ours.keys() | theirs.keys() if self._in_both(number))
        if both:
            named = [f"{self._our_words[number]!r} and {self._their_words[number]!r}" for number in both]
            parts.append(f"{_listed(named, 'id has two names', 'ids have two names')}, one of them unused")
        for entries, lacks in ((theirs, f"{family}'s lacks"), (ours, f"{whose} lacks")):
            named = [f"{entries[number]!r}, id {number:,}" for number in sorted(entries) if not self._in_both(number)]
            if named:
                parts.append(f"{_listed(named, 'token', 'tokens')} that {lacks}")
        return parts

    def _in_both(self, number: int) -> bool:
        return number in self._our_words and number in self._their_words


def _listed(named: list[str], one: str, many: str) -> str:
    shown = ", ".join(named[:_NAMED]) + (", …" if len(named) > _NAMED else "")
    return f"{len(named):,} {one if len(named) == 1 else many} ({shown})"


def _refusal(wrong: list[str], ours: dict[str, int], theirs: dict[str, int], names: str, family: str) -> str:
    count = "1 token" if len(wrong) == 1 else f"{len(wrong):,} tokens"
    first = min(wrong, key=lambda word: min(vocab[word] for vocab in (ours, theirs) if word in vocab))
    return (
        f"{names} is not {family}'s: {count} differ{'s' if len(wrong) == 1 else ''}, the first is {first!r} (id "
        f"{ours.get(first, 'none')} in {family}, {theirs.get(first, 'none')} in the other); a student must come from "
        "the teacher's family"
    )


class _Entries:
    """What the entries of a vocabulary are: added to it, or never yielded by any text."""

    def __init__(self, tokenizer: Any) -> None:
        self._added = set(tokenizer.get_added_vocab())
        self._tokenizer = tokenizer

    @cached_property
    def _yields(self) -> Callable[[str], bool]:
        return _yields(self._tokenizer)

    def added(self, word: str) -> bool:
        """True for a token that was added to the vocabulary, and is matched in the text as a whole."""
        return word in self._added

    def unused(self, word: str) -> bool:
        """True for an ordinary entry that no text yields."""
        return word not in self._added and not self._yields(word)


def _yields(tokenizer: Any) -> Callable[[str], bool]:
    """Whether some text may yield an ordinary word. Only byte-pair encoding can rule it out: what isn't a single
    symbol must be the result of a merge."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = {} if backend is None else json.loads(backend.to_str())["model"]
    if model.get("type") != "BPE":
        return lambda word: True
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    merged = {left + right.removeprefix(prefix) for left, right in pairs}

    def yields(word: str) -> bool:
        if word in merged or word == model.get("unk_token") or len(word.removeprefix(prefix).removesuffix(suffix)) <= 1:
            return True
        if model.get("byte_fallback") and _BYTE.fullmatch(word):
            return True
        # With ignore_merges a whole piece of text is looked up before anything is merged.
        number = tokenizer.convert_tokens_to_ids(word)
        return bool(model.get("ignore_merges")) and number in _ids(tokenizer, tokenizer.decode([number]))

    return yields
