"""Export a cache as plain Parquet, which other programs can read."""

from __future__ import annotations

import os

import pyarrow.parquet as pq

from logitcache.cache.export import to_arrow
from logitcache.cache.reader import Cache
from logitcache.errors import OutputExistsError, StorageError
from logitcache.stores.url import local_path
from logitcache.utils.atomic import atomic_file
from logitcache.utils.progress import Report, silent


def export_parquet(cache: Cache, out: str | os.PathLike[str], *, progress: Report = silent) -> int:
    """Write a Parquet file with one row per sequence and the columns of ``cache.to_arrow()``; returns its bytes.

    Pages have checksums, and the file's metadata has the cache's digest. A temporary file is written, then renamed.

    Raises:
        OutputExistsError: a file is there already.
        ConfigError: ``out`` is a URL.
        StorageError: the system refused.
        CorruptCacheError: a shard is missing or altered.
    """
    path = local_path(out, "export to a file on this machine")
    if path.exists():
        raise OutputExistsError(f"{path} is there already: choose another name")
    if not path.parent.is_dir():
        raise StorageError(f"can't write {path}: there is no directory {path.parent}")
    reader = to_arrow(cache)
    schema = reader.schema.with_metadata({b"logitcache.digest": cache.digest.encode("ascii")})
    done = 0
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for batch in reader:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
            done += batch.num_rows
            progress("export", done, len(cache), "sequences")
    return path.stat().st_size
