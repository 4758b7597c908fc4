"""What caches must have in common to be merged, and the provenance of the merged cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from logitcache.format.manifest import Card, Manifest, Provenance

T = TypeVar("T")


def differences(one: Manifest, other: Manifest) -> Iterator[str]:
    """One phrase for each difference that makes two caches impossible to merge."""
    for name, a, b in _must_agree(one, other):
        if a != b:
            yield f"{name} is {_short(a)} in one and {_short(b)} in the other"


def _must_agree(one: Manifest, other: Manifest) -> Iterator[tuple[str, Any, Any]]:
    a, b = one.provenance, other.provenance
    weights = a.teacher.weights_digest, b.teacher.weights_digest
    if None in weights:
        yield "teacher", a.teacher.name, b.teacher.name
        yield "teacher revision", a.teacher.revision, b.teacher.revision
    # The weights identify a teacher; the same weights may have different names on two disks.
    yield "teacher weights", *weights
    yield "teacher dtype", a.teacher.dtype, b.teacher.dtype
    yield "teacher engine", a.teacher.engine, b.teacher.engine
    yield "tokenizer", a.tokenizer_digest, b.tokenizer_digest
    yield "top-k", a.top_k, b.top_k
    for name, count in asdict(a.beyond).items():
        yield name.replace("_", " "), count, getattr(b.beyond, name)
    yield "vocabulary", a.vocab_size, b.vocab_size
    yield "encoding", _encoding(one), _encoding(other)
    yield "shard format", one.shard_format, other.shard_format


def merged_provenance(
    manifests: Sequence[Manifest], parents: tuple[str, ...], corpus_digest: str, duplicates: str
) -> Provenance:
    """The first cache's provenance, without what differs in the others."""
    origins = [manifest.provenance for manifest in manifests]
    first = origins[0]
    positions = list(dict.fromkeys(origin.positions for origin in origins))
    return Provenance(
        teacher=first.teacher,
        tokenizer_digest=first.tokenizer_digest,
        corpus_digest=corpus_digest,
        top_k=first.top_k,
        **first.beyond.recorded(),
        vocab_size=first.vocab_size,
        positions=" and ".join(positions),
        max_length=first.max_length if len({origin.max_length for origin in origins}) == 1 else None,
        settings=_shared([origin.settings for origin in origins]) | {"duplicates": duplicates},
        software=_shared([origin.software for origin in origins]),
        parents=parents,
    )


def join_cards(manifests: Sequence[Manifest]) -> Card:
    """The texts of all cards, without repeats. Where two licences differ, both apply to the merged cache."""
    fields: dict[str, str] = {}
    for name in Card.model_fields:
        texts = dict.fromkeys(text for manifest in manifests if (text := getattr(manifest.card, name)))
        if texts:
            fields[name] = "; ".join(texts)
    return Card(**fields)


def _encoding(manifest: Manifest) -> str:
    encoding = manifest.encoding
    return f"{encoding.preset} within {encoding.bound:g} nat"


def _shared(maps: list[dict[str, T]]) -> dict[str, T]:
    return {name: value for name, value in maps[0].items() if all(name in m and m[name] == value for m in maps)}


def _short(value: Any) -> str:
    text = "unknown" if value is None else str(value)
    return f"{text[:19]}…" if text.startswith("sha256:") else text
