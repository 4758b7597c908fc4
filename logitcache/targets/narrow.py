"""Keep tensors in the narrowest dtype that holds their values, and widen them when they are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def id_dtype(vocab_size: int) -> torch.dtype:
    """The narrowest dtype that torch can index by after one conversion, and that holds every id below V."""
    if vocab_size <= 1 << 16:
        return torch.uint16
    return torch.int32 if vocab_size <= 1 << 31 else torch.int64


class ReadWide:
    """A field of a dataclass: its tensor is kept in the dtype that was given, and widened when it is read.

    So a copy to a device copies the narrow tensor, and the device widens it. ``vars(holder)`` has the narrow tensor.
    """

    def __init__(self, name: str, wide: torch.dtype) -> None:
        self._name, self._wide = name, wide

    def __get__(self, holder: Any, owner: type) -> Tensor:
        kept: Tensor = vars(holder)[self._name]
        return kept.to(torch.promote_types(kept.dtype, self._wide) if kept.is_floating_point() else self._wide)

    def __set__(self, holder: Any, value: Tensor) -> None:
        vars(holder)[self._name] = value
