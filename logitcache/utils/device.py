"""What each kind of device does in its own way: which one is current, copies to the host, free memory.

Other modules take a :class:`Devices` as an argument. A test gives one of its own, which keeps a record.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A point in a device's work."""

    def synchronize(self) -> None:
        """Wait until the device has done everything before that point."""
        ...


class Devices:
    """The devices of this machine, as torch sees them."""

    def count(self, kind: str) -> int:
        """How many accelerators of a kind (``cuda``, ``xpu`` …) this process sees; 0 for ``cpu``."""
        accelerator = torch.accelerator.current_accelerator()
        return torch.accelerator.device_count() if accelerator is not None and accelerator.type == kind else 0

    def check(self, device: torch.device) -> None:
        """Allocate nothing there.

        Raises:
            RuntimeError, AssertionError: there is no such device, or torch was built without its kind.
        """
        torch.empty(0, device=device)

    def make_current(self, device: torch.device) -> None:
        """Let calls that name no device mean this one. Nothing happens where the kind has one device only."""
        if device.index is not None and (set_device := _call(device, "set_device")) is not None:
            set_device(device)

    def copy_to_host(self, tensor: Tensor) -> Tensor:
        """A copy on the CPU: from CUDA one that is only begun, in page-locked memory; from elsewhere a finished one.

        The tensor must be kept until an event that is recorded afterwards has come.
        """
        if tensor.device.type != "cuda":
            return tensor.to("cpu")
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    def record(self, device: torch.device) -> Event | None:
        """An event after all copies from this device so far; None where every copy is finished when it returns."""
        if device.type != "cuda":
            return None
        event: Event = torch.cuda.current_stream(device).record_event()
        return event

    def free_bytes(self, device: torch.device) -> int | None:
        """Memory that nobody uses; None for the CPU, and where torch can't tell."""
        query = _call(device, "mem_get_info")
        return None if query is None else int(query(device)[0])

    def total_bytes(self, device: torch.device) -> int | None:
        """All of the device's memory; None for the CPU, and where torch can't tell."""
        query = _call(device, "get_device_properties")
        total = None if query is None else getattr(query(device), "total_memory", None)
        return None if total is None else int(total)

    def empty_cache(self, device: torch.device) -> None:
        """Give back memory that torch keeps for later tensors, on all devices of this kind."""
        if (empty := _call(device, "empty_cache")) is not None:
            empty()

    def has_bf16(self, device: torch.device) -> bool:
        """True if the device computes in bfloat16 by itself; False where it emulates that, or torch can't tell."""
        if device.type == "cpu":
            return True
        if device.type == "cuda":
            with torch.cuda.device(device):
                return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        supported = _call(device, "is_bf16_supported")
        return supported is not None and bool(supported())


#: The real ones.
DEVICES = Devices()


def local_device(kind: str, devices: Devices = DEVICES) -> torch.device:
    """This process's own device of a kind, by the process's number on this machine; without an index if there is none.

    torchrun and Slurm set that number. Alone a process takes the first device.
    """
    count = devices.count(kind)
    number = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    return torch.device(kind, int(number) % count) if count else torch.device(kind)


def _call(device: torch.device, name: str) -> Any | None:
    """A function of ``torch.cuda``, ``torch.xpu`` …, if that module has it.

    ``torch.accelerator`` has most of them too, but some only in newer versions of torch.
    """
    return getattr(torch.get_device_module(device), name, None)
