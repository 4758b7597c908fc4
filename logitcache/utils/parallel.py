"""Run many small jobs in threads. Few jobs wait at a time, and the first failure or Ctrl-C stops all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Prefix of the names of the threads.
THREAD_PREFIX = "logitcache-transfer"
#: Jobs that are submitted and not finished, for each thread.
_JOBS_PER_THREAD = 4
_POLL_SECONDS = 0.5


class StoppedError(Exception):
    """A job was stopped because another job failed, or because of Ctrl-C."""


class _Thread(threading.local):
    stop: threading.Event | None = None


_thread = _Thread()


def pause(seconds: float) -> None:
    """Sleep until the time is over or the jobs are stopped.

    Raises:
        StoppedError: the jobs were stopped.
    """
    if _thread.stop is None:
        time.sleep(seconds)
    elif _thread.stop.wait(seconds):
        raise StoppedError


def check_stopped() -> None:
    """Long jobs call this from time to time.

    Raises:
        StoppedError: the jobs of this thread were stopped.
    """
    if _thread.stop is not None and _thread.stop.is_set():
        raise StoppedError


def run_parallel(
    items: Iterable[T], action: Callable[[T], R], workers: int, done: Callable[[T, R], None] = lambda item, result: None
) -> None:
    """Run ``action`` on each item; ``done`` is called in this thread for each finished item, in no fixed order.

    Raises:
        Exception: the error of the first action that failed. Jobs that have not started are dropped, and running jobs
            stop at their next :func:`check_stopped`.
    """
    running: dict[Future[R], T] = {}
    stop = threading.Event()

    def job(item: T) -> R:
        _thread.stop = stop
        return action(item)

    pool = ThreadPoolExecutor(workers, thread_name_prefix=THREAD_PREFIX)
    waits = True
    try:
        for item in items:
            running[pool.submit(job, item)] = item
            if len(running) >= workers * _JOBS_PER_THREAD:
                _collect(running, done)
        while running:
            _collect(running, done)
    except BaseException as error:
        stop.set()
        waits = isinstance(error, Exception)  # after Ctrl-C, don't wait for a store that doesn't answer
        raise
    finally:
        pool.shutdown(wait=waits, cancel_futures=True)


def _collect(running: dict[Future[R], T], done: Callable[[T, R], None]) -> None:
    finished: set[Future[R]] = set()
    # Another thread may receive Ctrl-C, and that doesn't wake this one: so it waits with a time limit.
    while not finished:
        finished, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
    for future in finished:
        done(running.pop(future), future.result())
