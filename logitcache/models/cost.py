"""Memory and operations of a language model by formula. ``docs/explanation/memory-and-time.md`` explains each of them.

Letters: D hidden width, I feed-forward width, Q width of all queries, K of all keys, H heads, V vocabulary, T tokens of
a row, n bytes of a number that is computed with.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from logitcache.models.hardware import Hardware
from logitcache.models.sizes import Sizes

#: How a forward pass computes: all in float32; float32 weights under autocast; or half precision throughout.
Arithmetic = Literal["fp32", "mixed", "half"]
#: Kept free: the allocator's gaps, the driver, and what the formulas leave out.
SPARE_SHARE = 0.1
_GIB = 1 << 30


@dataclass(frozen=True)
class Estimate:
    """What one device must hold, and how much there is to compute.

    Attributes:
        memory: bytes on one device, by part.
        total: their sum.
        parameters, trained: the model's.
        device_memory: bytes that one device has; None if it isn't known.
        devices: how many share the work.
        fits: whether ``total`` and a tenth of it fit; None without ``device_memory``.
        advice: what to change if it doesn't, the first that is enough.
        operations: floating-point operations of a token (dump) or of an optimizer step (train), over all devices.
        rate: tokens or steps a second, if each device did nothing but compute at the rate that was named; None
            without one.
    """

    memory: dict[str, int]
    total: int
    parameters: int
    trained: int
    device_memory: int | None
    devices: int
    fits: bool | None
    operations: float
    rate: float | None
    advice: tuple[str, ...] = field(default=())

    def advised(self, *advice: str) -> Estimate:
        return replace(self, advice=tuple(filter(None, advice)))


def estimate_of(memory: dict[str, int], sizes: Sizes, hardware: Hardware, operations: float) -> Estimate:
    """The parts together, compared with the devices."""
    total = sum(memory.values())
    rate = None if hardware.tflops is None else hardware.devices * hardware.tflops * 1e12 / operations
    return Estimate(
        memory=memory,
        total=total,
        parameters=sizes.parameters,
        trained=sizes.trained,
        device_memory=hardware.memory,
        devices=hardware.devices,
        fits=None if hardware.memory is None else total * (1 + SPARE_SHARE) <= hardware.memory,
        operations=operations,
        rate=rate,
    )


def forward_bytes(width: int, inner: int, value_bytes: int) -> int:
    """Activations of one token in a pass without gradient: one layer's, as no more than one lives at a time.

    About eight vectors of D (the residual stream, its norm, queries, keys, values, the attention's output and two
    copies) and three of I.
    """
    return value_bytes * (8 * width + 3 * inner)


def layer_bytes(sizes: Sizes, arithmetic: Arithmetic, row_tokens: int, *, masked: bool, eager: bool) -> int:
    """What one layer keeps of one token for the backward pass.

    Args:
        sizes: of the model.
        arithmetic: see :data:`Arithmetic`.
        row_tokens: T.
        masked: attention gets a mask, as packed rows do; keys and values are then repeated for each head.
        eager: attention is written out, and keeps its weights.
    """
    value_bytes = 4 if arithmetic == "fp32" else 2
    # A norm keeps what it reads, in float32, and what it has normalised. The linear layers after the two main norms
    # keep what those give; under autocast each has a copy of its own, three of queries, keys and values, two of the
    # feed-forward.
    norms = (6 if arithmetic == "half" else 8) * sizes.norm_width
    norms += {"fp32": 8, "mixed": 10, "half": 4}[arithmetic] * sizes.width
    keys = sizes.attention_width if masked or eager else sizes.key_width
    attention = value_bytes * (2 * sizes.attention_width + 2 * keys) + 4 * sizes.heads
    if eager:
        attention += sizes.heads * row_tokens * (4 if arithmetic == "fp32" else 4 + value_bytes)
    elif masked:
        attention += value_bytes * row_tokens
    return norms + attention + 4 * value_bytes * sizes.inner


def activation_bytes(
    sizes: Sizes,
    arithmetic: Arithmetic,
    row_tokens: int,
    *,
    masked: bool = False,
    eager: bool = False,
    checkpointing: bool = False,
) -> int:
    """What the body keeps of one token until the backward pass, embedding and last norm included."""
    layer = layer_bytes(sizes, arithmetic, row_tokens, masked=masked, eager=eager)
    ends = (6 if arithmetic == "half" else 8) * sizes.width + 8
    if checkpointing:
        return sizes.layers * (2 if arithmetic == "half" else 4) * sizes.width + layer + ends
    return sizes.layers * layer + ends


def working_bytes(sizes: Sizes, arithmetic: Arithmetic) -> int:
    """Gradients of one layer's activations, which live for a moment in the backward pass, for one token."""
    return (4 if arithmetic == "fp32" else 2) * (3 * sizes.inner + 4 * sizes.width)


def forward_operations(sizes: Sizes, context: float) -> float:
    """Operations of one token through the body: two for each number it is multiplied with, and attention.

    A token attends to half of ``context`` tokens on average, once for the scores and once for the values.
    """
    return 2.0 * sizes.active + 2.0 * context * sizes.attention_width * sizes.layers


def training_operations(sizes: Sizes, context: float, *, dense: bool, checkpointing: bool = False) -> float:
    """Operations of one token, forward and backward, output layer and loss included.

    Backward takes another forward's for the inputs' gradients and one for those of the weights that are trained, so 6
    a weight together, and 8 if checkpointing computes the forward pass again.
    """
    forward = forward_operations(sizes, context)
    attention = forward - 2.0 * sizes.active
    backward = 2.0 * sizes.active + 2.0 * sizes.active_trained + 2.0 * attention
    head = (6.0 if dense else 2.0) * sizes.vocab_size * sizes.width
    return forward + backward + head + (forward if checkpointing else 0.0)


def gib(amount: int) -> str:
    """Bytes in words."""
    return f"{amount / _GIB:,.1f} GiB" if amount >= _GIB / 10 else f"{amount / (1 << 20):,.1f} MiB"
