"""A student and its distillation loss as one module, which computes the loss of a batch.

Shape legend: B rows, T tokens of a row, N positions with targets, D hidden width, V ids of the student's vocabulary,
W ids that student and teacher share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from logitcache.errors import TargetsError
from logitcache.losses.base import Loss
from logitcache.losses.head import HeadStats, dense_loss, head_loss
from logitcache.losses.registry import resolve
from logitcache.models import Head, find_head, without_adapter
from logitcache.models.documents import BY_DOCUMENT
from logitcache.models.probe import vocabulary
from logitcache.stream import Batch
from logitcache.targets.topk import TopK

#: Names that transformers' attention takes for where documents begin and how long the longest is.
_DOCUMENTS = {"cu_seq_lens_k", "cu_seq_lens_q", "max_length_k", "max_length_q"}


class Sealed:
    """A batch that wrappers pass on as it is.

    FSDP under mixed precision looks into lists, mappings and dataclasses for floating-point tensors and casts them,
    the teacher's log-probs too. It doesn't look in here.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


class StudentWithLoss(nn.Module):
    """A language model with its loss, so that a wrapper around both (DDP, FSDP) synchronises the gradients.

    The loss is fused with the output layer if that is linear. Otherwise all logits are computed, which takes more
    memory and time. When the module is made, the model's body and head are compared with its own logits on a few
    tokens. The weights are read at each call, so the model may be moved or resized between calls. Parameters that text
    doesn't use, such as a vision tower, are frozen: a data-parallel wrapper would wait for their gradients, and weight
    decay would shrink them.

    Attributes:
        student: a transformers causal language model, or a PEFT model around one, as it was given.
        loss: from ``logitcache.losses``; may be set to another one.
        head: the model's body and output layer.
        vocab_limit: W: both models have the ids below it. None if the student has every id of the targets.
        world_size: number of data-parallel ranks; gradients are averaged over them.
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
        # In a tuple, so that body and output layer aren't registered as submodules a second time.
        self._parts: tuple[Head] = (head,)
        self.why_dense = f"{refusal}; the loss reads all logits instead" if refusal else head.why_dense
        self._language_model = (language_model,)
        reached = {id(value) for part in (head.body, head.output) for value in part.parameters()}
        for value in student.parameters():
            if id(value) not in reached:
                value.requires_grad_(False)

    @property
    def head(self) -> Head:
        return self._parts[0]

    @property
    def fused(self) -> bool:
        """True if the logits of all positions are never in memory."""
        return not self.why_dense

    @property
    def config(self) -> Any:
        """The student's configuration, which transformers' Trainer reads."""
        return self.student.config

    @property
    def _no_split_modules(self) -> Any:
        """The blocks that FSDP shards."""
        return getattr(self.student, "_no_split_modules", None)

    def tie_weights(self) -> None:
        """Tie what the student ties; FSDP asks for it after it has put new weights in place of the old ones."""
        if hasattr(self.student, "tie_weights"):
            self.student.tie_weights()

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        self.student.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        self.student.gradient_checkpointing_enable(**kwargs)

    def forward(
        self,
        batch: Batch | Sealed,
        *,
        read: Callable[[StudentWithLoss, Batch, Tensor], Any] | None = None,
        **inputs: Any,
    ) -> Any:
        """The loss of one micro-batch, a scalar, and numbers for the log.

        It is the sum over the positions that aren't left out, divided by the number of positions of the global batch,
        and multiplied by the number of ranks, because data-parallel wrappers average gradients over ranks. Summed over
        micro-batches and averaged over ranks, it is the mean over the global batch, for any number of ranks and
        micro-batches. A batch without that number (``batch_targets`` 0) gives the mean over its own positions.

        Args:
            batch: on the student's device; sealed, if a wrapper would cast it. Positions labelled -100 are left out.
            read: called with this module, the batch and the hidden states ``[N, D]`` at the target positions. Its
                result is returned instead of the loss. (A sharded student has all its weights only in ``forward``.)
            inputs: further inputs of the model, such as ``attention_mask``.

        Returns:
            ``(loss, HeadStats)``, or what ``read`` returns.

        Raises:
            TargetsError: the targets don't fit the student, or lack something that the loss needs.
            ModelError: the model refuses the rows, for example because of their length.
        """
        batch = batch.batch if isinstance(batch, Sealed) else batch
        _check_not_cast(batch)
        extra = inputs or self._documents(batch)
        hidden_ND = self.hidden_at(batch.input_ids, batch.position_ids, batch.target_index, **extra)
        if read is not None:
            return read(self, batch, hidden_ND)
        targets = batch.targets if self.vocab_limit is None else batch.targets.limited(self.vocab_limit)
        total, stats = self._summed(hidden_ND, targets, batch)
        return total * self.world_size / max(1, batch.batch_targets or stats.tokens), stats

    def hidden_at(self, input_ids: Tensor, position_ids: Tensor, target_index: Tensor, **inputs: Any) -> Tensor:
        """Last hidden states ``[N, D]`` at some positions. Arguments as in ``Batch``; ``inputs`` as in ``forward``."""
        if self._flattens and inputs.keys() <= _DOCUMENTS:  # flash attention separates documents in one row only
            input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
        return self.head.hidden_at(input_ids, target_index, position_ids=position_ids, **inputs)

    @property
    def _attention(self) -> str:
        """transformers' name of the student's attention, which may be set at any time."""
        return str(getattr(self._language_model[0].config, "_attn_implementation", ""))

    @property
    def _flattens(self) -> bool:
        return "flash" in self._attention

    def _documents(self, batch: Batch) -> dict[str, Any]:
        """Where documents begin, for attention that takes it: else each layer would look, and wait for the GPU."""
        head, starts_D1 = self.head, batch.document_starts
        if starts_D1 is None or head.whole or head.alone or not (self._flattens or self._attention == BY_DOCUMENT):
            return {}
        if all(each.kind is not each.VAR_KEYWORD for each in signature(head.body.forward).parameters.values()):
            return {}
        return dict(zip(sorted(_DOCUMENTS), (starts_D1, starts_D1, *[batch.longest_document] * 2), strict=True))

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits ``[N, W]`` of the ids that both models have, or ``[N, V]`` without a limit."""
        return self.head.logits(hidden_ND)[:, : self.vocab_limit]

    def _summed(self, hidden_ND: Tensor, targets: TopK, batch: Batch) -> tuple[Tensor, HeadStats]:
        """The loss, summed over the positions that aren't left out: fused if the head is linear."""
        labels: dict[str, Any] = {"labels": batch.labels, "label_range": batch.label_range}
        if self.why_dense:
            return dense_loss(self.loss, self.logits(hidden_ND), targets, reduction="sum", **labels)
        weight_VD, bias_V = self.head.weight, self.head.bias
        # No slice if it would hold all rows: it would need a copy of the gradient.
        if self.vocab_limit is not None and self.vocab_limit < len(weight_VD):
            weight_VD, bias_V = weight_VD[: self.vocab_limit], None if bias_V is None else bias_V[: self.vocab_limit]
        return head_loss(
            self.loss,
            hidden_ND,
            weight_VD,
            targets,
            bias=bias_V,
            finish=replace(self.head.finish, kept_rows=None),
            reduction="sum",
            **labels,
        )


def _check_not_cast(batch: Batch) -> None:
    """Refuse targets that a wrapper has rounded. A stream's own narrow ones are float16, where that is exact."""
    if vars(batch.targets)["logprobs"].dtype == torch.bfloat16:
        raise TargetsError(
            "the log-probs of the targets are bfloat16: a wrapper has rounded them, by up to 1/32 nat. Pass "
            "losses.Sealed(batch) to the module, or give FSDP MixedPrecisionPolicy(cast_forward_inputs=False, …)"
        )


def loss_model(model: Any, loss: str | Loss = "bild", **params: Any) -> StudentWithLoss:
    """A model with a loss, which is a name or a loss object: see :class:`StudentWithLoss`.

    Args:
        model: a transformers causal language model, or a PEFT model around one.
        loss, params: as for ``linear_loss``.

    Raises:
        ConfigError: no such loss or setting.
        ModelError: the model gives no logits for text.
    """
    return StudentWithLoss(model, resolve(loss, **params))
