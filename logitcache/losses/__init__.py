"""Distillation losses on ``TopK`` targets: by name, as weighted mixes, and fused with the model's output layer.

Each loss is one file. ``get`` and ``parse`` return functions of (student logits, targets, labels) that give one value
for each token. ``linear_loss`` takes hidden states and the head's weight instead, and never holds the logits of all
positions.
"""

from logitcache.losses import metrics
from logitcache.losses.base import (
    IGNORED_LABEL,
    Loss,
    SparseLoss,
    check_count,
    check_not_negative,
    check_positive,
)
from logitcache.losses.estimator import Estimator
from logitcache.losses.head import HeadStats, dense_loss, head_loss, linear_loss
from logitcache.losses.mix import Mix
from logitcache.losses.registry import describe, get, names, parameters, parse, register
from logitcache.losses.student import Sealed, StudentWithLoss, loss_model

__all__ = [
    "IGNORED_LABEL",
    "Estimator",
    "HeadStats",
    "Loss",
    "Mix",
    "Sealed",
    "SparseLoss",
    "StudentWithLoss",
    "check_count",
    "check_not_negative",
    "check_positive",
    "dense_loss",
    "describe",
    "get",
    "head_loss",
    "linear_loss",
    "loss_model",
    "metrics",
    "names",
    "parameters",
    "parse",
    "register",
]
