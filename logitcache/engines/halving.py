"""A batch that doesn't fit in memory is tried again in two halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from logitcache.errors import ModelError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_halves(
    items: Sequence[Item],
    run: Callable[[Sequence[Item]], Result],
    *,
    halve: bool,
    empty_cache: Callable[[], None],
    refusal: Callable[[Sequence[Item]], str],
) -> list[Result]:
    """What ``run`` makes of all items at once, or else of parts of them, in their order.

    Args:
        items: at least one.
        run: may run out of memory.
        halve: False to give up at the first time.
        empty_cache: gives free memory back to the device before the halves are tried.
        refusal: the message when a part can't be halved.

    Raises:
        ModelError: there is no memory for a single item, or for all of them without ``halve``.
    """
    try:
        return [run(items)]
    except torch.OutOfMemoryError as error:
        if len(items) == 1 or not halve:
            raise ModelError(refusal(items)) from error
    # Not in the except block: until its end the error holds every frame of `run`, and so the tensors in them.
    empty_cache()
    middle = len(items) // 2
    halves = (items[:middle], items[middle:])
    return [
        result
        for half in halves
        for result in in_halves(half, run, halve=halve, empty_cache=empty_cache, refusal=refusal)
    ]
