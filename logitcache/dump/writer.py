"""Encode and write shards in background threads, so that the teacher doesn't wait for the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from logitcache.cache.publish import publish_shard
from logitcache.dump.assemble import Computed, assemble
from logitcache.dump.claims import Claim
from logitcache.dump.descriptors import Descriptor, write_descriptor
from logitcache.format.arrays import ShardArrays
from logitcache.format.calibrate import calibrate
from logitcache.format.encoding import Encoding
from logitcache.format.formats import ShardFormatName, encode_shard

_THREADS = 2


class ShardWriter:
    """A few threads that encode and publish shards. At most one more shard is waiting.

    An error in a thread is raised at the next ``submit``, at ``drain`` or when the context ends.
    """

    def __init__(
        self,
        root: Path,
        encoding: Encoding,
        shard_format: ShardFormatName,
        *,
        skip_non_finite: bool,
    ) -> None:
        self._root = root
        self._encoding = encoding
        self._shard_format = shard_format
        self._skip_non_finite = skip_non_finite
        self._room = threading.Semaphore(_THREADS + 1)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="shard-writer")
        self._pending: dict[Future[None], Claim] = {}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        for future, claim in self._pending.items():
            if future.cancelled():
                claim.release()
        if kind is None:
            self.drain()

    def submit(self, index: int, computed: Computed, claim: Claim, where: Callable[[int], str]) -> None:
        """Give a computed shard to the threads; waits while they have too many. The writer releases the claim.

        Raises:
            LogitCacheError: an earlier shard failed.
        """
        self._room.acquire()
        try:
            self._raise_failures()
        except BaseException:
            claim.release()
            raise
        self._pending[self._pool.submit(self._write, index, computed, claim, where)] = claim

    def drain(self) -> None:
        """Wait until all submitted shards are published.

        Raises:
            LogitCacheError: a shard failed.
        """
        for future in list(self._pending):
            future.result()
            del self._pending[future]

    def _raise_failures(self) -> None:
        for future in [future for future in self._pending if future.done()]:
            future.result()
            del self._pending[future]

    def _write(self, index: int, computed: Computed, claim: Claim, where: Callable[[int], str]) -> None:
        try:
            arrays, non_finite = assemble(computed, where, skip_non_finite=self._skip_non_finite)
            entry = calibration = None
            if arrays is not None:
                payload = encode_shard(arrays, self._encoding, self._shard_format)
                entry = publish_shard(self._root, payload, arrays, self._shard_format)
                if index == 0:
                    calibration = calibrate(arrays, self._encoding, payload).model_dump(mode="json")
            descriptor = Descriptor(
                entry, computed.vocab_size, non_finite, _mean_mass(arrays), calibration, computed.head_dtype
            )
            write_descriptor(self._root, index, descriptor)
        finally:
            claim.release()
            self._room.release()


def _mean_mass(arrays: ShardArrays | None) -> float | None:
    if arrays is None:
        return None
    return float(-np.expm1(arrays.residual_logprob_N.astype(np.float64)).mean())
