"""A language model taken apart: a body that gives hidden states, and a head that makes logits of them.

Shape legend: B rows, L tokens of each, N positions, D hidden width, V ids in the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from logitcache.errors import ModelError
from logitcache.models.finish import UNCHANGED, Finish
from logitcache.utils.reasons import reason


@dataclass(frozen=True, eq=False)
class Head:
    """A model taken apart: ``body`` gives hidden states, ``output`` turns them into raw logits.

    Where no such parts were found, ``body`` is the model itself, and what it gives are logits already: ``whole``.

    Attributes:
        body: the model without its head; what it returns first is ``[B, L, D]``.
        output: the head's own module, ``[N, D]`` to ``[N, V]``; its bias, if any, is inside.
        vocab_size: V, the length of the logit vector.
        finish: what the model does to raw logits.
        whole: True if the body gives logits, and D is V.
        alone: True if a row's values change with the rows beside it, so that each must run by itself.
        counts_positions: True if position ids 0, 1, 2, … are what the body takes where none are given.
        turn: tokens beyond which the longest row of a batch sets the rotary frequencies of all; None if it never does.
    """

    body: nn.Module
    output: nn.Module
    vocab_size: int
    finish: Finish = UNCHANGED
    whole: bool = False
    alone: bool = False
    counts_positions: bool = True
    turn: int | None = None

    @property
    def weight(self) -> Tensor:
        """``[V, D]``, the head's matrix.

        Raises:
            ModelError: the output layer isn't linear, so that it is more than a matrix; see :attr:`why_dense`.
        """
        if self.why_dense:
            raise ModelError(self.why_dense)
        weight = self.output.weight
        assert isinstance(weight, Tensor)
        return weight if self.finish.kept_rows is None else weight[: self.finish.kept_rows]

    @property
    def bias(self) -> Tensor | None:
        """``[V]``, or None. Only where the output is a linear layer."""
        bias = getattr(self.output, "bias", None)
        if not isinstance(bias, Tensor):
            return None
        return bias if self.finish.kept_rows is None else bias[: self.finish.kept_rows]

    @property
    def why_dense(self) -> str:
        """Empty if weight and bias are all there is to the head, else one line that says what it is."""
        kind = type(self.output).__name__
        if self.whole:
            what = f"{type(self.body).__name__} can't be taken apart into hidden states and an output layer"
        elif isinstance(self.output, nn.Sequential):
            what = "the output layer is several modules, one after the other"
        elif type(self.output) is not nn.Linear or self.output._forward_hooks or self.output._forward_pre_hooks:
            what = (
                f"the output layer is {type(self.output).__module__.split('.')[0]}'s {kind}, not a plain linear layer "
                "(adapted, quantised or hooked?)"
            )
        else:
            return ""
        return f"{what}; the loss reads all logits instead, which takes more memory and time"

    @property
    def cost(self) -> str:
        """Empty, or one line on why sequences run one at a time."""
        if self.alone:
            return "what it says of a row changes with the rows beside it, so it runs one at a time, which is slower"
        if self.whole:
            return (
                f"{type(self.body).__name__} can't be taken apart into hidden states and an output layer, so it makes "
                "all logits itself, one sequence at a time, which takes more memory and time"
            )
        return ""

    def hidden(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """Last hidden states ``[B, L, D]``, what :meth:`logits` reads.

        Args:
            input_ids: ``[B, L]``, on the device that :func:`device_of` names.
            inputs: ``attention_mask``, ``position_ids`` and whatever else the body takes; position ids are dropped
                where the body counts otherwise.

        Raises:
            ModelError: the body refuses such rows, for example their length; a long row would change those beside it.
        """
        self._check_turn(input_ids, inputs.get("position_ids"))
        if not self.counts_positions:
            inputs.pop("position_ids", None)
        try:
            if not self.alone or len(input_ids) == 1:
                return run(self.body, input_ids, **inputs)
            rows = range(len(input_ids))
            return torch.cat([run(self.body, input_ids[row : row + 1], **_row(inputs, row)) for row in rows])
        except torch.OutOfMemoryError:  # whoever asked may try fewer rows
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ModelError(
                f"{type(self.body).__name__} can't run rows of {input_ids.shape[1]} tokens: {reason(error)}"
            ) from error

    def hidden_at(self, input_ids: Tensor, index: Tensor, **inputs: Any) -> Tensor:
        """Last hidden states ``[N, D]`` at some positions. Logits of other positions are not kept, nor made at once.

        Args:
            input_ids: ``[B, L]``.
            index: ``[N]`` int64, row · L + column.
            inputs: as :meth:`hidden` takes them.

        Raises:
            ModelError: as :meth:`hidden` does.
        """
        self._check_turn(input_ids, inputs.get("position_ids"))
        if not self.whole:
            hidden_BLD = self.hidden(input_ids, **inputs)
            return hidden_BLD.flatten(0, 1).index_select(0, index.to(hidden_BLD.device))
        length, parts, places = input_ids.shape[1], [], []
        for row in range(len(input_ids)):
            place = (index // length == row).nonzero()[:, 0]
            # A model with virtual tokens gives logits for them as well, before those of the row.
            logits_LV = self.hidden(input_ids[row : row + 1], **_row(inputs, row))[0, -length:]
            parts.append(logits_LV.index_select(0, (index[place] % length).to(logits_LV.device)))
            places.append(place)
        return torch.cat(parts)[torch.cat(places).argsort().to(parts[0].device)]

    def _check_turn(self, input_ids: Tensor, position_ids: Tensor | None) -> None:
        """Refuse to run a row beyond the turn beside another, or beside another document in it."""
        if self.turn is None or input_ids.shape[1] <= self.turn:
            return
        several = len(input_ids) > 1
        if position_ids is not None:
            several = several or bool((position_ids[:, 1:] == 0).any())
            if int(position_ids.max()) < self.turn:
                return
        if several:
            raise ModelError(
                f"{type(self.body).__name__} turns at other frequencies beyond {self.turn:,} tokens, and a longer row "
                f"would change those beside it: one row at a time (--micro-batch-size 1, without --pack-tokens), or "
                f"rows of at most {self.turn:,} (--max-length)"
            )

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """``[N, V]`` logits as the model's own forward pass returns them."""
        if self.whole:
            return hidden_ND
        logits_NV: Tensor = self.output(as_weights(hidden_ND, self.output))
        return self.finish.of(logits_NV)


def _row(inputs: dict[str, Any], row: int) -> dict[str, Any]:
    """The inputs of one row of a batch."""
    return {name: value[row : row + 1] if isinstance(value, Tensor) else value for name, value in inputs.items()}


def as_weights(hidden: Tensor, output: nn.Module) -> Tensor:
    """Hidden states in the dtype of an output layer: some bodies give float32 whatever the weights are (Mamba)."""
    dtype = next((value.dtype for value in output.parameters() if value.is_floating_point()), None)
    return hidden if dtype is None else hidden.to(dtype)


def run(module: nn.Module, input_ids: Tensor, **inputs: Any) -> Tensor:
    """What a module makes of tokens: its logits, or its last hidden states, ``[B, L, …]``.

    No cache is filled. Position ids are left out where the module's forward doesn't name them.
    """
    takes = parameters_of(module)
    given = {"use_cache": False, **inputs}
    for name in ("use_cache", "position_ids"):
        if name not in takes:
            given.pop(name, None)
    return first_tensor(module(input_ids=input_ids, **given))


def parameters_of(module: nn.Module) -> frozenset[str]:
    """The names that a module's forward takes."""
    return frozenset(inspect.signature(type(module).forward).parameters)


def first_tensor(out: Any) -> Tensor:
    """The logits of a model's answer, or its last hidden states, or the first thing that it gives.

    Raises:
        TypeError: that isn't a tensor.
    """
    for name in ("logits", "last_hidden_state"):
        if isinstance(found := getattr(out, name, None), Tensor):
            return found
    found = out[0] if isinstance(out, (tuple, list)) and out else out
    if not isinstance(found, Tensor):
        raise TypeError(f"{type(out).__name__} holds no tensor of logits or hidden states")
    return found


def without_adapter(model: Any) -> tuple[Any, str]:
    """The language model within a PEFT wrapper, and a reason if its body alone would not do what the whole does."""
    if not hasattr(model, "peft_config"):
        return model, ""
    prompt_learning = [config for config in model.peft_config.values() if config.is_prompt_learning]
    if prompt_learning:
        kind = prompt_learning[0].peft_type
        return model, f"{getattr(kind, 'value', kind)} adds virtual tokens"
    return (model.get_base_model() if hasattr(model, "get_base_model") else model), ""


def device_of(model: Any) -> torch.device:
    """Where the model takes its token ids."""
    try:
        device = model.get_input_embeddings().weight.device
    except (AttributeError, NotImplementedError):  # not every model says where its embeddings are
        device = next(model.parameters()).device
    assert isinstance(device, torch.device)
    return device


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
