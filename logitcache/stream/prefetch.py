"""Work in advance: shards are decoded and batches are made in threads. Their errors are raised in the consumer."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from logitcache.format.arrays import ShardArrays
from logitcache.stream.layout import Layout
from logitcache.stream.prepared import prepared
from logitcache.stream.readable import Readable
from logitcache.stream.rows import Row, RowPlan

T = TypeVar("T")


class Windows:
    """The decoded shards of the windows in use and of the next one; only these are in memory."""

    def __init__(self, cache: Readable, plan: RowPlan, layout: Layout) -> None:
        self._cache, self._plan, self._layout = cache, plan, layout
        self._pool = ThreadPoolExecutor(decoding_threads(), thread_name_prefix="logitcache-decode")
        self._loading: dict[int, dict[int, Future[ShardArrays]]] = {}

    def holding(self, rows: Sequence[Row]) -> dict[int, ShardArrays]:
        """The decoded shards of consecutive rows, by shard number. Earlier windows are dropped."""
        first, last = rows[0].window, rows[-1].window
        for window in [window for window in self._loading if window < first]:
            del self._loading[window]
        for window in range(first, min(last + 2, self._plan.order.windows)):
            if window not in self._loading:
                self._loading[window] = self._load(self._plan.order.shards_by_use(window))
        # Wait only for the shards of these rows: other shards of their windows may still be decoded.
        needed = {(row.window, shard) for row in rows for shard, _ in row.samples}
        return {shard: self._loading[window][shard].result() for window, shard in sorted(needed)}

    def _load(self, shards: list[int]) -> dict[int, Future[ShardArrays]]:
        # In a mixture, two windows may hold parts of one shard.
        known = {shard: future for futures in self._loading.values() for shard, future in futures.items()}
        new = [shard for shard in shards if shard not in known]
        if (prefetch := getattr(self._cache, "prefetch", None)) is not None:
            prefetch(new)  # a remote cache fetches several at a time
        return {shard: known.get(shard) or self._pool.submit(self._decode, shard) for shard in shards}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._loading.clear()

    def _decode(self, shard: int) -> ShardArrays:
        return prepared(self._cache.read_shard(shard), self._layout.vocab_limit, self._layout.selection)


def decoding_threads() -> int:
    """Up to four threads: numpy and decompression mostly run without the interpreter's lock."""
    return min(4, os.cpu_count() or 1)


def prefetched(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items, up to ``depth`` of them made in advance in a thread. Its exceptions are raised here."""
    ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(kind: str, value: T | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised again in the consumer's thread
            put("error", error)
        else:
            put("end", None)

    thread = threading.Thread(target=work, name="logitcache-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
