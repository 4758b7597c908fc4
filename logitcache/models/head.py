"""The two parts of a language model: a body that gives hidden states, and a head that turns them into logits.

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
    """A model's two parts: ``body`` gives hidden states, and ``output`` turns them into raw logits.

    If no such parts were found, ``whole`` is True: ``body`` is the model itself, and gives logits.

    Attributes:
        body: the model without its head; its first output is ``[B, L, D]``. output: the head's module, from ``[N, D]``
        to ``[N, V]``, with its bias if it has one. vocab_size: V, the length of the logit vector. finish: how the model
        turns raw logits into logits. whole: True if the body gives logits, and D is V. alone: True if the other rows of
        a batch change a row's values, so that each row must run alone. counts_positions: True if the body uses position
        ids 0, 1, 2, … when none are given. turn: if a row of a batch is longer than this, in tokens, the rotary
        frequencies of all rows change; None if that
            never happens.
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
    def dtype(self) -> torch.dtype | None:
        """The dtype of the output layer's weights; None if it has none."""
        return _dtype_of(self.output)

    @property
    def weight(self) -> Tensor:
        """``[V, D]``, the head's matrix.

        Raises:
            ModelError: the output layer is not a plain linear layer; see :attr:`why_dense`.
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
        """Empty if the head has only a weight and a bias, else one line that says what it is."""
        kind = type(self.output).__name__
        if self.whole:
            what = f"{type(self.body).__name__} can't be taken apart into hidden states and an output layer"
        elif isinstance(self.output, nn.Sequential):
            what = "the output layer is several modules, one after the other"
        elif type(self.output) is not nn.Linear or _is_changed(self.output):
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
            return "other rows of a batch change its values for a row, so it runs one row at a time, which is slower"
        if self.whole:
            return (
                f"{type(self.body).__name__} can't be taken apart into hidden states and an output layer, so it "
                "computes all logits itself, one sequence at a time, which takes more memory and time"
            )
        return ""

    def hidden(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """Last hidden states ``[B, L, D]``, the input of :meth:`logits`.

        Args:
            input_ids: ``[B, L]``, on the device that :func:`device_of` names.
            inputs: ``attention_mask``, ``position_ids`` and other inputs of the body; position ids are dropped if the
                body counts positions differently.

        Raises:
            ModelError: the body refuses the rows, for example because of their length; or a long row would change the
                others.
        """
        self._check_turn(input_ids, inputs.get("position_ids"))
        if not self.counts_positions:
            inputs.pop("position_ids", None)
        try:
            if not self.alone or len(input_ids) == 1:
                return run(self.body, input_ids, **inputs)
            rows = range(len(input_ids))
            return torch.cat([run(self.body, input_ids[row : row + 1], **_row(inputs, row)) for row in rows])
        except torch.OutOfMemoryError:  # the caller may try fewer rows
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ModelError(
                f"{type(self.body).__name__} can't run rows of {input_ids.shape[1]} tokens: {reason(error)}"
            ) from error

    def hidden_at(self, input_ids: Tensor, index: Tensor, **inputs: Any) -> Tensor:
        """Last hidden states ``[N, D]`` at some positions. A whole model gives logits, and runs one row at a time.

        Args:
            input_ids: ``[B, L]``.
            index: ``[N]`` int64, row · L + column.
            inputs: as for :meth:`hidden`.

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
            # A model with virtual tokens also gives logits for them, before those of the row.
            logits_LV = self.hidden(input_ids[row : row + 1], **_row(inputs, row))[0, -length:]
            parts.append(logits_LV.index_select(0, (index[place] % length).to(logits_LV.device)))
            places.append(place)
        return torch.cat(parts)[torch.cat(places).argsort().to(parts[0].device)]

    def _check_turn(self, input_ids: Tensor, position_ids: Tensor | None) -> None:
        """Refuse a row longer than ``turn`` if there is another row, or another document in it.

        Raises:
            ModelError: there is.
        """
        if self.turn is None or input_ids.shape[1] <= self.turn:
            return
        several = len(input_ids) > 1
        if position_ids is not None:
            several = several or bool((position_ids[:, 1:] == 0).any())
            if int(position_ids.max()) < self.turn:
                return
        if several:
            raise ModelError(
                f"{type(self.body).__name__} uses other rotary frequencies beyond {self.turn:,} tokens, and a longer "
                "row would change the other rows: run one row at a time (--micro-batch-size 1, without --pack-tokens), "
                f"or rows of at most {self.turn:,} (--max-length)"
            )

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """``[N, V]`` logits as the model's own forward pass returns them."""
        if self.whole:
            return hidden_ND
        logits_NV: Tensor = self.output(as_weights(hidden_ND, self.output))
        return self.finish.of(logits_NV)


def _is_changed(module: nn.Module) -> bool:
    """True if something comes before or after a module's own forward, or in its place."""
    replaced = "forward" in vars(module) and not hasattr(module, "_hf_hook")  # accelerate's moves tensors only
    return replaced or bool(module._forward_hooks or module._forward_pre_hooks)


def _row(inputs: dict[str, Any], row: int) -> dict[str, Any]:
    """The inputs of one row of a batch."""
    return {name: value[row : row + 1] if isinstance(value, Tensor) else value for name, value in inputs.items()}


def as_weights(hidden: Tensor, output: nn.Module) -> Tensor:
    """Hidden states in the dtype of an output layer: some bodies give float32 with weights of any dtype (Mamba)."""
    dtype = _dtype_of(output)
    return hidden if dtype is None else hidden.to(dtype)


def _dtype_of(output: nn.Module) -> torch.dtype | None:
    return next((value.dtype for value in output.parameters() if value.is_floating_point()), None)


def run(module: nn.Module, input_ids: Tensor, **inputs: Any) -> Tensor:
    """A module's logits, or its last hidden states, ``[B, L, …]``, for token ids.

    It uses no key-value cache. Position ids are left out if the module's forward doesn't take them.
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
    """The logits of a model's output, or its last hidden states, or its first item.

    Raises:
        TypeError: it isn't a tensor.
    """
    for name in ("logits", "last_hidden_state"):
        if isinstance(found := getattr(out, name, None), Tensor):
            return found
    found = out[0] if isinstance(out, (tuple, list)) and out else out
    if not isinstance(found, Tensor):
        raise TypeError(f"{type(out).__name__} holds no tensor of logits or hidden states")
    return found


def without_adapter(model: Any) -> tuple[Any, str]:
    """The language model inside a PEFT wrapper; and a reason if it can't be used without the wrapper, else empty."""
    if not hasattr(model, "peft_config"):
        return model, ""
    prompt_learning = [config for config in model.peft_config.values() if config.is_prompt_learning]
    if prompt_learning:
        kind = prompt_learning[0].peft_type
        return model, f"{getattr(kind, 'value', kind)} adds virtual tokens"
    return (model.get_base_model() if hasattr(model, "get_base_model") else model), ""


def device_of(model: Any) -> torch.device:
    """The device on which the model takes its token ids."""
    try:
        device = model.get_input_embeddings().weight.device
    except (AttributeError, NotImplementedError):  # some models don't say which module is their embedding
        device = next(model.parameters()).device
    assert isinstance(device, torch.device)
    return device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode, without dropout; after that restore the mode of each of its modules."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
