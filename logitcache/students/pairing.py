"""Load a student, and check that it fits a cache: same token ids, a large enough vocabulary, targets to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from logitcache.cache.tokenizer import tokenizer_files
from logitcache.errors import ConfigError, ModelError, TargetsError
from logitcache.models import check_language_model, find_head, load_language_model, without_adapter
from logitcache.models.loading import explained
from logitcache.models.numbering import compare_numbering
from logitcache.models.probe import longest, vocabulary
from logitcache.stream.lengths import Lengths
from logitcache.stream.prepared import known_positions
from logitcache.students.adapters import attach_adapter
from logitcache.students.files import StudentFiles, find_student


@dataclass(frozen=True)
class Pairing:
    """A student that has been checked against a cache.

    Attributes:
        model: the student, a transformers causal language model.
        vocab_limit: both models have logits for the ids below it.
        notes: what the user should know about the pair; empty if there is nothing.
        tokenizer: files of the tokenizer to save with the student: its own if it differs, else the cache's.
    """

    model: Any
    vocab_limit: int
    notes: tuple[str, ...] = ()
    tokenizer: Mapping[str, bytes] = field(default_factory=dict)


def load_student(
    name: str | Path, *, dtype: torch.dtype = torch.float32, attention: str | None = None, what: str = "student"
) -> Any:
    """Load a causal language model from a directory, a GGUF file or a hub id.

    An adapter's directory gives a PEFT model: the adapter on its base. Only the adapter is trainable.

    Raises:
        ModelError: it isn't there, or it isn't a causal language model.
        MissingDependencyError: a package that is needed to read it isn't installed.
    """
    files = find_student(name, what)
    whole = files.base or files
    extra = whole.load_kwargs() | ({} if attention is None else {"attn_implementation": attention})
    called = whole.name if files.base is None else f"{files.name}, base {whole.name}"
    model = load_language_model(what, called, whole.place, dtype=dtype, **extra)
    if files.base is not None:
        model = attach_adapter(model, files)
    check_language_model(model, what, files.name)
    return model


def pair(cache: Any, student: Any, tokenizer_source: str | Path | None, *, max_length: int | None = None) -> Pairing:
    """Check that a student can learn from a cache, or be evaluated on it.

    Args:
        cache: an open cache.
        student: the loaded model.
        tokenizer_source: the student's name, as for :func:`load_student`; None skips the comparison of tokenizers.
        max_length: longer sequences of the cache are left out by the caller.

    Raises:
        TokenizerMismatchError: the two tokenizers give different ids to tokens.
        ModelError: the student's vocabulary is too small for the cache, or its tokenizer can't be read.
        ConfigError: a sequence of the cache is longer than the student takes.
        TargetsError: the cache has no targets.
    """
    if cache.manifest.totals.targets == 0:
        raise TargetsError(f"the cache {cache.root} holds no targets: there is nothing to learn from it")
    check_lengths(cache, student, max_length)
    known, differences, tokenizer = _compare(cache, tokenizer_source)
    notes = list(differences)
    has = _rows(student)
    # A tokenizer may have more entries than the teacher has logits. No target in the cache can have those ids.
    if has < min(known, cache.vocab_size):
        raise ModelError(
            f"the student's vocabulary has {has:,} entries, the cache's tokenizer {known:,}: "
            "take a student of the same family, or resize its embeddings"
        )
    if has > cache.vocab_size:
        notes.append(
            f"the student's head has {has:,} rows, the teacher's {cache.vocab_size:,}: the {has - cache.vocab_size:,} "
            "additional rows (padding) aren't used"
        )
    elif has < cache.vocab_size:
        notes.append(_beyond(cache, has, known))
    limit = min(has, cache.vocab_size)
    if cache.top_k > limit:
        raise ModelError(
            f"every position of the cache names {cache.top_k:,} ids, and the student's head has only {has:,} rows: cut "
            "the cache with `logitcache convert --top-k`"
        )
    return Pairing(student, limit, tuple(notes), tokenizer)


def check_lengths(cache: Any, student: Any, max_length: int | None = None) -> None:
    """Check that no sequence is longer than the student's configuration allows.

    Args:
        cache, student: as for :func:`pair`.
        max_length: longer sequences are left out by the caller.

    Raises:
        ConfigError: one is.
    """
    limit = longest(student.config)
    if limit is None or any(
        bound is not None and bound <= limit for bound in (max_length, cache.manifest.provenance.max_length)
    ):
        return
    lengths = Lengths(cache)
    lengths.read_all()
    most = max((int(lengths.of(shard).max(initial=0)) for shard in range(len(cache.shards))), default=0)
    if most > limit:
        raise ConfigError(
            f"the cache {cache.root} holds a sequence of {most:,} tokens, and the student takes {limit:,}: train "
            f"with --max-length {limit}, which leaves longer ones out, or dump a cache with --max-length {limit}"
        )


def _rows(student: Any) -> int:
    """Number of ids that the student can read and predict. It may have fewer logits than rows in its output layer."""
    model, refusal = without_adapter(student)
    return vocabulary(model) if refusal else min(vocabulary(model), find_head(model).vocab_size)


def _beyond(cache: Any, has: int, known: int) -> str:
    """A note on a head that is smaller than the teacher's. The positions it loses are counted in one shard."""
    arrays = cache.read_shard(0)
    kept_N = known_positions(arrays, has)
    return (
        f"the student's head has {has:,} rows, the teacher's {cache.vocab_size:,} (the tokenizer needs {known:,}): "
        "positions whose targets have an id that the student lacks, or that come after such a token, are left out "
        f"({int((~kept_N).sum()):,} of {len(kept_N):,} in the first shard)"
    )


def _compare(cache: Any, source: str | Path | None) -> tuple[int, list[str], Mapping[str, bytes]]:
    """Number of ids that both must have, texts of the differences, and files of the tokenizer to save with the student.

    Raises:
        TokenizerMismatchError: they give different ids to tokens.
        ModelError: the student's tokenizer can't be read.
    """
    ours = cache.load_tokenizer()
    if source is None:
        return len(ours), [], _files(cache)
    theirs = load_student_tokenizer(find_student(source))
    if theirs is None:
        note = f"{source} has no tokenizer to compare with the cache's; the cache's tokenizer is used"
        return len(ours), [note], _files(cache)
    found = compare_numbering(ours, theirs, "the student's", str(source), "the cache")
    if not found.differences:
        return found.shared_ids, [], _files(cache)
    note = f"the tokenizers differ, but give the same ids to tokens that both have: {'; '.join(found.differences)}"
    return found.shared_ids, [f"{note}. The student keeps its own"], tokenizer_files(theirs)


def _files(cache: Any) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.tokenizer_dir.iterdir()}


def load_student_tokenizer(files: StudentFiles, what: str = "student") -> Any:
    """The student's tokenizer, or its base's; None if a local student has none.

    Raises:
        ModelError: it can't be read.
    """
    from transformers import AutoTokenizer

    place = files.tokenizer()
    if place is None:
        return None
    with explained(what, files.name, "tokenizer"):
        return AutoTokenizer.from_pretrained(str(place.place), trust_remote_code=False, **place.load_kwargs())
