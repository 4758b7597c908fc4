"""Read a cache: sequences by index, each with its targets. Every file is checked before it is decoded.

Shape legend: S sequences of a shard.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from zarr import Group

from logitcache.cache.directory import (
    check_shard_files,
    check_totals,
    read_manifest,
    read_table,
    read_tokenizer_file,
    refuse_extra,
)
from logitcache.cache.export import to_arrow, to_datasets
from logitcache.cache.listing import extra_files
from logitcache.cache.sequence import CachedSequence, cut_sequence
from logitcache.errors import CorruptCacheError, ModelError
from logitcache.format.arrays import ShardArrays
from logitcache.format.formats import decode_shard, get_format, open_group
from logitcache.format.manifest import TOKENIZER_DIR, Manifest
from logitcache.format.table import ShardEntry, ShardTable
from logitcache.stores.url import local_path
from logitcache.utils.files import open_sized, read_checked, storage_error
from logitcache.utils.reasons import reason

#: Decoded shards kept in memory, enough for a few threads that read different shards.
KEPT_SHARDS = 4


class CacheSlice(Sequence[CachedSequence]):
    """Some sequences of a cache, read when they are needed."""

    def __init__(self, cache: Cache, indices: range) -> None:
        self._cache = cache
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> CachedSequence: ...
    @overload
    def __getitem__(self, index: slice) -> CacheSlice: ...
    def __getitem__(self, index: int | slice) -> CachedSequence | CacheSlice:
        if isinstance(index, slice):
            return CacheSlice(self._cache, self._indices[index])
        return self._cache[self._indices[index]]

    def __repr__(self) -> str:
        return f"CacheSlice({len(self):,} of {len(self._cache):,} sequences)"


class Cache(Sequence[CachedSequence]):
    """A finished cache, as ``logitcache.open`` returns it. Threads may share it. Another process opens its copy again.

    Attributes:
        root: its directory.
        manifest: what it holds and where it came from.
        digest: ``sha256:…``, its name.
        shards: the shard table, a sequence of ``ShardEntry``.
    """

    def __init__(self, root: Path, manifest: Manifest, digest: str, shards: ShardTable) -> None:
        self.root = root
        self.manifest = manifest
        self.digest = digest
        self.shards = shards
        self._kept: OrderedDict[int, ShardArrays] = OrderedDict()
        self._lock = threading.Lock()
        self._shard_locks: dict[int, threading.Lock] = {}

    @property
    def address(self) -> str:
        """The path or URL that opens it. A URL ends with ``@`` and the digest, and has no user and password."""
        return str(self.root)

    @property
    def top_k(self) -> int:
        """K, the entries kept for each position."""
        return self.manifest.provenance.top_k

    @property
    def ranked(self) -> int:
        """How many of the K entries are the teacher's most probable. Others are a sample of the tail, or candidates."""
        return self.manifest.provenance.ranked

    @property
    def vocab_size(self) -> int:
        """V, the length of the teacher's logit vector."""
        return self.manifest.provenance.vocab_size

    @property
    def tokenizer_dir(self) -> Path:
        """Where the tokenizer's files are."""
        return self.root / TOKENIZER_DIR

    def __len__(self) -> int:
        return int(self.shards.first_sequence_R1[-1])

    @overload
    def __getitem__(self, index: int) -> CachedSequence: ...
    @overload
    def __getitem__(self, index: slice) -> CacheSlice: ...
    def __getitem__(self, index: int | slice) -> CachedSequence | CacheSlice:
        """One sequence, or a view of several.

        Raises:
            IndexError: there is no such sequence.
            CorruptCacheError: its shard is missing or altered.
            StorageError: the system refused.
        """
        if isinstance(index, slice):
            return CacheSlice(self, range(*index.indices(len(self))))
        sequence = int(index) + len(self) if index < 0 else int(index)
        if not 0 <= sequence < len(self):
            raise IndexError(f"sequence {index} of {len(self):,}")
        shard, within = self.shards.locate(sequence)
        return cut_sequence(self._decoded(shard), within)

    def __iter__(self) -> Iterator[CachedSequence]:
        for index in range(len(self)):
            yield self[index]

    def read_shard(self, index: int) -> ShardArrays:
        """Read, check and decode one shard.

        Raises:
            IndexError: there is no such shard.
            CorruptCacheError: the shard is missing, altered, or doesn't hold what the table says.
            StorageError: the system refused.
        """
        entry = self.shards[index]
        payload = self._payload(entry)
        try:
            arrays = decode_shard(payload, self.manifest.shard_format)
        except CorruptCacheError as error:
            raise CorruptCacheError(f"{self.shard_address(entry)}: {error}") from error
        check_content(arrays, entry, self.manifest, self.shard_address(entry))
        return arrays

    def read_lengths(self, index: int) -> NDArray[np.int64]:
        """Number of tokens ``[S]`` of each sequence of a shard, without reading the rest of the shard.

        They are checked against the shard table. Only :meth:`read_shard` checks that the shard wasn't altered.

        Raises:
            IndexError: there is no such shard.
            CorruptCacheError: the shard is missing, or its size or its sequences aren't what the table says.
            StorageError: the system refused.
        """
        entry = self.shards[index]
        with open_sized(self.root, entry.path, entry.bytes) as file:
            try:
                lengths_S = get_format(self.manifest.shard_format).read_one(file, "sequence_lengths").astype(np.int64)
            except CorruptCacheError as error:
                raise CorruptCacheError(f"{self.shard_address(entry)}: {error}") from error
            except OSError as error:
                raise storage_error("read", self.root / entry.path, error) from error
        if lengths_S.shape != (entry.sequences,) or int(lengths_S.sum()) != entry.tokens:
            raise CorruptCacheError(f"{self.shard_address(entry)} holds other sequences than the cache says")
        return lengths_S

    def zarr(self, index: int) -> Group:
        """One shard as a read-only ``zarr.Group``. Its file is checked as for :meth:`read_shard`.

        Raises:
            ConfigError: the cache has Arrow shards.
            IndexError, CorruptCacheError: as for :meth:`read_shard`.
        """
        entry = self.shards[index]
        return open_group(self._payload(entry), self.manifest.shard_format, self.shard_address(entry))

    def shard_address(self, entry: ShardEntry) -> str:
        """The path or URL of a shard's file, for messages."""
        return str(self.root / entry.path)

    def load_tokenizer(self) -> Any:
        """The teacher's tokenizer, from the cache's own files. No code from the cache runs, and no hub is used.

        Raises:
            CorruptCacheError: a tokenizer file is missing or altered.
            ModelError: the cache has no tokenizer, or transformers can't load it.
        """
        from transformers import AutoTokenizer

        if not self.manifest.tokenizer:
            raise ModelError(f"{self.address} carries no tokenizer")
        for name, record in self.manifest.tokenizer.items():
            read_checked(self.root, f"{TOKENIZER_DIR}/{name}", record.bytes, record.sha256)
        try:
            return AutoTokenizer.from_pretrained(self.tokenizer_dir, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise ModelError(f"can't load the tokenizer of {self.address}: {reason(error)}") from error

    def to_arrow(self) -> pa.RecordBatchReader:
        """All sequences as Arrow record batches, one per shard; see ``logitcache.cache.export``."""
        return to_arrow(self)

    def to_datasets(self, *, streaming: bool = False) -> Any:
        """All sequences as a Hugging Face ``datasets.Dataset``, or an ``IterableDataset`` if ``streaming``.

        Raises:
            MissingDependencyError: ``datasets`` isn't installed.
        """
        return to_datasets(self, streaming=streaming)

    def _payload(self, entry: ShardEntry) -> bytes:
        """A shard's bytes, checked. A cache with its shards in another place overrides this."""
        return read_checked(self.root, entry.path, entry.bytes, entry.sha256)

    def _decoded(self, shard: int) -> ShardArrays:
        with self._lock:
            if shard in self._kept:
                self._kept.move_to_end(shard)
                return self._kept[shard]
            shard_lock = self._shard_locks.setdefault(shard, threading.Lock())
        with shard_lock:  # two threads that want the same shard decode it once
            with self._lock:
                if shard in self._kept:
                    return self._kept[shard]
            decoded = self.read_shard(shard)
            with self._lock:
                self._kept[shard] = decoded
                self._shard_locks.pop(shard, None)
                while len(self._kept) > KEPT_SHARDS:
                    self._kept.popitem(last=False)
            return decoded

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.root, self.digest)

    def __repr__(self) -> str:
        totals = self.manifest.totals
        return (
            f"Cache({str(self.root)!r}: {totals.sequences:,} sequences, {totals.tokens:,} tokens, "
            f"{totals.targets:,} targets × top {self.top_k} of {self.manifest.provenance.teacher.name}, "
            f"{self.digest[:19]}…)"
        )


def open_cache(path: str | os.PathLike[str], *, fetched_later: bool = False) -> Cache:
    """Open a finished cache in a directory; ``logitcache.open`` takes URLs too.

    The manifest, the shard table and the tokenizer are checked now. If there are not too many shards, it is also
    checked that all are there. The content of a shard is checked when it is read.

    Args:
        path: the directory.
        fetched_later: shards may be missing, because they are fetched when they are needed.

    Raises:
        CacheNotFoundError: there is no finished cache.
        CacheFormatError: the cache has another format version, or needs a feature that this version doesn't have.
        CorruptCacheError: a file is missing, extra, cut off or altered.
        StorageError: the system refused to read.
        ConfigError: the path is a URL.
    """
    root = local_path(path, "open it with logitcache.open")
    manifest, digest = read_manifest(root)
    refuse_extra(extra_files(root, manifest))
    table = read_table(root, manifest)
    check_totals(root, manifest, table)
    for name, record in manifest.tokenizer.items():
        read_tokenizer_file(root, name, record)
    check_shard_files(root, table, fetched_later=fetched_later)
    return Cache(root, manifest, digest, table)


def check_content(arrays: ShardArrays, entry: ShardEntry, manifest: Manifest, path: Path | str) -> None:
    """Raise CorruptCacheError unless a decoded shard holds what the table and the manifest say."""
    expected = {"sequences": entry.sequences, "tokens": entry.tokens, "targets": entry.targets}
    origin = manifest.provenance
    expected |= {"vocab_size": origin.vocab_size, "k": origin.top_k}
    found = {name: getattr(arrays, name) for name in expected} | asdict(arrays.beyond)
    for name, value in (expected | asdict(origin.beyond)).items():
        if found[name] != value:
            raise CorruptCacheError(f"{path} holds {name} = {found[name]:,}, the cache says {value:,}")


def _reopen(root: Path, digest: str) -> Cache:
    cache = open_cache(root)
    if cache.digest != digest:
        raise CorruptCacheError(f"{root} now holds another cache: {cache.digest}, it was {digest}")
    return cache
