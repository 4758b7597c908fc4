"""Write small files so that readers see the old content or the new one, never half of it."""

from __future__ import annotations

import os
from pathlib import Path

from logitcache.errors import StorageError


def write_atomically(path: Path, text: str) -> None:
    """Write aside, sync, rename.

    Raises:
        StorageError: no room, no permission.
    """
    aside = path.with_name(f".{path.name}.aside")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StorageError(f"can't write {path}: {error.strerror}") from error
