"""Convert a cache to another shard format or encoding, or to a smaller K. The new cache names its parent."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from logitcache.cache.directory import read_tokenizer_file
from logitcache.cache.publish import finalize_cache, publish_shard
from logitcache.cache.reader import Cache, open_cache
from logitcache.errors import ConfigError, OutputExistsError
from logitcache.format.arrays import ShardArrays
from logitcache.format.calibrate import Calibration, RankError, calibrate
from logitcache.format.encoding import Encoding
from logitcache.format.formats import ShardFormatName, encode_shard, get_format
from logitcache.format.manifest import Manifest, require_writer_features
from logitcache.format.table import ShardEntry
from logitcache.stores.url import local_path
from logitcache.utils.progress import Report, silent

#: The entry of the manifest's settings that says how far values may be from the teacher's.
_SETTING = "convert"


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        path, digest: the new cache.
        parent: digest of the cache that it was made from.
        bytes_before, bytes_after: size of all shards.
        max_error, residual_max_error: how far a log-prob, or a residual, may be from the teacher's now, in nats:
            the parent's largest error, plus the new encoding's where values were rounded again.
    """

    path: str
    digest: str
    parent: str
    bytes_before: int
    bytes_after: int
    max_error: float
    residual_max_error: float

    def to_json(self) -> dict[str, Any]:
        """The fields, for ``--json``."""
        return asdict(self)


def convert_cache(
    cache: Cache | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    shard_format: ShardFormatName | None = None,
    encoding: Encoding | None = None,
    top_k: int | None = None,
    workers: int = 1,
    progress: Report = silent,
) -> Converted:
    """Write a new cache from a finished one. Settings that aren't given stay as they are.

    Another format or a finer encoding changes no value, and a finer encoding can't restore what was lost. A coarser
    encoding rounds values that were rounded before. The errors add up, and the manifest says so. The mass of entries
    that ``top_k`` removes goes to the residual. After a crash the same call finishes the same cache.

    Args:
        cache: a cache, or the directory of one.
        out: a directory that doesn't exist yet.
        shard_format: ``zarr`` or ``arrow``.
        encoding: how log-probs are stored.
        top_k: entries to keep at each position, at most as many as there are.
        workers: how many shards are converted at the same time.
        progress: called with the number of tokens that are done.

    Raises:
        ConfigError: nothing would change, ``top_k`` is out of range, or ``out`` is a URL.
        OutputExistsError: something else is at ``out``.
        CacheFormatError, CorruptCacheError, CacheNotFoundError, StorageError: as when opening and reading the cache.
    """
    source = cache if isinstance(cache, Cache) else open_cache(cache)
    manifest = source.manifest
    require_writer_features(manifest, str(source.root))
    plan = _Plan(
        shard_format or manifest.shard_format, encoding or manifest.encoding, source.top_k if top_k is None else top_k
    )
    plan.check(manifest)
    root = _new_directory(out)
    entries, calibration = _convert_shards(source, root, plan, workers, progress)
    max_error, residual_max_error = plan.bounds(manifest)
    whole = plan.top_k == source.top_k
    # The entries beyond the top (a sample of the tail, or candidates) are removed first, so the new cache has none.
    beyond = {} if whole else dict.fromkeys(manifest.provenance.beyond.recorded())
    kept = {name: value for name, value in manifest.provenance.settings.items() if whole or name != "reference"}
    settings = kept | {_SETTING: {"max_error": max_error, "residual_max_error": residual_max_error}}
    software = manifest.provenance.software | {"logitcache": importlib.metadata.version("logitcache")}
    digest = finalize_cache(
        root,
        entries,
        manifest.provenance.model_copy(
            update=beyond
            | {
                "top_k": plan.top_k,
                "parents": (source.digest,),
                "settings": settings,
                "software": software,
            }
        ),
        plan.encoding,
        plan.shard_format,
        {name: read_tokenizer_file(source.root, name, record) for name, record in manifest.tokenizer.items()},
        calibration=None if calibration is None else _add_parent_errors(calibration, manifest, max_error),
        card=manifest.card,
    )
    size = sum(entry.bytes for entry in entries)
    return Converted(str(root), digest, source.digest, manifest.totals.bytes, size, max_error, residual_max_error)


@dataclass(frozen=True)
class _Plan:
    shard_format: ShardFormatName
    encoding: Encoding
    top_k: int

    def check(self, manifest: Manifest) -> None:
        get_format(self.shard_format)
        held, ranked = manifest.provenance.top_k, manifest.provenance.ranked
        if not 1 <= self.top_k <= held:
            raise ConfigError(f"top-k {self.top_k}: the cache has {held} entries a position")
        if ranked < self.top_k < held:
            raise ConfigError(
                f"top-k {self.top_k}: only the first {ranked} of the cache's {held} entries are the teacher's top; "
                f"keep all, or at most {ranked}"
            )
        same = self.encoding.same_as(manifest.encoding) and self.shard_format == manifest.shard_format
        if same and self.top_k == manifest.provenance.top_k:
            raise ConfigError("nothing would change: give another format, preset, max error or top-k")

    def bounds(self, manifest: Manifest) -> tuple[float, float]:
        """How far a log-prob and a residual may be from the teacher's."""
        before = manifest.provenance.settings.get(_SETTING)
        past = before if isinstance(before, dict) else {}
        bounds = []
        for name, rounded in (("max_error", False), ("residual_max_error", self.top_k < manifest.provenance.top_k)):
            parent = past.get(name, manifest.encoding.bound)
            kept = self.encoding.holds(manifest.encoding) and not rounded
            bounds.append(float(str(parent)) + (0.0 if kept else self.encoding.bound))
        return bounds[0], bounds[1]

    def apply(self, arrays: ShardArrays) -> ShardArrays:
        return arrays if self.top_k == arrays.k else arrays.top(self.top_k)


def _convert_shards(
    source: Cache, root: Path, plan: _Plan, workers: int, progress: Report
) -> tuple[list[ShardEntry], Calibration | None]:
    calibrations: list[Calibration] = []

    def one(index: int) -> ShardEntry:
        arrays = plan.apply(source.read_shard(index))
        payload = encode_shard(arrays, plan.encoding, plan.shard_format)
        if index == 0:
            calibrations.append(calibrate(arrays, plan.encoding, payload))
        return publish_shard(root, payload, arrays, plan.shard_format)

    entries: list[ShardEntry] = []
    done, total = 0, source.manifest.totals.tokens
    with ThreadPoolExecutor(workers) as pool:
        for entry in _in_order(pool, one, len(source.shards), 2 * workers):
            entries.append(entry)
            done += entry.tokens
            progress("convert", done, total, "tokens")
    return entries, calibrations[0] if calibrations else None


def _in_order(pool: ThreadPoolExecutor, work: Any, count: int, ahead: int) -> Iterator[Any]:
    """Results of ``work(0)``, ``work(1)`` … in order. At most ``ahead`` run early, so an error stops the rest."""
    running = [pool.submit(work, index) for index in range(min(ahead, count))]
    try:
        for index in range(count):
            yield running[index].result()
            if index + ahead < count:
                running.append(pool.submit(work, index + ahead))
    finally:
        for future in running:
            future.cancel()


def _new_directory(out: str | os.PathLike[str]) -> Path:
    root = local_path(out, "convert into a directory, then `logitcache push` that")
    if root.exists() and (not root.is_dir() or {item.name for item in root.iterdir()} - {"shards"}):
        raise OutputExistsError(f"{root} exists: choose another place, or delete it first")
    return root


def _add_parent_errors(measured: Calibration, parent: Manifest, bound: float) -> Calibration:
    """The errors measured against the parent plus the parent's own: a bound of the errors against the teacher."""
    before = parent.calibration
    if before is None:
        return measured.model_copy(update={"bound": bound})
    ranks = tuple(
        RankError(first=now.first, last=now.last, max=now.max + was.max, mean=now.mean + was.mean)
        for now, was in zip(measured.by_rank, before.by_rank, strict=False)
    )
    names = ("max_error", "mean_error", "residual_max_error", "residual_mean_error")
    sums = {name: getattr(measured, name) + getattr(before, name) for name in names}
    return measured.model_copy(update={"bound": bound, "by_rank": ranks, **sums})
