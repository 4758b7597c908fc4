"""Targets on their way from a device to the host, so that the device can go on with the next batch meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logitcache.targets.topk import TopK


@dataclass(frozen=True, eq=False)
class HostTopK:
    """A batch's targets while they are copied; ``wait`` gives them."""

    targets: TopK
    event: Any | None

    def wait(self) -> TopK:
        """The targets, once the copies have arrived."""
        if self.event is not None:
            self.event.synchronize()
        return self.targets


def to_host(targets: TopK) -> HostTopK:
    """Start copying to pinned memory. Targets that are on the CPU already are there at once."""
    if targets.ids.device.type != "cuda":
        return HostTopK(targets.to("cpu"), None)

    def pinned(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    copied = targets._map(pinned)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return HostTopK(copied, event)
