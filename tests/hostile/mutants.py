"""Mutated caches whose digests were made to fit again: what an attacker, not an accident, would hand in.

Run as a program, it makes and reads mutants in a process of its own with limits on memory and time, watches which
files are touched, and prints one JSON line for each mutant that was handled in any other way than by being read or by a
LogitCacheError. ``python mutants.py KIND FORMAT FIRST_SEED COUNT DIRECTORY``
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
from cache_builder import build_cache, make_arrays
from numcodecs import zstd
from transformers import PreTrainedTokenizerFast

import logitcache as lc
from logitcache.cache import tokenizer_files, verify_cache
from logitcache.cache.canonical import canonical_json

SECONDS = 5.0
MEMORY = 1 << 30
NASTY: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**32, 2**53 - 1, 2**53, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e308, float("nan"), "",
    "x" * 70_000, "../../etc/passwd", "/etc/passwd", "shards/../../x", "\x00", "\ud800", "zarr", "sha256:" + "0" * 64,
    [], {}, [[]] * 1000, {"a": {"b": {}}}, [1] * 10_000, "pickle", "numcodecs.pickles", "gzip", "uint64", "object",
    "<i8", [2**40], [2**20, 2**20], [-1], [0], [1.5], "NaN", "Infinity",
]  # fmt: skip


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


def mutate_bytes(rng: random.Random, raw: bytes) -> bytes:
    """A few of: flipped bits, other bytes, cuts, copies, junk, extreme integers."""
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and place < len(data):
            data[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 2:
            del data[place : place + rng.choice([1, 4, 64, 1024])]
        elif kind == 3:
            data[place:place] = rng.randbytes(rng.choice([1, 4, 64]))
        elif kind == 4:
            source = rng.randrange(len(data) + 1)
            data[place : place + 16] = data[source : source + 16]
        elif kind == 5:
            width = rng.choice([2, 4, 8])
            value = rng.choice([0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1])
            place = place // width * width
            data[place : place + width] = (value & (2 ** (8 * width) - 1)).to_bytes(width, "little")
        elif kind == 6 and rng.random() < 0.2:
            del data[place:]
    return bytes(data)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """Replace, delete, add or rename one node, anywhere in the tree."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(NASTY)
    if isinstance(value, list):
        index = rng.randrange(len(value))
        if rng.random() < 0.3:
            return value[:index] + rng.choice([[], [value[index]] * 2, [rng.choice(NASTY)]]) + value[index + 1 :]
        return [*value[:index], mutate_json(rng, value[index]), *value[index + 1 :]]
    key = rng.choice(sorted(value))
    kind = rng.random()
    if kind < 0.1:
        return {name: item for name, item in value.items() if name != key}
    if kind < 0.2:
        return value | {str(rng.choice(NASTY))[:50]: rng.choice(NASTY)}
    if kind < 0.25:
        return {name + "x" if name == key else name: item for name, item in value.items()}
    return value | {key: mutate_json(rng, value[key])}


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


def mutate_zip(rng: random.Random, payload: bytes) -> bytes:
    """Change members of the zip: their JSON, their content before compression, their names, their number."""
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    for _ in range(rng.choice([1, 1, 2])):
        index = rng.randrange(len(members))
        name, content = members[index]
        kind = rng.random()
        if kind < 0.1:
            del members[index]
        elif kind < 0.2:
            members[index] = (rng.choice(["../../x", "/etc/x", "c/0", "zarr.json", name + "x", name.upper()]), content)
        elif kind < 0.3:
            members.insert(rng.randrange(len(members) + 1), (rng.choice([name, "x/zarr.json", "y"]), content))
        elif name.endswith(".json"):
            members[index] = (name, json.dumps(mutate_json(rng, json.loads(content))).encode("utf-8", "replace"))
        elif kind < 0.6:
            members[index] = (name, zstd.compress(mutate_bytes(rng, unpacked(content)), 1, True))
        elif kind < 0.7:
            members[index] = (name, zstd_zeros(rng.choice([0, 1, 1 << 16, 1 << 27, 1 << 32])))
        else:
            members[index] = (name, mutate_bytes(rng, content))
        if not members:
            break
    sink = io.BytesIO()
    method = rng.choice([zipfile.ZIP_STORED] * 6 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return sink.getvalue()


def unpacked(content: bytes) -> bytes:
    try:
        return zstd.decompress(content)
    except RuntimeError:  # an earlier mutation has been here
        return content


def zstd_zeros(size: int) -> bytes:
    """A zstd frame that says it holds this many zeros, and does: four bytes for each 128 KiB (RFC 8878, RLE blocks)."""
    frame = bytearray(b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + size.to_bytes(8, "little"))
    left = size
    while True:
        block = min(left, 1 << 17)
        left -= block
        frame += (block << 3 | 1 << 1 | (not left)).to_bytes(3, "little") + b"\0"
        if not left:
            return bytes(frame)


def mutate_arrow(rng: random.Random, payload: bytes) -> bytes:
    """Change the batch: its metadata, its columns' values, types, names and number."""
    batch = pa.ipc.open_file(payload).get_batch(0)
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    metadata = dict(batch.schema.metadata or {})
    kind = rng.random()
    name = rng.choice(sorted(columns))
    if kind < 0.4 and metadata:
        key = rng.choice(sorted(metadata))
        try:
            changed = json.dumps(mutate_json(rng, json.loads(metadata[key]))).encode("utf-8", "replace")
        except ValueError:
            changed = mutate_bytes(rng, metadata[key])
        metadata[key] = changed
    elif kind < 0.5:
        del columns[name]
    elif kind < 0.6:
        columns[name + "x"] = columns.pop(name)
    elif kind < 0.8:
        columns[name] = columns[rng.choice(sorted(columns))]
    else:
        column = columns[name]
        buffers = [buffer and pa.py_buffer(mutate_same(rng, buffer)) for buffer in column.buffers()]
        columns[name] = _with_buffers(column, buffers)
    compression = rng.choice(["zstd", "zstd", "lz4", None])
    if rng.random() < 0.03:  # a few kilobytes that ask for more than a gigabyte
        compression = "zstd"
        columns = dict.fromkeys(
            columns, pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(1 << 28, np.uint8)), 1 << 28)
        )
    elif rng.random() < 0.1:
        rows = rng.choice([0, 2])
        columns = {key: pa.concat_arrays([column] * rows) if rows else column[:0] for key, column in columns.items()}
    schema = pa.schema([pa.field(key, column.type, False) for key, column in columns.items()], metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(pa.record_batch(list(columns.values()), schema=schema))
    return sink.getvalue().to_pybytes()


def mutate_same(rng: random.Random, buffer: pa.Buffer) -> bytes:
    """Mutated content of the same length."""
    raw = buffer.to_pybytes()
    return mutate_bytes(rng, raw)[: len(raw)].ljust(len(raw), b"\xff")


def _with_buffers(column: pa.Array, buffers: list[pa.Buffer | None]) -> pa.Array:
    """The same array over other buffers, taken in the order in which ``buffers()`` lists them."""
    own = [buffers.pop(0) for _ in range(column.type.num_buffers)]
    if column.type.num_fields:
        child = _with_buffers(column.values, buffers)
        return pa.Array.from_buffers(column.type, len(column), own, children=[child])
    return pa.Array.from_buffers(column.type, len(column), own)


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


# Reading mutants ----------------------------------------------------------------------------------------------------


class TooSlowError(BaseException):
    """A mutant took longer than it may."""


def use(root: Path, kind: str) -> str:
    """Do with a mutant what users do; returns how it ended."""
    ended = "read"
    try:
        cache = lc.open(root)
        for item in cache:
            assert len(item.positions) == len(item.targets)
        cache.to_arrow().read_all()
        if kind == "tokenizer":
            cache.load_tokenizer().decode([1, 2, 3])
    except lc.LogitCacheError as error:
        ended = type(error).__name__
    try:
        report = verify_cache(root, deep=True, workers=1)
    except lc.LogitCacheError:
        return ended
    if ended not in ("read", "ModelError") and report.ok:
        raise AssertionError(f"reading says {ended}, verify says sound")
    return ended


def watch_files(root: Path, seen: list[str]) -> None:
    """Record every path outside the cache that is opened, listed, linked or removed from here on."""
    watched = {"open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.link", "os.symlink"}
    allowed = (str(root), sys.prefix, sys.base_prefix, str(Path(lc.__file__).parent), "/proc", "/sys")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in watched and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.fsdecode(arguments[0])
            if not path.startswith(allowed):
                seen.append(f"{event} {path}")

    sys.addaudithook(hook)


def status(name: str) -> int:
    """A figure of this process from the system, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def limit_memory() -> None:
    """A backstop at twice what a mutant may use, so that a failing run doesn't take the machine with it."""
    limit = status("VmData") + 2 * MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def restart_peak() -> int:
    """Start a new measurement of peak memory; returns what is in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def small_tokenizer() -> dict[str, bytes]:
    """The files of a real tokenizer with a few dozen words."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "<s>"], show_progress=False)
    model.train_from_iterator(["the cat sat on the mat and the rat sat on the cat"] * 10, trainer)
    return tokenizer_files(PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", bos_token="<s>"))


def main() -> None:
    kind, shard_format, first, count, directory = sys.argv[1:]
    base, root = Path(directory) / "base", Path(directory) / "mutant"
    arrays = [make_arrays(seed, statistics=seed == 1 and kind == "shard") for seed in range(2)]
    tokenizer = None
    if kind == "tokenizer":
        tokenizer = small_tokenizer()
    build_cache(base, shard_format, arrays, tokenizer=tokenizer)  # type: ignore[arg-type]
    ORIGINAL.update(json.loads((base / "manifest.json").read_bytes()))
    counts = [(item.sequences, item.tokens, item.targets) for item in arrays]
    Parts.read(base).write(root, counts)
    assert use(root, kind) == "read"
    assert {path.name: path.read_bytes() for path in root.rglob("*.arrow")} == {
        path.name: path.read_bytes() for path in base.rglob("*.arrow")
    }
    seen: list[str] = []
    watch_files(root, seen)
    limit_memory()

    def too_slow(*_: Any) -> None:
        raise TooSlowError

    signal.signal(signal.SIGALRM, too_slow)
    ends: dict[str, int] = {}
    most = 0
    for seed in range(int(first), int(first) + int(count)):
        parts = Parts.read(base)
        MUTATORS[kind](random.Random(f"{kind} {shard_format} {seed}"), parts)
        parts.write(root, counts)
        del parts
        seen.clear()
        before, started = restart_peak(), time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        fault = None
        try:
            ended = use(root, kind)
            ends[ended] = ends.get(ended, 0) + 1
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is what this looks for
            fault = "".join(traceback.format_exception(error))[-1500:]
        signal.setitimer(signal.ITIMER_REAL, 0)
        took, grown = time.monotonic() - started, status("VmHWM") - before
        most = max(most, grown)
        if seen or fault or grown > MEMORY or took > SECONDS:
            line = {"seed": seed, "fault": fault, "outside": seen[:5], "grown": grown, "seconds": took}
            print(json.dumps(line), flush=True)
    print(json.dumps({"ends": ends, "most_memory": most}))


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
