"""Retry failed requests with growing random pauses, for a limited time."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar

from logitcache.errors import ConfigError, RemoteError
from logitcache.utils.parallel import pause

T = TypeVar("T")


class TransientError(Exception):
    """A failure that the next try may not have: a reset connection, a 5xx, a 429, a timeout."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to retry.

    Attributes:
        tries: most tries in total.
        first_pause, longest_pause: seconds; pause ``n`` is random, from 0 to ``first_pause * 2^n``, but at most
            ``longest_pause``.
        patience: seconds after which no new try starts.
        stall: seconds without a byte after which a request counts as failed.
        slowest: bytes/s below which a transfer counts as failed, once ``stall`` seconds are over.
    """

    tries: int = 8
    first_pause: float = 0.2
    longest_pause: float = 10.0
    patience: float = 300.0
    stall: float = 60.0
    slowest: float = 32_768.0

    @classmethod
    def from_environment(cls) -> RetryPolicy:
        """The defaults, or ``LOGITCACHE_TRIES`` and ``LOGITCACHE_STALL_SECONDS`` where they are set.

        Raises:
            ConfigError: one of them isn't a positive number.
        """
        tries, stall = _setting("LOGITCACHE_TRIES", 8), _setting("LOGITCACHE_STALL_SECONDS", 60.0)
        return cls(tries=max(1, int(tries)), stall=stall)

    def time_for(self, size: int) -> float:
        """Seconds that a transfer of ``size`` bytes may take."""
        return self.stall + size / self.slowest


class WrongAnswers:
    """Wrong answers to one request.

    If an answer was altered on the network, the next try gives a different one. If the file in the store is wrong, each
    try gives the same answer.
    """

    def __init__(self) -> None:
        self._seen: set[Hashable] = set()

    def error(self, answer: Hashable, altered: Exception) -> Exception:
        """The error for a wrong answer: ``altered`` if the same answer came before, else a TransientError."""
        if answer in self._seen:
            return altered
        self._seen.add(answer)
        return TransientError("it arrived damaged")


def retry(action: Callable[[], T], what: str, policy: RetryPolicy) -> T:
    """Run ``action`` until it succeeds, raises another error, or the policy allows no more tries.

    Args:
        action: raises TransientError if another try makes sense, another error if not.
        what: what the action does, for the error message.
        policy: how often and how long to retry.

    Raises:
        RemoteError: it never succeeded; the message has the last reason.
    """
    started = time.monotonic()
    for number in range(policy.tries):
        try:
            return action()
        except TransientError as error:
            last = error
        if number + 1 == policy.tries or time.monotonic() - started > policy.patience:
            break
        pause(random.uniform(0, min(policy.longest_pause, policy.first_pause * 2**number)))
    waited = time.monotonic() - started
    raise RemoteError(f"can't {what}: {last} ({number + 1} tries in {waited:.0f} s; try again later)") from last


def _setting(name: str, default: float) -> float:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError(f"{name} is {text!r}; it must be a positive number")
    return value
