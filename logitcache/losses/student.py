"""A student and its distillation loss as one module: a batch goes in, the loss comes out.

Shape legend: B rows, T tokens of a row, N positions with targets, D hidden width, V ids of the student's vocabulary,
W ids that student and teacher share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from logitcache.losses.base import Loss
from logitcache.losses.head import HeadStats, dense_loss, head_loss
from logitcache.losses.registry import resolve
from logitcache.models import Head, find_head, without_adapter
from logitcache.models.probe import vocabulary
from logitcache.stream import Batch
from logitcache.targets.topk import TopK


class StudentWithLoss(nn.Module):
    """A language model with its loss inside, so that a wrapper around both (DDP, FSDP) synchronises the gradients.

    The loss is fused with the output layer if that is linear. Otherwise all logits are made, which takes more memory
    and time. What is read of the model is compared with its own logits on a few tokens first. The weights are read at
    each call, so the model may be moved or resized between calls. Parameters that text does not reach, such as a
    vision tower, are frozen: a data-parallel wrapper would wait for their gradients, and weight decay shrinks them.

    Attributes:
        student: a transformers causal language model, or a PEFT model around one, as it was given.
        loss: from ``logitcache.losses``; may be set to another one.
        head: the model taken apart.
        vocab_limit: W, where ids below it are known to both models; None if the student knows all that targets name.
        world_size: data-parallel ranks, over which gradients are averaged.
        why_dense: empty, or one line that says why the loss isn't fused.

    Raises:
        ModelError: the model gives no logits for text.
    """

    accepts_loss_kwargs = False  # transformers' Trainer must not scale the loss again

    def __init__(self, student: Any, loss: Loss, vocab_limit: int | None = None, world_size: int = 1) -> None:
        super().__init__()
        self.student, self.loss, self.vocab_limit, self.world_size = student, loss, vocab_limit, world_size
        language_model, refusal = without_adapter(student)
        head = Head(student, nn.Identity(), vocabulary(student), whole=True) if refusal else find_head(language_model)
        # Held in a tuple, so that body and output layer aren't registered as submodules a second time.
        self._parts: tuple[Head] = (head,)
        self.why_dense = f"{refusal}; the loss reads all logits instead" if refusal else head.why_dense
        self._flattens = "flash" in str(getattr(language_model.config, "_attn_implementation", ""))
        reached = {id(value) for part in (head.body, head.output) for value in part.parameters()}
        for value in student.parameters():
            if id(value) not in reached:
                value.requires_grad_(False)

    @property
    def head(self) -> Head:
        return self._parts[0]

    @property
    def fused(self) -> bool:
        """True if the logits of all positions never exist."""
        return not self.why_dense

    @property
    def config(self) -> Any:
        """The student's; transformers' Trainer asks for it."""
        return self.student.config

    @property
    def _no_split_modules(self) -> Any:
        """FSDP asks this of the model to know which blocks to shard."""
        return getattr(self.student, "_no_split_modules", None)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        self.student.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        self.student.gradient_checkpointing_enable(**kwargs)

    def forward(
        self, batch: Batch, *, read: Callable[[StudentWithLoss, Batch, Tensor], Any] | None = None, **inputs: Any
    ) -> Any:
        """The loss of one micro-batch, a scalar, and what it saw.

        It is the sum over the positions that count, divided by the number of positions of the whole global batch, and
        multiplied by the number of ranks, because data-parallel wrappers average gradients over them. Summed over
        micro-batches and averaged over ranks it is the mean over the global batch, however that was divided. A batch
        that doesn't say how many those are (``batch_targets`` 0) gives the mean over its own positions.

        Args:
            batch: on the student's device. Positions labelled -100 are left out.
            read: called with this module, the batch and the hidden states ``[N, D]`` at the target positions. What it
                returns is returned in place of the loss. (A sharded student has all its weights only in ``forward``.)
            inputs: further inputs of the model, such as ``attention_mask``.

        Returns:
            ``(loss, HeadStats)``, or what ``read`` returns.

        Raises:
            TargetsError: the targets don't fit the student, or lack something that the loss needs.
            ModelError: the model refuses such rows, for example their length.
        """
        hidden_ND = self.hidden_at(batch.input_ids, batch.position_ids, batch.target_index, **inputs)
        if read is not None:
            return read(self, batch, hidden_ND)
        targets = batch.targets if self.vocab_limit is None else batch.targets.limited(self.vocab_limit)
        total, stats = self._summed(hidden_ND, targets, batch.labels)
        return total * self.world_size / max(1, batch.batch_targets or stats.tokens), stats

    def hidden_at(self, input_ids: Tensor, position_ids: Tensor, target_index: Tensor, **inputs: Any) -> Tensor:
        """Last hidden states ``[N, D]`` at some positions. Arguments as in ``Batch``; ``inputs`` as in ``forward``."""
        if self._flattens and not inputs:  # flash attention finds documents by their positions, in a single row
            input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
        return self.head.hidden_at(input_ids, target_index, position_ids=position_ids, **inputs)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits ``[N, W]`` of the ids that both models know, or ``[N, V]`` without a limit."""
        return self.head.logits(hidden_ND)[:, : self.vocab_limit]

    def _summed(self, hidden_ND: Tensor, targets: TopK, labels_N: Tensor) -> tuple[Tensor, HeadStats]:
        """The loss, summed over the positions that count: fused where the head is linear, from all logits otherwise."""
        if self.why_dense:
            return dense_loss(self.loss, self.logits(hidden_ND), targets, labels=labels_N, reduction="sum")
        weight_VD, bias_V = self.head.weight, self.head.bias
        # A slice of everything would cost a copy of the gradient.
        if self.vocab_limit is not None and self.vocab_limit < len(weight_VD):
            weight_VD, bias_V = weight_VD[: self.vocab_limit], None if bias_V is None else bias_V[: self.vocab_limit]
        return head_loss(
            self.loss,
            hidden_ND,
            weight_VD.to(hidden_ND.dtype),
            targets,
            bias=None if bias_V is None else bias_V.to(hidden_ND.dtype),
            finish=replace(self.head.finish, kept_rows=None),
            labels=labels_N,
            reduction="sum",
        )


def loss_model(model: Any, loss: str | Loss = "bild", **params: Any) -> StudentWithLoss:
    """A model with a loss, by name or built already: see :class:`StudentWithLoss`.

    Args:
        model: a transformers causal language model, or a PEFT model around one.
        loss, params: as ``linear_loss`` takes them.

    Raises:
        ConfigError: no such loss or setting.
        ModelError: the model gives no logits for text.
    """
    return StudentWithLoss(model, resolve(loss, **params))
