"""The devices of a plan: those of this machine, or others that the user describes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from logitcache.errors import ConfigError
from logitcache.utils.device import DEVICES

_UNITS = {"GIB": 1 << 30, "GB": 10**9, "MIB": 1 << 20, "MB": 10**6, "TIB": 1 << 40, "TB": 10**12}
_MEMORY = re.compile(r"(?:(\d{1,7})\s*[xX]\s*)?(\d{1,9}(?:\.\d+)?)\s*([MGT]i?B)", re.IGNORECASE | re.ASCII)
_RATE = re.compile(r"(\d{1,9}(?:\.\d+)?)\s*T(?:FLOPS|FLOP/s)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Hardware:
    """Devices of one kind.

    Attributes:
        memory: bytes of one device; None if there is no limit to compare with.
        devices: how many there are.
        tflops: 10^12 operations a second that one device reaches in matrix products; None if it isn't known.
        elsewhere: True if they aren't those of this machine; then no model is loaded.
    """

    memory: int | None = None
    devices: int = 1
    tflops: float | None = None
    elsewhere: bool = False


def parse_hardware(text: str) -> Hardware:
    """Parse devices of the command line: ``80GiB``, ``8x80GiB``, ``8x80GiB,400TFLOPS``.

    Raises:
        ConfigError: the text isn't of this form, names something twice, or holds a zero.
    """
    memory: int | None = None
    devices, tflops = 1, None
    for part in filter(None, (part.strip() for part in text.split(","))):
        if memory is None and (found := _MEMORY.fullmatch(part)):
            memory, devices = round(float(found[2]) * _UNITS[found[3].upper()]), int(found[1] or 1)
        elif tflops is None and (found := _RATE.fullmatch(part)):
            tflops = float(found[1])
        else:
            raise ConfigError(
                f"hardware {text[:80]!r} can't be read at {part[:40]!r}: write 80GiB, 8x80GiB or 8x80GiB,400TFLOPS"
            )
    if not memory or not devices or tflops == 0:
        raise ConfigError(f"hardware {text!r} names no memory, or a zero: write 80GiB, 8x80GiB or 8x80GiB,400TFLOPS")
    return Hardware(memory, devices, tflops, elsewhere=True)


def hardware_at_hand(device: torch.device, devices: int = 1) -> Hardware:
    """The devices of this machine: with the memory of a GPU that is free now, and without a limit for a CPU."""
    return Hardware(DEVICES.free_bytes(device), devices)
