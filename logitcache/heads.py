"""Find a causal language model's output head, so that it can run on chosen positions, a few at a time.

Models change their logits after the linear head in ways of their own (Gemma caps them, Cohere and Granite scale them).
What we find is compared with the model's own forward pass before it is used: a head that isn't understood is an
error, never a silent change of the distribution.

Shape legend: N positions, D hidden width, V words in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from logitcache.errors import ModelError

# model_type → the multiplier of its raw logits, from the modelling code of transformers.
_SCALES = {
    "cohere": lambda config: config.logit_scale,
    "cohere2": lambda config: config.logit_scale,
    "cohere2_moe": lambda config: config.logit_scale,
    "falcon_h1": lambda config: config.lm_head_multiplier,
    "hyperclovax": lambda config: config.logits_scaling,
    "muse_glimmer_text": lambda config: config.output_multiplier,
}


# What configurations call their soft cap.
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True, eq=False)
class Head:
    """A model taken apart: ``body`` gives hidden states, ``output`` turns them into raw logits.

    Attributes:
        body: the model without its head; ``body(input_ids=...).last_hidden_state`` is ``[B, L, D]``.
        output: the head's own module, ``[N, D]`` to ``[N, V]``; its bias, if any, is inside.
        logit_scale: raw logits are multiplied by it.
        softcap: if set, scaled logits become ``softcap · tanh(logits / softcap)``.
    """

    body: nn.Module
    output: nn.Module
    logit_scale: float = 1.0
    softcap: float | None = None

    @property
    def weight(self) -> Tensor:
        """``[V, D]``, the head's matrix."""
        weight = self.output.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """``[V]``, or None."""
        bias = getattr(self.output, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    @property
    def vocab_size(self) -> int:
        """V, the length of the logit vector."""
        return int(getattr(self.output, "out_features", 0)) or int(self.weight.shape[0])

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """``[N, V]`` logits as the model's own forward pass returns them."""
        if self.weight.is_floating_point():  # some bodies return float32 whatever the weights are (Mamba)
            hidden_ND = hidden_ND.to(self.weight.dtype)
        logits_NV: Tensor = self.output(hidden_ND)
        if self.logit_scale != 1.0:
            logits_NV = logits_NV * self.logit_scale
        if self.softcap is not None:
            logits_NV = torch.tanh(logits_NV / self.softcap) * self.softcap
        return logits_NV


def inside(model: Any) -> tuple[Any, str]:
    """The language model within a PEFT wrapper, and a reason if its body alone would not do what the whole does."""
    if not hasattr(model, "peft_config"):
        return model, ""
    prompt_learning = [config for config in model.peft_config.values() if config.is_prompt_learning]
    if prompt_learning:
        kind = prompt_learning[0].peft_type
        return model, f"{getattr(kind, 'value', kind)} adds virtual tokens"
    return (model.get_base_model() if hasattr(model, "get_base_model") else model), ""


def find_head(model: Any) -> Head:
    """Take a transformers causal language model apart into body and head, and prove that the two make the whole.

    Raises:
        ModelError: there is no output head, or body and head together don't give the model's own logits.
    """
    output = model.get_output_embeddings()
    body = getattr(model, getattr(model, "base_model_prefix", "") or "model", None)
    if output is None or not isinstance(body, nn.Module) or body is model:
        raise ModelError(f"{type(model).__name__} has no separate output head: a causal language model is needed")
    config = model.config.get_text_config()
    softcap = next((cap for name in _SOFTCAPS if (cap := getattr(config, name, None))), None)
    head = Head(body, output, _logit_scale(config), float(softcap) if softcap else None)
    _check(model, head)
    return head


def _logit_scale(config: Any) -> float:
    known = _SCALES.get(config.model_type)
    if known is not None:
        return float(known(config))
    return 1.0 / float(getattr(config, "logits_scaling", None) or 1.0)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model without dropout; afterwards each of its modules is as it was, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def _check(model: Any, head: Head) -> None:
    """Compare with the model's own logits on a few tokens."""
    with evaluating(model):
        device = model.get_input_embeddings().weight.device
        ids = torch.arange(1, 9, device=device)[None] % head.vocab_size
        own = model(input_ids=ids, use_cache=False).logits[0].float()
        hidden = head.body(input_ids=ids, use_cache=False).last_hidden_state[0]
        ours = head.logits(hidden).float().to(own.device)
    if own.shape != ours.shape or not _close(ours, own):
        raise ModelError(
            f"{type(model).__name__} changes its logits after the head in a way that is not known here "
            "(no softcap or scale in its configuration explains it)"
        )


def _close(ours: Tensor, own: Tensor) -> bool:
    finite = torch.isfinite(own)
    if not torch.equal(finite, torch.isfinite(ours)):
        return False
    if not finite.any():
        return True  # broken weights: whoever uses the logits reports them by position
    # Half-precision heads round differently with the number of rows; a missed scale or cap is far larger than this.
    spread = own[finite].std().clamp_min(1e-3)
    return bool(((ours - own)[finite].abs().max() / spread) < 0.05)
