"""How mutants are made: a cache taken apart, one part changed, and digests that fit again."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from payload_mutators import NASTY, mutate_arrow, mutate_bytes, mutate_json, mutate_zip

import logitcache as lc
from logitcache.format.canonical import canonical_json


@dataclass
class Parts:
    """A cache taken apart. What stays None is derived from the rest when it is written."""

    manifest: dict[str, Any]
    shards: list[bytes]
    tokenizer: dict[str, bytes]
    manifest_raw: bytes | None = None
    table_raw: bytes | None = None
    table_changes: list[Callable[[dict[str, list[Any]]], None]] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path) -> Parts:
        cache = lc.open(root)
        return cls(
            manifest=json.loads((root / "manifest.json").read_bytes()),
            shards=[(root / entry.path).read_bytes() for entry in cache.shards],
            tokenizer={name: (root / "tokenizer" / name).read_bytes() for name in cache.manifest.tokenizer},
        )

    def write(self, root: Path, counts: list[tuple[int, int, int]]) -> None:
        """Write the cache with every digest fitting."""
        shutil.rmtree(root, ignore_errors=True)
        (root / "shards").mkdir(parents=True)
        (root / "tokenizer").mkdir()
        suffix = ".zarr.zip" if self.manifest.get("shard_format") == "zarr" else ".arrow"
        columns: dict[str, list[Any]] = {name: [] for name in ("path", "sha256", "bytes")}
        for shard in self.shards:
            sha256 = hashlib.sha256(shard)
            columns["path"].append(f"shards/{sha256.hexdigest()}{suffix}")
            columns["sha256"].append(sha256.digest())
            columns["bytes"].append(len(shard))
            (root / columns["path"][-1]).write_bytes(shard)
        for index, name in enumerate(("sequences", "tokens", "targets")):
            columns[name] = [row[index] for row in counts]
        for change in self.table_changes:
            change(columns)
        table = self.table_raw if self.table_raw is not None else table_bytes(columns)
        (root / "shards.arrow").write_bytes(table)
        for name, content in self.tokenizer.items():
            (root / "tokenizer" / name).write_bytes(content)
        (root / "manifest.json").write_bytes(raw := self._manifest(table))
        (root / "manifest.sha256").write_text(f"{hashlib.sha256(raw).hexdigest()}  manifest.json\n")

    def _manifest(self, table: bytes) -> bytes:
        if self.manifest_raw is not None:
            return self.manifest_raw
        value = json.loads(json.dumps(self.manifest))
        fitting = {
            "shard_table": record(table),
            "tokenizer": {name: record(content) for name, content in self.tokenizer.items()},
        }
        for name, fits in fitting.items():
            # A mutation of these fields themselves stays.
            if self.manifest.get(name) == ORIGINAL[name]:
                value[name] = fits
        if self.manifest.get("totals") == ORIGINAL["totals"]:
            value["totals"]["bytes"] = sum(map(len, self.shards))
        try:
            return canonical_json(value)
        except ValueError:
            return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


ORIGINAL: dict[str, Any] = {}


def record(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def table_bytes(columns: dict[str, list[Any]], **options: Any) -> bytes:
    """An Arrow file of these columns, of the shard table's types where the values allow it."""
    types = {"path": pa.string(), "sha256": pa.binary(32)}
    arrays, fields = [], []
    for name, values in columns.items():
        try:
            array = pa.array(values, types.get(name, pa.int64()))
        except (pa.ArrowException, TypeError, OverflowError, UnicodeEncodeError):
            array = pa.array([str(value).encode("utf-8", "replace") for value in values])
        arrays.append(array)
        fields.append(pa.field(name, array.type, nullable=array.null_count > 0))
    length = min(map(len, arrays))
    batch = pa.record_batch([array[:length] for array in arrays], schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


# Mutators: each takes a random source and what to change, and returns it changed ------------------------------------


def mutate_manifest(rng: random.Random, parts: Parts) -> None:
    if rng.random() < 0.3:
        parts.manifest_raw = mutate_bytes(rng, canonical_json(parts.manifest))
        return
    for _ in range(rng.choice([1, 1, 2, 3])):
        changed = mutate_json(rng, parts.manifest)
        parts.manifest = changed if isinstance(changed, dict) else parts.manifest | {"extensions": changed}


def mutate_table(rng: random.Random, parts: Parts) -> None:
    def change(columns: dict[str, list[Any]]) -> None:
        kind = rng.random()
        name = rng.choice(sorted(columns))
        if kind < 0.5 and columns[name]:
            columns[name][rng.randrange(len(columns[name]))] = rng.choice(NASTY)
        elif kind < 0.6 and len(columns) > 1:
            del columns[name]
        elif kind < 0.7:
            columns[str(rng.choice(NASTY))[:20].encode("utf-8", "replace").decode()] = list(columns[name])
        elif kind < 0.8:
            times = rng.choice([0, 2, 1000])
            for column in columns.values():
                column[:] = column * times
        elif kind < 0.9:
            columns[name].reverse()
        else:
            parts.table_raw = table_bytes(columns, compression=rng.choice(["zstd", "lz4"]))

    parts.table_changes = [change] * rng.choice([1, 1, 2])
    if rng.random() < 0.5:
        parts.table_changes = [lambda columns: setattr(parts, "table_raw", mutate_bytes(rng, table_bytes(columns)))]


def mutate_shard(rng: random.Random, parts: Parts) -> None:
    index = rng.randrange(len(parts.shards))
    structural = {"zarr": mutate_zip, "arrow": mutate_arrow}[parts.manifest["shard_format"]]
    mutate = mutate_bytes if rng.random() < 0.4 else structural
    parts.shards[index] = mutate(rng, parts.shards[index])


def mutate_tokenizer(rng: random.Random, parts: Parts) -> None:
    name = rng.choice(sorted(parts.tokenizer))
    if rng.random() < 0.5:
        parts.tokenizer[name] = mutate_bytes(rng, parts.tokenizer[name])
    else:
        changed = mutate_json(rng, json.loads(parts.tokenizer[name]))
        parts.tokenizer[name] = json.dumps(changed).encode("utf-8", "replace")


MUTATORS: dict[str, Callable[[random.Random, Parts], None]] = {
    "manifest": mutate_manifest,
    "table": mutate_table,
    "shard": mutate_shard,
    "tokenizer": mutate_tokenizer,
}
