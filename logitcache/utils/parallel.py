"""Many small jobs in threads, with a bounded number waiting and the first failure, or Ctrl-C, ending it all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Beginning of the names of our threads.
THREAD_PREFIX = "logitcache-transfer"
#: Jobs handed to a thread pool ahead of their turn, for each thread.
_AHEAD = 4
_LOOK_UP_SECONDS = 0.5


class StoppedError(Exception):
    """A job gave up because the others are over, too."""


class _Thread(threading.local):
    stop: threading.Event | None = None


_thread = _Thread()


def pause(seconds: float) -> None:
    """Sleep, but not on when the work is over.

    Raises:
        StoppedError: it is.
    """
    if _thread.stop is None:
        time.sleep(seconds)
    elif _thread.stop.wait(seconds):
        raise StoppedError


def check_stopped() -> None:
    """Raise StoppedError in a thread whose work is over: long jobs ask now and then."""
    if _thread.stop is not None and _thread.stop.is_set():
        raise StoppedError


def run_parallel(
    items: Iterable[T], action: Callable[[T], R], workers: int, done: Callable[[T, R], None] = lambda item, result: None
) -> None:
    """Run ``action`` on each item; ``done`` is called in this thread as each is finished, in no fixed order.

    Raises:
        Whatever the first failing action raised; jobs that haven't begun by then never do, and those under way stop.
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
            if len(running) >= workers * _AHEAD:
                _collect(running, done)
        while running:
            _collect(running, done)
    except BaseException as error:
        stop.set()
        waits = isinstance(error, Exception)  # whoever presses Ctrl-C isn't kept waiting for a store that is silent
        raise
    finally:
        pool.shutdown(wait=waits, cancel_futures=True)


def _collect(running: dict[Future[R], T], done: Callable[[T, R], None]) -> None:
    finished: set[Future[R]] = set()
    # The system may hand Ctrl-C to another thread, which doesn't wake this one: it has to look up now and then.
    while not finished:
        finished, _ = wait(running, timeout=_LOOK_UP_SECONDS, return_when=FIRST_COMPLETED)
    for future in finished:
        done(running.pop(future), future.result())
