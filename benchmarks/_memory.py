"""Resident memory of this process, in MiB. Linux only."""

from __future__ import annotations

from pathlib import Path


def resident_mib() -> float:
    """Resident memory now."""
    return _status_mib("VmRSS")


def peak_mib() -> float:
    """Largest resident memory since the last reset. Not ru_maxrss: a child begins with its parent's."""
    return _status_mib("VmHWM")


def reset_peak() -> None:
    """Count the peak from here."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _status_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024
