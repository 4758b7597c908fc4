"""A causal language model as the fused head sees it: a body that gives hidden states, and a linear output layer.

Shape legend: B sequences, L tokens of each, N positions that have targets, D hidden width, V words.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from logitcache.errors import ModelError
from logitcache.losses.base import Loss
from logitcache.losses.fused import LinearHead
from logitcache.losses.head import HeadStats, dense_loss, head_loss
from logitcache.models import Head, find_head, inside
from logitcache.targets.topk import TopK


class LossModel:
    """A student with its loss: fused if its output layer is linear, dense otherwise. Made by ``loss_model``.

    The weight is read at each call, so the model may be moved, resized or wrapped between calls.

    Attributes:
        model: the student as it was given, with or without an adapter.
        why_dense: empty, or one line that says why the fused head can't be used.
    """

    def __init__(self, model: Any, head: Head | None, why_dense: str) -> None:
        self.model = model
        self.why_dense = why_dense
        self._head = head

    @property
    def fused(self) -> bool:
        """True if the logits of all positions never exist."""
        return not self.why_dense

    def linear_head(self) -> LinearHead:
        """The output layer as it is now.

        Raises:
            ModelError: it isn't linear, so there is none.
        """
        if self._head is None or self.why_dense:
            raise ModelError(self.why_dense)
        return LinearHead(self._head.weight, self._head.bias, self._head.softcap, self._head.logit_scale)

    def hidden_states(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """Last hidden states ``[B, L, D]``, what the output layer reads.

        Args:
            input_ids: ``[B, L]``.
            inputs: ``attention_mask``, ``position_ids`` and whatever else the model's forward takes.

        Raises:
            ModelError: the model couldn't be taken apart into body and head.
        """
        if self._head is None or self._head.whole:
            raise ModelError(self.why_dense)
        return self._head.hidden(input_ids, **inputs)

    def loss(
        self,
        loss: Loss,
        input_ids: Tensor,
        target_index: Tensor,
        targets: TopK,
        labels: Tensor | None = None,
        *,
        reduction: Literal["mean", "sum"] = "mean",
        **inputs: Any,
    ) -> tuple[Tensor, HeadStats]:
        """The loss of one batch, a scalar, and what it saw.

        Args:
            loss: as ``get`` or ``parse`` return it.
            input_ids: ``[B, L]``.
            target_index: ``[N]`` int64, row · L + column of each position that has targets.
            targets: N rows, in the same order.
            labels: ``[N]``, the tokens that follow; -100 leaves a position out.
            reduction: mean or sum over the positions that aren't left out.
            inputs: ``attention_mask``, ``position_ids``, ...
        """
        if self._head is None:
            logits_BLV = self.model(input_ids=input_ids, use_cache=False, **inputs).logits
            return dense_loss(loss, logits_BLV.flatten(0, 1)[target_index], targets, labels=labels, reduction=reduction)
        hidden_ND = self._head.hidden_at(input_ids, target_index, **inputs)
        if self.why_dense:
            return dense_loss(loss, self._head.logits(hidden_ND), targets, labels=labels, reduction=reduction)
        return head_loss(loss, hidden_ND, self.linear_head(), targets, labels=labels, reduction=reduction)


def loss_model(model: Any) -> LossModel:
    """Read a transformers causal language model (or a PEFT model around one) and choose: fused or dense.

    What is read, logit scale and soft cap included, is compared with the model's own logits on a few tokens before
    it is used. A model that isn't understood takes the dense way, which costs memory and time; ``why_dense`` says why.

    Raises:
        ModelError: the model gives no logits for text.
    """
    inner, refusal = inside(model)
    if refusal:
        return LossModel(model, None, f"{refusal}; the loss reads all logits instead")
    head = find_head(inner)
    return LossModel(model, head, head.why_dense)
