"""Kullback-Leibler divergence in log space, safe at zero probability."""

from __future__ import annotations

import torch
from torch import Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) in nats over the last dimension; both normalised log-probs. An event of p = 0 counts 0.

    ``log_q`` must be finite wherever p > 0. Never negative: see ``not_negative``. NaN stays NaN: a model
    that has diverged must not look like one that has nothing left to learn.
    """
    possible = log_p != -torch.inf
    # Both factors are made finite before they meet: 0 * inf would be NaN forward, and again in the backward pass.
    log_p = torch.where(possible, log_p, 0)
    log_q = torch.where(possible, log_q, 0)
    return not_negative((torch.where(possible, log_p.exp(), 0) * (log_p - log_q)).sum(-1))


def not_negative(value: Tensor) -> Tensor:
    """Lift what rounding pushed below zero back to zero, and leave the gradient as it is."""
    return torch.where(value < 0, value - value.detach(), value)


def log_probs(values: Tensor) -> Tensor:
    """log_softmax over the last dimension; a row of nothing but -inf, in which no event is possible, stays as it is."""
    impossible = values.amax(-1, keepdim=True) == -torch.inf
    return values.log_softmax(-1).masked_fill(impossible, -torch.inf)
