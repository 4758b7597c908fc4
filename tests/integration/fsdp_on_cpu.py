"""FSDP in CPU processes. accelerate knows it for accelerators only, and runs DDP on the CPU without a word."""

from __future__ import annotations

from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def allow_fsdp_on_cpu() -> None:
    """Let accelerate take CPU processes for GPU processes where FSDP is asked for; gloo and the CPU stay in use."""
    init = AcceleratorState.__init__

    def accept(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("fsdp_plugin") is not None:
            # Shared by all instances; it was set when the arguments of training were made.
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        init(self, *args, **kwargs)

    AcceleratorState.__init__ = accept
