"""Accelerators that aren't there: they keep a record of what is asked of them, and copy to the host late."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from logitcache.targets.topk import TopK
from logitcache.utils.device import Devices

GIB = 1 << 30
CUDA = tuple(torch.device("cuda", index) for index in range(8))


class OnCuda1(Tensor):
    """A tensor whose numbers lie on the CPU, and that says that it is on the second GPU."""

    device = CUDA[1]  # type: ignore[assignment]


def on_cuda_1(targets: TopK) -> TopK:
    """The same targets, as they look when the second GPU holds them; new tensors, which nothing else keeps."""
    return targets._map(lambda tensor: tensor.clone().as_subclass(OnCuda1))


class FakeEvent:
    """Comes when the copies that one device was given before it are done."""

    def __init__(self, work: Sequence[Callable[[], None]]) -> None:
        self._work = tuple(work)

    def synchronize(self) -> None:
        for copy in self._work:
            copy()


class FakeDevices(Devices):
    """Some GPUs, each with one stream of work.

    Attributes:
        log: what was asked, in order.
        current: the device that calls without a device mean.
        lost: how many copies began after their source was gone.
    """

    def __init__(self, *free_bytes: int) -> None:
        self.log: list[tuple[object, ...]] = []
        self.current = CUDA[0]
        self.lost = 0
        self._free_bytes = free_bytes
        self._work: dict[torch.device, list[Callable[[], None]]] = defaultdict(list)

    def count(self, kind: str) -> int:
        return len(self._free_bytes) if kind == "cuda" else 0

    def check(self, device: torch.device) -> None:
        if device.type == "cuda" and not 0 <= (device.index or 0) < len(self._free_bytes):
            raise RuntimeError("invalid device ordinal")

    def make_current(self, device: torch.device) -> None:
        self.log.append(("current", device))
        self.current = device

    def copy_to_host(self, tensor: Tensor) -> Tensor:
        source, copied = weakref.ref(tensor), torch.zeros(tensor.shape, dtype=tensor.dtype)
        done: list[bool] = []

        def copy() -> None:
            found = source()
            if found is None:
                self.lost += 1
            elif not done:
                with torch.inference_mode():  # engines compute in it
                    copied.copy_(found.as_subclass(Tensor))
                done.append(True)

        self._work[tensor.device].append(copy)
        self.log.append(("copy", tensor.device))
        return copied

    def record(self, device: torch.device) -> FakeEvent:
        self.log.append(("event", device))
        return FakeEvent(self._work.pop(device, []))

    def free_bytes(self, device: torch.device) -> int | None:
        return self._free_bytes[device.index or 0] if device.type == "cuda" else None

    def empty_cache(self, device: torch.device) -> None:
        self.log.append(("empty", device))

    def has_bf16(self, device: torch.device) -> bool:
        return True
