"""Pull: copy a cache, or a part of it, from a store into a directory. A part becomes a cache of its own."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np

from logitcache.cache.content import Content, read_content
from logitcache.cache.derive import CorpusDigest, derived_files, encode_part, keep_sequences
from logitcache.cache.install import claim_directory, finish, install_shard, refuse_other_cache
from logitcache.cache.opening import open_place
from logitcache.cache.reader import Cache, check_content
from logitcache.cache.selection import Piece, Selection, find_pieces
from logitcache.cache.signatures import check_trusted, pull_signatures
from logitcache.errors import ConfigError
from logitcache.format.formats import decode_shard
from logitcache.format.manifest import TOKENIZER_DIR, require_writer_features
from logitcache.format.table import ShardEntry
from logitcache.share.pushing import WORKERS, Transfer
from logitcache.share.transfer import (
    copy_shard,
    fetch_shards,
    install_content,
    make_transfer,
    missing_shards,
    write_bytes,
)
from logitcache.stores.url import local_path
from logitcache.utils.progress import Report, silent


def pull(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    selection: Selection | None = None,
    *,
    trusted_keys: Path | None = None,
    workers: int = WORKERS,
    dry_run: bool = False,
    progress: Report = silent,
) -> Transfer:
    """Copy a finished cache into a directory. After an interruption, the same call copies what is missing.

    Args:
        source: a cache's URL, or a directory.
        out: the new directory; absent, empty, or left by an interrupted pull of the same. A finished copy is repaired.
        selection: copy only this part. It becomes a cache of its own, with the source as its parent. Only the first
            and the last shard of the part may be rewritten; the others are the same files.
        trusted_keys: a file of public keys. One of them must have signed the source.
        workers: transfers at the same time.
        dry_run: only say what would be copied.
        progress: called as bytes arrive.

    Raises:
        OutputExistsError: something else is at ``out``.
        CorruptCacheError: a file of the source is missing or altered.
        RemoteError: the store refused, or didn't answer in time.
        SignatureError: no trusted key signed the source.
        ConfigError: the selection isn't within the cache.
        CacheNotFoundError, CacheFormatError, StorageError: as when opening the source.
    """
    root = local_path(out, "pull into a directory; `logitcache push` copies to a store")
    cache = open_place(source)
    if trusted_keys is not None:
        check_trusted(cache, trusted_keys)
    pieces = find_pieces(selection, cache.shards) if selection and selection != Selection() else []
    if not pieces or _is_all(pieces, cache):
        return _pull_all(cache, root, workers, dry_run, progress)
    assert selection is not None
    return _pull_part(cache, root, selection, pieces, workers, dry_run, progress)


def _pull_all(cache: Cache, root: Path, workers: int, dry_run: bool, progress: Report) -> Transfer:
    content = read_content(cache)
    if not dry_run:
        transfer = install_content(content, root, content.digest, partial(copy_shard, cache), workers, progress)
        pull_signatures(cache, root)
        return transfer
    refuse_other_cache(root, content.raw)
    wanted = list(content.distinct().values())
    return make_transfer(content.digest, root, wanted, missing_shards(root, wanted, workers, progress), dry_run=True)


def _pull_part(
    cache: Cache, root: Path, selection: Selection, pieces: list[Piece], workers: int, dry_run: bool, progress: Report
) -> Transfer:
    require_writer_features(cache.manifest, cache.digest)
    whole = {piece.shard: cache.shards[piece.shard] for piece in pieces if _is_whole(piece, cache)}
    cut = [piece for piece in pieces if piece.shard not in whole]
    wanted = list({entry.path: entry for entry in whole.values()}.values())
    if dry_run:
        wanted += [cache.shards[piece.shard] for piece in cut]
        return make_transfer(cache.digest, root, wanted, missing_shards(root, wanted, workers, progress), dry_run=True)
    with claim_directory(root, f"{selection} of {cache.digest}"):
        missing = missing_shards(root, wanted, workers, progress)
        fetch_shards(partial(copy_shard, cache), root, missing, workers, progress)
        parts = {piece.shard: entry for piece in cut if (entry := _install_cut(cache, root, piece)) is not None}
        entries = [whole.get(piece.shard) or parts.get(piece.shard) for piece in pieces]
        kept = [entry for entry in entries if entry is not None]
        if not kept:
            raise ConfigError(f"{selection} selects nothing: the first sequence is longer")
        content = _part_content(cache, root, selection, kept)
        finish(root, content.raw, content.files)
    moved = missing + list(parts.values())
    return make_transfer(content.digest, root, list(content.distinct().values()), moved)


def _install_cut(cache: Cache, root: Path, piece: Piece) -> ShardEntry | None:
    """Publish the selected part of a shard; None if no sequence is selected."""
    arrays = cache.read_shard(piece.shard)
    keep_S = piece.mask(np.diff(arrays.offsets_S1))
    if not keep_S.any():
        return None
    part = keep_sequences(arrays, keep_S)
    entry, payload = encode_part(part, cache.manifest.encoding, cache.manifest.shard_format)
    install_shard(root, entry, lambda temporary: write_bytes(temporary, payload))
    return entry


def _part_content(cache: Cache, root: Path, selection: Selection, entries: list[ShardEntry]) -> Content:
    digest = CorpusDigest()
    for entry in entries:
        arrays = decode_shard((root / entry.path).read_bytes(), cache.manifest.shard_format)
        check_content(arrays, entry, cache.manifest, root / entry.path)
        digest.add(arrays)
    origin = cache.manifest.provenance
    provenance = origin.model_copy(
        update={
            "corpus_digest": digest.value(),
            "parents": (cache.digest,),
            "settings": {**origin.settings, "selection": str(selection)},
        }
    )
    whole = read_content(cache)
    tokenizer = {
        relative.removeprefix(f"{TOKENIZER_DIR}/"): payload
        for relative, payload in whole.files.items()
        if relative.startswith(f"{TOKENIZER_DIR}/")
    }
    manifest = cache.manifest
    raw, files = derived_files(
        manifest, provenance, entries, tokenizer, card=manifest.card, calibration=manifest.calibration
    )
    return Content(raw, files, entries, whole.payload)


def _is_whole(piece: Piece, cache: Cache) -> bool:
    return piece.tokens is None and piece.stop - piece.start == cache.shards[piece.shard].sequences


def _is_all(pieces: list[Piece], cache: Cache) -> bool:
    return len(pieces) == len(cache.shards) and all(_is_whole(piece, cache) for piece in pieces)
