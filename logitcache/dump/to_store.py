"""Dumps and stores: find a cache that already has the result of a dump, and dump to a URL."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from logitcache.cache.catalogue import Listed, catalogue
from logitcache.cache.location import Location, read_manifest, read_tag
from logitcache.cache.opening import open_place
from logitcache.cache.reader import Cache, open_cache
from logitcache.dump import DumpConfig, config_path, dump, make_config
from logitcache.dump.run import config_yaml, new_plan
from logitcache.dump.settings import Settings, Stamps, resolve, settings_of
from logitcache.errors import CacheNotFoundError, ConfigError, OutputExistsError
from logitcache.format.manifest import MANIFEST_NAME
from logitcache.models.dtypes import DTYPES
from logitcache.share.pushing import Transfer, push
from logitcache.stores.local_cache import LocalSettings
from logitcache.stores.store import open_writable
from logitcache.stores.url import parse_reference
from logitcache.utils.files import storage_error
from logitcache.utils.progress import Report, silent


def find_dump(place: str | os.PathLike[str], config: DumpConfig, *, report: Report = silent) -> Listed | None:
    """Find a cache that a dump would make again, with the same teacher, tokenizer, corpus, K and encoding, or None.

    The teacher isn't loaded. The corpus is tokenised only if a cache agrees in everything else.

    Args:
        place: a URL or a directory, as for ``catalogue``.
        config: settings of the dump.
        report: called as rows are tokenised.

    Raises:
        ConfigError: the teacher generates answers, so the corpus isn't known before the dump; or the store can't list.
        CacheNotFoundError, RemoteError, StorageError: as ``catalogue`` raises them.
        DataError, ModelError: as ``dump`` raises them.
    """
    if getattr(config, "generate", None) is not None:
        raise ConfigError("a dump that generates answers can't be looked up: its corpus isn't known before")
    job = resolve(config)
    stamps = Stamps()
    settings = settings_of(job, stamps)
    close = [item for item in catalogue(place) if _agrees(item, job.config, settings)]
    if not close:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        plan = new_plan(job, Path(scratch), report, settings, stamps)
    for item in close:
        assert item.manifest is not None
        origin = item.manifest.provenance
        same = (origin.corpus_digest, origin.positions) == (plan.corpus_digest, plan.positions)
        if same and _has_statistics(item) == job.config.statistics:
            return item
    return None


def dump_to(url: str, settings: dict[str, Any], *, move_tag: bool = False, report: Report = silent) -> Transfer:
    """Dump into a directory of the local cache, push the result, and remove the directory.

    The same call again continues after an interruption, in the dump or in the push.

    Args:
        url: where the cache goes, as for ``push``.
        settings: of the dump, without ``out``.
        move_tag: as for ``push``.
        report: called as work is done.

    Raises:
        LogitCacheError: what ``dump`` and ``push`` raise.
    """
    cache = dump_staged(make_config({**settings, "out": staging_directory(url)}), url, move_tag=move_tag, report=report)
    return send_staged(cache, url, move_tag=move_tag, report=report)


def dump_staged(config: DumpConfig, url: str, *, move_tag: bool = False, report: Report = silent) -> Cache:
    """Dump into the :func:`staging_directory` of a URL, if its name is free. A finished dump there is used as it is.

    Raises:
        OutputExistsError: another cache has the name, or the directory holds a finished cache with other settings.
        LogitCacheError: what ``dump`` raises.
    """
    _check_free(url, move_tag)
    if (config.out / MANIFEST_NAME).exists():
        # The push was interrupted. The directory belongs to this URL, but its dump may have had other settings.
        if config_path(config.out).read_text(encoding="utf-8") == config_yaml(resolve(config).config):
            return open_cache(config.out)
        raise OutputExistsError(
            f"{config.out} holds a finished dump with other settings that wasn't pushed to {parse_reference(url)}: "
            "`logitcache push` it, or delete it"
        )
    return dump(config, report=report)


def _check_free(url: str, move_tag: bool) -> None:
    """Check before the dump that the name isn't taken.

    Raises:
        OutputExistsError: another cache has it.
        ConfigError: the URL names a digest, or can't be written to.
        RemoteError: the store refused, or didn't answer in time.
    """
    reference = parse_reference(url)
    if reference.digest:
        raise ConfigError(f"{reference}: the digest isn't known before the dump; give a tag after the @")
    try:
        store = open_writable(reference)
    except CacheNotFoundError:
        return  # push will make the directory
    if reference.tag and not move_tag and (found := read_tag(store, reference.tag)) is not None:
        raise OutputExistsError(f"the tag {reference.tag!r} at {store.url} stands for {found}: choose another tag")
    if not reference.tag and (taken := read_manifest(Location(store))) is not None:
        raise OutputExistsError(f"{store.url} already holds a cache, {taken.digest}: choose another name, or a tag")


def send_staged(cache: Cache, url: str, *, move_tag: bool = False, report: Report = silent) -> Transfer:
    """Push a cache from the :func:`staging_directory` of its URL, and remove it from this machine.

    Raises:
        LogitCacheError: what ``push`` raises. Then the cache stays here, and the same dump continues with the push.
    """
    staging = cache.root
    transfer = push(staging, url, move_tag=move_tag, progress=report)
    try:
        shutil.rmtree(staging)
        config_path(staging).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error("remove", staging, error) from error
    return transfer


def staging_directory(url: str) -> Path:
    """The directory of a dump to a URL, before it is pushed. Equal URLs have the same one, so that a rerun finds it."""
    name = hashlib.sha256(str(parse_reference(url)).encode()).hexdigest()[:16]
    return LocalSettings.from_environment().directory / "dumps" / name


def _agrees(item: Listed, config: DumpConfig, settings: Settings) -> bool:
    """True if everything except the corpus is the same."""
    if item.manifest is None:
        return False
    origin = item.manifest.provenance
    teacher = origin.teacher
    dtype = str(DTYPES[config.dtype]).removeprefix("torch.")
    wide = config.head_dtype == "fp32" and DTYPES[config.dtype].itemsize < 4
    found = (
        teacher.engine, teacher.weights_digest, teacher.dtype, teacher.head_dtype, origin.tokenizer_digest,
        origin.top_k, origin.beyond, origin.settings.get("reference"), origin.max_length,
        item.manifest.encoding.preset, item.manifest.encoding.bound,
    )  # fmt: skip
    wanted = (
        config.engine, settings["weights_digest"], dtype, "float32" if wide else None, settings["tokenizer_digest"],
        config.top_k, config.beyond, settings["reference"], config.max_length, config.encoding.preset,
        config.encoding.bound,
    )  # fmt: skip
    return found == wanted and item.manifest.totals.shards > 0


def _has_statistics(item: Listed) -> bool:
    return open_place(item.address).read_shard(0).log_partition_N is not None
