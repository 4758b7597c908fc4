"""A student, and whether it goes with a cache: same tokens, a vocabulary large enough, targets to learn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from logitcache.errors import ModelError, TargetsError, TokenizerMismatchError
from logitcache.hub import fetch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Text on which two tokenizers with equal vocabularies but other merges or other splitting come apart.
_PROBES = (
    "The State of the Union is strong; unemployment fell by 3.5% in 1964 — isn't that so?",
    "def f(x):\n\treturn [i**2 for i in range(0x1F)]  # größer, naïve café\r\n\n",
    "  leading spaces,   runs of    them, CamelCaseWords, UPPER lower 1234567890 1,000,000",
    "日本語の文章。Привет, мир! مرحبا 😀👍🏽 e\u0301 vs \u00e9",
)


@dataclass(frozen=True)
class Pairing:
    """A student that has been checked against a cache.

    Attributes:
        model: the student, a transformers causal language model.
        vocab_limit: ids below it are known to both heads.
        notes: what the user should know about the pair; empty when it is perfect.
    """

    model: Any
    vocab_limit: int
    notes: tuple[str, ...] = ()


def load_student(name: str | Path, *, dtype: torch.dtype = torch.float32, attention: str | None = None) -> Any:
    """Load a causal language model from a directory or a hub id.

    Raises:
        ModelError: it isn't there or can't be loaded as one.
    """
    from transformers import AutoModelForCausalLM

    path = Path(name).expanduser()
    local = path.is_dir()
    if not local and (path.exists() or str(name).startswith((".", "/", "~"))):
        what = "is a file, not a model's directory" if path.exists() else "does not exist"
        raise ModelError(f"the student {name} {what}: give a directory that `save_pretrained` wrote, or a hub id")
    if local and not any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        raise ModelError(f"{path} is not a model: it has no config.json")
    if not local:
        fetch("student", str(name), ("config.json", "adapter_config.json"))
    extra = {} if attention is None else {"attn_implementation": attention}
    try:
        return AutoModelForCausalLM.from_pretrained(path if local else str(name), dtype=dtype, **extra)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"can't load the student {name}: {reason}") from error


def pair(cache: Any, student: Any, tokenizer_source: str | Path | None) -> Pairing:
    """Check that a student can learn from a cache, or be measured against it.

    Args:
        cache: an open cache.
        student: the loaded model.
        tokenizer_source: where the student's tokenizer is; None skips the comparison.

    Raises:
        TokenizerMismatchError: the two tokenizers number tokens differently.
        ModelError: the student's vocabulary is too small for the cache's tokenizer.
        TargetsError: the cache has no targets.
    """
    if cache.manifest.totals.targets == 0:
        raise TargetsError(f"the cache {cache.root} holds no targets: there is nothing to learn from it")
    words = len(cache.load_tokenizer())
    notes = []
    if tokenizer_source is not None and not compare_tokenizers(cache, tokenizer_source):
        notes.append(
            f"{tokenizer_source} has no tokenizer to compare with the cache's; the cache's is taken as its own"
        )
    has = int(student.get_output_embeddings().weight.shape[0])
    # A tokenizer may have more entries than the teacher has logits for; nothing in the cache can name those.
    if has < min(words, cache.vocab_size):
        raise ModelError(
            f"the student's vocabulary has {has:,} entries, the cache's tokenizer {words:,}: "
            "take a student of the same family, or resize its embeddings"
        )
    if has > cache.vocab_size:
        notes.append(
            f"the student's head has {has:,} rows, the teacher's {cache.vocab_size:,}: the {has - cache.vocab_size:,} "
            "rows beyond (padding) take no part"
        )
    elif has < cache.vocab_size:
        notes.append(
            f"the student's head has {has:,} rows, the teacher's {cache.vocab_size:,} (the tokenizer needs {words:,}): "
            "positions whose targets name an id beyond the student's are left out"
        )
    limit = min(has, cache.vocab_size)
    if cache.top_k > limit:
        raise ModelError(
            f"every position of the cache names {cache.top_k:,} ids, and the student's head has only {has:,} rows: cut "
            "the cache with `logitcache convert --top-k`"
        )
    return Pairing(student, limit, tuple(notes))


def compare_tokenizers(cache: Any, source: str | Path) -> bool:
    """True if the tokenizer at ``source`` numbers text like the cache's; False if there is none to compare.

    Compared are the vocabulary, the added and special tokens, and how a few awkward texts are split.

    Raises:
        TokenizerMismatchError: they differ; the message says where.
    """
    theirs = _load_tokenizer(source)
    if theirs is None:
        return False
    ours = cache.load_tokenizer()
    our_vocab, their_vocab = ours.get_vocab(), theirs.get_vocab()
    if our_vocab != their_vocab:
        differing = sorted(
            (word for word in our_vocab.keys() | their_vocab.keys() if our_vocab.get(word) != their_vocab.get(word)),
            key=lambda word: min(our_vocab.get(word, 1 << 62), their_vocab.get(word, 1 << 62)),
        )
        first = differing[0]
        raise TokenizerMismatchError(
            f"the student's tokenizer ({source}) is not the cache's: {len(differing):,} tokens differ, the first is "
            f"{first!r} (id {our_vocab.get(first, 'none')} in the cache, {their_vocab.get(first, 'none')} in the "
            "student's); a student must come from the teacher's family"
        )
    for text in _PROBES:
        if ours(text, add_special_tokens=False).input_ids != theirs(text, add_special_tokens=False).input_ids:
            raise TokenizerMismatchError(
                f"the student's tokenizer ({source}) has the cache's vocabulary but splits text differently, "
                f"for example {text[:30]!r}; a student must use the teacher's tokenizer"
            )
    return True


def _load_tokenizer(source: str | Path) -> Any:
    """The tokenizer at a place, or None where a local directory has none."""
    from transformers import AutoTokenizer

    path = Path(source).expanduser()
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
    if path.is_dir() and not any((path / name).exists() for name in names):
        return None
    try:
        return AutoTokenizer.from_pretrained(path if path.is_dir() else str(source), trust_remote_code=False)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"can't load the student's tokenizer from {source}: {reason}") from error
