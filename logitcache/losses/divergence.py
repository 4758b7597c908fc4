"""Kullback-Leibler divergence in log space, safe at zero probability."""

from __future__ import annotations

import torch
from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) in nats over the last dimension, from normalised log-probs. An event with p = 0 adds 0.

    ``log_q`` must be finite wherever p > 0. The result is never negative: see ``not_negative``. NaN stays NaN: a loss
    of 0 would hide that a model has diverged.
    """
    possible = log_p != -torch.inf
    # Both factors are made finite before the product: 0 * inf would be NaN, in the backward pass too.
    log_p = torch.where(possible, log_p, 0)
    log_q = torch.where(possible, log_q, 0)
    return not_negative((torch.where(possible, log_p.exp(), 0) * (log_p - log_q)).sum(-1))


def not_negative(value: Tensor) -> Tensor:
    """Set values that rounding made negative to zero, and keep the gradient."""
    return torch.where(value < 0, value - value.detach(), value)


def log_probs(values: Tensor) -> Tensor:
    """log_softmax over the last dimension; a row that is -inf everywhere is kept, not made NaN."""
    impossible = values.amax(-1, keepdim=True) == -torch.inf
    return values.log_softmax(-1).masked_fill(impossible, -torch.inf)
