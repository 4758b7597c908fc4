"""What benchmarks ask of a device: to finish its work before the clock is read, and its peak of memory.

    python -m benchmarks._device

exits with 1 and one line if there is no GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from benchmarks._memory import peak_mib, reset_peak


def wait() -> None:
    """Wait until every GPU that this process uses has done all its work. On a CPU there is nothing to wait for."""
    if torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)


def peak_bytes(action: Callable[[], object]) -> int:
    """Most memory in use while something runs, with what was in use before: of all GPUs, else of the process."""
    wait()
    if not torch.cuda.is_initialized():
        reset_peak()
        action()
        return round(peak_mib() * 2**20)
    devices = range(torch.cuda.device_count())
    for device in devices:
        torch.cuda.reset_peak_memory_stats(device)
    action()
    wait()
    return sum(torch.cuda.max_memory_allocated(device) for device in devices)


def why_no_gpu() -> str:
    """One line on why no CUDA device can be used; empty if one can."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"no GPU: torch {torch.__version__} was built without CUDA; see docs/how-to/gpu.md for one that has it"
    return f"no GPU: torch {torch.__version__} sees no CUDA device; `nvidia-smi` shows whether the driver does"


if __name__ == "__main__":
    sys.exit(why_no_gpu() or None)
