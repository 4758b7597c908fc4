"""Run a batch that doesn't fit in memory again in two halves."""

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
    """Results of ``run`` on all items together, or on parts of them if there is too little memory; in order.

    Args:
        items: at least one.
        run: may raise OutOfMemoryError.
        halve: False to raise an error instead of halving.
        empty_cache: frees cached memory of the device before the halves run.
        refusal: makes the error message for items that can't be halved.

    Raises:
        ModelError: there is too little memory for a single item, or for all of them if ``halve`` is False.
    """
    try:
        return [run(items)]
    except torch.OutOfMemoryError as error:
        if len(items) == 1 or not halve:
            raise ModelError(refusal(items)) from error
    # Not in the except block: until its end the error keeps every frame of `run` alive, and so the tensors in them.
    empty_cache()
    middle = len(items) // 2
    halves = (items[:middle], items[middle:])
    return [
        result
        for half in halves
        for result in in_halves(half, run, halve=halve, empty_cache=empty_cache, refusal=refusal)
    ]
