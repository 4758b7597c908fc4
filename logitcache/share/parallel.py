"""Many small jobs in threads, with a bounded number waiting and the first failure ending it all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Jobs handed to a thread pool ahead of their turn, for each thread.
_AHEAD = 4


def run_parallel(
    items: Iterable[T], action: Callable[[T], R], workers: int, done: Callable[[T, R], None] = lambda item, result: None
) -> None:
    """Run ``action`` on each item; ``done`` is called in this thread as each is finished, in no fixed order.

    Raises:
        Whatever the first failing action raised; jobs that haven't begun by then never do.
    """
    running: dict[Future[R], T] = {}
    pool = ThreadPoolExecutor(workers, thread_name_prefix="logitcache-transfer")
    try:
        for item in items:
            running[pool.submit(action, item)] = item
            if len(running) >= workers * _AHEAD:
                _collect(running, done)
        while running:
            _collect(running, done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(running: dict[Future[R], T], done: Callable[[T, R], None]) -> None:
    finished, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in finished:
        done(running.pop(future), future.result())
