"""How many tokens a forward pass may hold, where the user doesn't say: what the device has room for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

#: A CPU gains nothing from more, and a shard's last batch loses less.
CPU_TOKENS = 2_048
_LEAST, _MOST = 1_024, 65_536
# Room left for the allocator's gaps, and for the head's chunk of logits with its top-k.
_SPARE_SHARE, _SPARE_BYTES = 0.15, 2 << 30


def automatic_batch_tokens(
    device: torch.device, model_config: Any, value_bytes: int, weight_files: Iterable[Path], processes: int = 1
) -> int:
    """Tokens of one batch on this device.

    Args:
        device: where the teacher will run; of a GPU, the memory that is free now counts.
        model_config: the teacher's text configuration.
        value_bytes: of one number in the teacher's arithmetic.
        weight_files: the teacher's; their size stands for that of its weights.
        processes: how many share the weights.
    """
    if device.type != "cuda":
        return CPU_TOKENS
    free_bytes, _ = torch.cuda.mem_get_info(device)
    weight_bytes = sum(path.stat().st_size for path in weight_files) // processes
    return tokens_that_fit(free_bytes - weight_bytes, model_config, value_bytes)


def tokens_that_fit(room_bytes: int, model_config: Any, value_bytes: int) -> int:
    """The largest power of two, from 1,024 to 65,536, whose activations leave some of ``room_bytes`` spare.

    Without gradient no more than one layer's activations live at a time: about eight vectors of the hidden width (the
    residual stream, its norm, queries, keys, values, the attention's output and two copies) and three of the
    feed-forward width. What doesn't fit after all is halved when memory runs out.
    """
    width = int(model_config.hidden_size)
    inner = int(getattr(model_config, "intermediate_size", None) or 4 * width)
    token_bytes = value_bytes * (8 * width + 3 * inner)
    fitting = int((room_bytes * (1 - _SPARE_SHARE) - _SPARE_BYTES) // token_bytes)
    return min(_MOST, max(_LEAST, 1 << max(fitting, 1).bit_length() - 1))
