"""Operations that differ between kinds of devices: the current device, copies to the host, free memory.

Other modules take a :class:`Devices` as an argument, so that a test can give its own, which records the calls.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A point in the sequence of a device's operations."""

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
        """Check that a device exists, by making an empty tensor on it.

        Raises:
            RuntimeError, AssertionError: there is no such device, or torch was built without its kind.
        """
        torch.empty(0, device=device)

    def make_current(self, device: torch.device) -> None:
        """Make this the default device of its kind. A device without an index changes nothing."""
        if device.index is not None and (set_device := _call(device, "set_device")) is not None:
            set_device(device)

    def copy_to_host(self, tensor: Tensor) -> Tensor:
        """A copy on the CPU. From CUDA it is only started, into page-locked memory; from other devices it is finished.

        The tensor must be kept until an event that is recorded after this call has been reached.
        """
        if tensor.device.type != "cuda":
            return tensor.to("cpu")
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

    def record(self, device: torch.device) -> Event | None:
        """An event after all copies from this device so far; None if copies are finished when they return."""
        if device.type != "cuda":
            return None
        event: Event = torch.cuda.current_stream(device).record_event()
        return event

    def free_bytes(self, device: torch.device) -> int | None:
        """Free memory of the device, in bytes; None for the CPU, and if torch doesn't know."""
        query = _call(device, "mem_get_info")
        return None if query is None else int(query(device)[0])

    def total_bytes(self, device: torch.device) -> int | None:
        """All memory of the device, in bytes; None for the CPU, and if torch doesn't know."""
        query = _call(device, "get_device_properties")
        total = None if query is None else getattr(query(device), "total_memory", None)
        return None if total is None else int(total)

    def empty_cache(self, device: torch.device) -> None:
        """Free the memory that torch keeps for later tensors, on all devices of this kind."""
        if (empty := _call(device, "empty_cache")) is not None:
            empty()

    def has_bf16(self, device: torch.device) -> bool:
        """True if the device has bfloat16 arithmetic; False if it emulates it, or torch doesn't know."""
        if device.type == "cpu":
            return True
        if device.type == "cuda":
            with torch.cuda.device(device):
                return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        supported = _call(device, "is_bf16_supported")
        return supported is not None and bool(supported())


#: The devices of this machine.
DEVICES = Devices()


def local_device(kind: str, devices: Devices = DEVICES) -> torch.device:
    """The device of this process, by the local rank that torchrun or Slurm sets; without an index if there is none.

    A process without a local rank uses the first device.
    """
    count = devices.count(kind)
    number = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    return torch.device(kind, int(number) % count) if count else torch.device(kind)


def _call(device: torch.device, name: str) -> Any | None:
    """A function of ``torch.cuda``, ``torch.xpu`` …, if that module has it.

    ``torch.accelerator`` has most of them too, but some only in newer versions of torch.
    """
    return getattr(torch.get_device_module(device), name, None)
