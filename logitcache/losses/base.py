"""The base of all losses: a frozen dataclass of settings that computes one number for each token.

Shape legend: N positions, V ids in the student's vocabulary, K entries in the targets, C ids that a loss reads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from logitcache.errors import ConfigError, TargetsError
from logitcache.targets.topk import TopK

IGNORED_LABEL = -100


class Loss(ABC):
    """One distillation loss with its settings; call it for per-token values.

    ``loss(student_logits [N, V], targets, labels=None) -> [N]``, in nats (times a loss's own factors), float32, or
    float64 for float64 logits. A label of -100 means *ignored*; each loss says what it does with such a position.
    Nothing is averaged here: ``linear_loss`` averages over the positions that aren't ignored.
    """

    name: ClassVar[str]

    @property
    def needs_labels(self) -> bool:
        """True if the loss can't be computed without labels."""
        return False

    @property
    def reads_labels(self) -> bool:
        """True if the loss uses labels when they are given. Each must then be an id that the student has."""
        return self.needs_labels

    def __call__(self, student_logits: Tensor, targets: TopK, labels: Tensor | None = None) -> Tensor:
        """Per-token loss ``[N]``.

        Args:
            student_logits: ``[N, V]``, any floating dtype, before any softmax.
            targets: the teacher's distributions, N rows.
            labels: ``[N]`` int64, the next token of the text, or None if the loss needs none.

        Raises:
            TargetsError: shapes don't fit, or the targets lack a statistic that the loss needs.
        """
        check_shapes(student_logits, targets, labels)
        check_labels(self, labels, student_logits.shape[1])
        self.check_inputs(targets, labels)
        wide = torch.promote_types(student_logits.dtype, torch.float32)
        return self.per_token(student_logits.to(wide), targets.in_dtype(wide), labels)

    def check_inputs(self, targets: TopK, labels: Tensor | None) -> None:
        """Check, before any arithmetic, that this loss can use the targets and labels; a loss may also warn here.

        Raises:
            TargetsError: they lack something that the loss needs.
        """
        if self.needs_labels and labels is None:
            raise TargetsError(f"{self.name} needs labels: pass labels [N], the tokens that follow")

    @abstractmethod
    def per_token(self, logits_NV: Tensor, targets: TopK, labels_N: Tensor | None) -> Tensor:
        """The loss itself, on checked inputs in float32 or float64."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The few ids of each position whose student logits a sparse loss reads, with the teacher's values for them.

    Attributes:
        ids_NC: int64; the gradient of the loss touches no other id.
        teacher_NC: teacher log-probs (up to a constant a row) at those ids, finite.
        usable_NC: bool, False where the loss leaves out the entry.
        led: how many of the C are the teacher-led half of a two-way loss; they come first.
        coverage_N: share of the student's top k that the targets hold, or None if the loss doesn't use the top k.
    """

    ids_NC: Tensor
    teacher_NC: Tensor
    usable_NC: Tensor
    led: int = 0
    coverage_N: Tensor | None = None


class SparseLoss(Loss):
    """A loss that reads only a few ids of each position, so that the fused head computes it fast."""

    @abstractmethod
    def select(self, logits_NV: Tensor, targets: TopK) -> Selection:
        """Choose the ids, without gradient. ``logits_NV`` is finite, float32 or float64."""

    @abstractmethod
    def at(self, student_NC: Tensor, selection: Selection) -> Tensor:
        """The loss ``[N]`` from the student's logits at the selected ids."""

    def per_token(self, logits_NV: Tensor, targets: TopK, labels_N: Tensor | None) -> Tensor:
        selection = self.select(logits_NV.detach(), targets)
        return self.at(logits_NV.gather(1, selection.ids_NC), selection)


def check_shapes(logits: Tensor, targets: TopK, labels: Tensor | None) -> None:
    """Check that logits are ``[N, V]``, and that targets and labels have N rows that fit V.

    Raises:
        TargetsError: they don't fit.
    """
    if logits.dim() != 2 or not logits.dtype.is_floating_point:
        raise TargetsError(f"student logits are {logits.dtype} {tuple(logits.shape)}; they must be floating [N, V]")
    check_rows(logits.shape[0], logits.shape[1], targets, labels)


def check_rows(rows: int, vocab_size: int, targets: TopK, labels: Tensor | None) -> None:
    """Check targets and labels for a student whose logits are not computed yet (the fused head).

    Raises:
        TargetsError: they don't fit.
    """
    if len(targets) != rows:
        raise TargetsError(f"the student has {rows} positions, the targets {len(targets)}; each needs its own row")
    if labels is not None and (tuple(labels.shape) != (rows,) or labels.dtype != torch.int64):
        raise TargetsError(f"labels {labels.dtype} {tuple(labels.shape)} must be torch.int64 [N] = [{rows}]")
    # A student may have fewer ids than the teacher if the teacher's last ones are padding, which no target lists.
    if vocab_size < targets.vocab_size and rows and int(targets.ids.max()) >= vocab_size:
        raise TargetsError(
            f"the targets name id {int(targets.ids.max())}, but the student has only {vocab_size} logits; "
            "check that both use the same tokenizer"
        )


def check_labels(
    loss: Loss, labels: Tensor | None, vocab_size: int, label_range: tuple[int, int] | None = None
) -> None:
    """Check that every label is -100 or an id below V, if the loss reads labels.

    With ``label_range``, the least and the greatest of them, a GPU's labels need not be looked at.

    Raises:
        TargetsError: one isn't.
    """
    # Compiled code can't look at values.
    if labels is None or not len(labels) or not loss.reads_labels or torch.compiler.is_compiling():
        return
    if label_range is not None and label_range[0] >= 0 and label_range[1] < vocab_size:
        return
    wrong_N = (labels != IGNORED_LABEL) & ((labels < 0) | (labels >= vocab_size))
    if bool(wrong_N.any()):
        raise TargetsError(
            f"label {int(labels[wrong_N][0])} is none of the student's {vocab_size} ids; -100 leaves a position out"
        )


def check_positive(loss: str, **values: float) -> None:
    """Check that each value is a finite number above zero.

    Raises:
        ConfigError: one isn't.
    """
    for field, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ConfigError(f"{loss}: {field} = {value!r} is not allowed; it must be a number above 0")


def check_not_negative(loss: str, **values: float) -> None:
    """Check that each value is a finite number, zero or above.

    Raises:
        ConfigError: one isn't.
    """
    for field, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise ConfigError(f"{loss}: {field} = {value!r} is not allowed; it must be a number, 0 or above")


def check_count(loss: str, least: int, **values: int) -> None:
    """Check that each value is a whole number of at least ``least``.

    Raises:
        ConfigError: one isn't.
    """
    for field, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{loss}: {field} = {value!r} is not allowed; it must be a whole number from {least}")
