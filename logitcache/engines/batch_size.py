"""The number of tokens of a forward pass that fits on the device, for users who don't set it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from logitcache.utils.device import DEVICES, Devices

#: A CPU is not faster with more, and a small batch is padded less.
CPU_TOKENS = 2_048
_LEAST, _MOST = 1_024, 65_536
# Memory kept free for the allocator's gaps, and for the head's chunk of logits with its top-k.
_SPARE_SHARE, _SPARE_BYTES = 0.15, 2 << 30


def automatic_batch_tokens(
    weight_bytes: Mapping[torch.device, int], model_config: Any, value_bytes: int, devices: Devices = DEVICES
) -> int:
    """Tokens of one batch. A batch runs on every device that holds weights, so the one with the least room decides.

    Args:
        weight_bytes: what each device will hold; of its memory, what is free now counts.
        model_config: the teacher's text configuration.
        value_bytes: of one number in the teacher's arithmetic.
        devices: the machine's.
    """
    free_bytes = {device: devices.free_bytes(device) for device in weight_bytes}
    rooms = [free - weight_bytes[device] for device, free in free_bytes.items() if free is not None]
    return tokens_that_fit(min(rooms), model_config, value_bytes) if rooms else CPU_TOKENS


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
