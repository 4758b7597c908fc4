"""The module that the Trainer wraps: the student with its loss inside, so that wrapping it synchronises gradients.

Shape legend: B rows, T tokens of a row, N positions with targets, D hidden width, K entries a position.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from logitcache.errors import LogitCacheWarning
from logitcache.evaluate.measure import MetricSums, metric_sums
from logitcache.losses import HeadStats, LinearHead, Loss, dense_loss, head_loss
from logitcache.models import Head, find_head, inside
from logitcache.stream import Batch
from logitcache.targets.beyond import ALL_RANKED, Beyond
from logitcache.targets.topk import TopK


class DistillModule(nn.Module):
    """A student and its distillation loss as one module.

    ``forward`` takes a batch's tensors and returns ``{"loss": …}``: the sum over the positions of this micro-batch,
    divided by the number of positions in the whole global batch (and multiplied by the number of ranks, because
    data-parallel wrappers average gradients over them). Summed over micro-batches and averaged over ranks it is the
    mean over the global batch, however that was divided.

    Args:
        student: a transformers causal language model, or a PEFT model around one.
        loss: from ``logitcache.losses``.
        vocab_size: V of the teacher.
        vocab_limit: ids below it are known to both.
        world_size: data-parallel ranks.
    """

    accepts_loss_kwargs = False  # the Trainer must not scale the loss again

    def __init__(self, student: Any, loss: Loss, vocab_size: int, vocab_limit: int, world_size: int = 1) -> None:
        super().__init__()
        self.student = student
        self.loss, self.vocab_size, self.vocab_limit, self.world_size = loss, vocab_size, vocab_limit, world_size
        base, _ = inside(student)
        # Held in a tuple, so that body and head aren't registered as submodules a second time.
        self._parts: tuple[Head] = (find_head(base),)
        self._freeze_what_text_does_not_reach()
        self.why_dense = self.head.why_dense
        self._covered, self._counted, self._listed = torch.zeros(()), 0, 0
        if self.why_dense:
            warnings.warn(self.why_dense, LogitCacheWarning, stacklevel=2)
        self._flattens = "flash" in str(getattr(base.config, "_attn_implementation", ""))

    def _freeze_what_text_does_not_reach(self) -> None:
        """A vision tower gets no gradient; data-parallel wrappers would wait for one, and weight decay shrink it."""
        reached = {id(value) for part in (self.head.body, self.head.output) for value in part.parameters()}
        for value in self.student.parameters():
            if id(value) not in reached:
                value.requires_grad_(False)

    @property
    def config(self) -> Any:
        return self.student.config

    @property
    def head(self) -> Head:
        return self._parts[0]

    @property
    def _no_split_modules(self) -> Any:
        """FSDP asks this of the model to know which blocks to shard."""
        return getattr(self.student, "_no_split_modules", None)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        self.student.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        self.student.gradient_checkpointing_enable(**kwargs)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        target_index: Tensor,
        topk_ids: Tensor,
        topk_logprobs: Tensor,
        residual_logprob: Tensor,
        labels: Tensor,
        batch_targets: Tensor | None = None,
        log_partition: Tensor | None = None,
        logit_std: Tensor | None = None,
        beyond: Beyond = ALL_RANKED,
        measure: bool = False,
        logits: bool = False,
    ) -> dict[str, Any]:
        """The loss; or with ``measure`` the sums of all metrics, with ``logits`` the logits at the target positions.

        Arguments as in ``logitcache.stream.Batch``.
        """
        if logits:
            hidden_ND = self.hidden_at(input_ids, position_ids, target_index)
            return {"logits": self.head.logits(hidden_ND)[:, : self.vocab_limit].float()}
        teacher = topk_ids.long(), topk_logprobs, residual_logprob, self.vocab_limit, log_partition, logit_std
        targets = TopK(*teacher, **beyond.recorded())
        hidden_ND = self.hidden_at(input_ids, position_ids, target_index)
        if measure:
            return {"metrics": self.metrics(hidden_ND, targets, labels)}
        total, stats = self.sum_of_losses(hidden_ND, targets, labels)
        if stats.coverage is not None:
            # Stays on the device until it is asked for.
            self._covered = self._covered.to(stats.coverage.device) + stats.coverage * stats.tokens
            self._counted, self._listed = self._counted + stats.tokens, targets.k
        if stats.tokens == 0:
            # Connected to body and head, without a sum that half precision can't hold.
            total = hidden_ND[:0].sum() + self.head.logits(hidden_ND[:0]).sum()
        # A step may hold no targets at all: its loss is 0 then, and not 0/0.
        count = max(1, len(targets)) if batch_targets is None else batch_targets.clamp(min=1)
        return {"loss": total * self.world_size / count}

    def sum_of_losses(self, hidden_ND: Tensor, targets: TopK, labels_N: Tensor) -> tuple[Tensor, HeadStats]:
        """The loss, summed over the positions that count: fused where the head is linear, from all logits otherwise."""
        if self.why_dense:
            logits_NV = self.head.logits(hidden_ND)[:, : self.vocab_limit]
            return dense_loss(self.loss, logits_NV, targets, labels=labels_N, reduction="sum")
        weight, bias = self.head.weight, self.head.bias
        # A slice of everything would cost a copy of the gradient.
        if self.vocab_limit < weight.shape[0]:
            weight, bias = weight[: self.vocab_limit], None if bias is None else bias[: self.vocab_limit]
        # Autocast doesn't reach into the loss, which computes in fp32 by itself.
        with torch.autocast(hidden_ND.device.type, enabled=False):
            head = LinearHead(
                weight.to(hidden_ND.dtype),
                None if bias is None else bias.to(hidden_ND.dtype),
                self.head.softcap,
                self.head.logit_scale,
            )
            return head_loss(self.loss, hidden_ND, head, targets, labels=labels_N, reduction="sum")

    def hidden_at(self, input_ids_BT: Tensor, position_ids_BT: Tensor, index_N: Tensor) -> Tensor:
        """``[N, D]`` last hidden states at the positions ``index_N``, row · T + column."""
        if self._flattens:  # flash attention finds documents by their positions, in a single row
            input_ids_BT, position_ids_BT = input_ids_BT.reshape(1, -1), position_ids_BT.reshape(1, -1)
        return self.head.hidden_at(input_ids_BT, index_N, position_ids=position_ids_BT)

    def take_coverage(self) -> tuple[float, int] | None:
        """Share of the student's top k that the targets held since the last call, and K; None if nobody looked."""
        if not self._counted:
            return None
        share = float(self._covered) / self._counted
        self._covered, self._counted = torch.zeros(()), 0
        return share, self._listed

    @torch.no_grad()
    def metrics(self, hidden_ND: Tensor, targets: TopK, labels_N: Tensor) -> MetricSums:
        return metric_sums(self.head, hidden_ND, targets, labels_N, self.vocab_limit)


def inputs_of(batch: Batch) -> dict[str, Any]:
    """A batch as the keywords of :meth:`DistillModule.forward`."""
    return {**batch.tensors(), "batch_targets": torch.tensor(batch.batch_targets), "beyond": batch.beyond}
