"""The devices that a plan is for: those at hand, or others that somebody describes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from logitcache.errors import ConfigError
from logitcache.utils.device import DEVICES

_UNITS = {"GIB": 1 << 30, "GB": 10**9, "MIB": 1 << 20, "MB": 10**6, "TIB": 1 << 40, "TB": 10**12}
_MEMORY = re.compile(r"(?:(\d+)\s*[xX]\s*)?(\d+(?:\.\d+)?)\s*([KMGT]i?B)", re.IGNORECASE)
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*T(?:FLOPS|FLOP/s)", re.IGNORECASE)


@dataclass(frozen=True)
class Hardware:
    """Devices of one kind.

    Attributes:
        memory: bytes of one device; None if there is no limit to compare with.
        devices: how many there are.
        tflops: 10^12 operations a second that one device reaches in matrix products; None if it isn't known.
        elsewhere: they aren't those of this machine, so nothing is loaded here.
    """

    memory: int | None = None
    devices: int = 1
    tflops: float | None = None
    elsewhere: bool = False


def parse_hardware(text: str) -> Hardware:
    """Devices as a command line names them: ``80GiB``, ``8x80GiB``, ``8x80GiB,400TFLOPS``.

    Raises:
        ConfigError: it can't be read.
    """
    memory, devices, tflops = None, 1, None
    for part in filter(None, (part.strip() for part in text.split(","))):
        if (found := _MEMORY.fullmatch(part)) and found[3].upper() in _UNITS:
            memory, devices = round(float(found[2]) * _UNITS[found[3].upper()]), int(found[1] or 1)
        elif found := _RATE.fullmatch(part):
            tflops = float(found[1])
        else:
            raise ConfigError(f"hardware {text!r} can't be read at {part!r}: write 80GiB, 8x80GiB or 8x80GiB,400TFLOPS")
    if not memory or not devices or tflops == 0:
        raise ConfigError(f"hardware {text!r} names no memory, or a zero: write 80GiB, 8x80GiB or 8x80GiB,400TFLOPS")
    return Hardware(memory, devices, tflops, elsewhere=True)


def hardware_at_hand(device: torch.device, devices: int = 1) -> Hardware:
    """This machine's: of a GPU the memory that is free now, and no limit for a CPU."""
    return Hardware(DEVICES.free_bytes(device), devices)
