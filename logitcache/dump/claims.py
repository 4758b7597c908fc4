"""Claims: divide the shards among workers without a coordinator.

A claim is a lock on a file in the scratch directory. The kernel (or the file server) releases it when its process dies,
so claims need no time limit. Claims only save work: on a file system without locks two workers may compute the same
shard, and publish the same bytes.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from filelock import lock_descriptor

from logitcache.utils.files import SCRATCH_DIR, storage_error

_CLAIMS = "claims"


class Claim:
    """A claim; call ``release`` when the work is published."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def release(self) -> None:
        """Release the claim, so that other workers can have it."""
        os.close(self._handle)


def try_claim(root: Path, name: str) -> Claim | None:
    """Claim a piece of work; None if another worker has claimed it.

    Raises:
        FileNotFoundError: the scratch directory is gone, because another worker has finished the dump.
        StorageError: the system refused.
    """
    path = root / SCRATCH_DIR / _CLAIMS / name
    try:
        if (root / SCRATCH_DIR).is_dir():
            path.parent.mkdir(exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error("write", path, error) from error
    try:
        # Not a FileLock of a path: it would make the scratch directory again after the dump was finished.
        held = lock_descriptor(handle, blocking=False)
    except OSError as error:
        held = error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # no locks on this file system: work without
        if not held:
            os.close(handle)
            raise storage_error("lock", path, error) from error
    if not held:
        os.close(handle)
        return None
    return Claim(handle)
