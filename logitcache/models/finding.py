"""Find a language model's body and output head by running it, and check that together they give its logits.

The model is run on a few tokens, and hooks record what its modules take and give. The body is a module that takes token
ids, and whose hidden states give the model's own logits when they go through the head. The head is one module after the
body, or several. If no such modules are found, the model itself computes the logits. The name or class of a model is
never used.

Shape legend: T tokens of the probe, D hidden width, V ids in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from logitcache.errors import ModelError
from logitcache.models.head import Head, as_weights, evaluating, first_tensor, parameters_of, run
from logitcache.models.probe import difference, half, probe_ids, same, spread
from logitcache.models.scaling import explain
from logitcache.utils.reasons import reason

# The difference that rounding may cause, as a share of the logits' standard deviation. Half-precision kernels round
# differently with another number of rows. A missed scale, cap, mask or position makes a far larger difference.
_TOLERANCE = {False: 1e-3, True: 0.05}
_ORIGINAL = "original_max_position_embeddings"


@torch.no_grad()
def find_head(model: Any) -> Head:
    """Find body and head of a transformers language model, and check that together they give its logits.

    Raises:
        ModelError: the model gives no logits for each token.
    """
    ids_T = probe_ids(model)
    with evaluating(model):
        own_TV, trace = _record(model, ids_T)
        whole = Head(model, nn.Identity(), own_TV.shape[1], whole=True), own_TV
        head, hidden_TD = next(_matching_heads(model, ids_T, own_TV, trace), whole)
        return _with_body_facts(head, ids_T, hidden_TD)


def tolerance(model: Any) -> float:
    """The difference that rounding may cause, as a share of the logits' standard deviation."""
    return _TOLERANCE[half(model)]


class _Step:
    """The first input and the output of one module in the model's own forward pass."""

    def __init__(self, module: nn.Module, given: Any, out: Any) -> None:
        self.module, self.given = module, given if isinstance(given, Tensor) else None
        try:
            self.out: Tensor | None = first_tensor(out)
        except TypeError:
            self.out = None


def _record(model: Any, ids_T: Tensor) -> tuple[Tensor, list[_Step]]:
    """The model's own logits ``[T, V]``, and the steps of modules that aren't inside of one that takes token ids.

    Raises:
        ModelError: the model gives no logits, or not for each token.
    """
    bodies = [module for module in model.modules() if module is not model and "input_ids" in parameters_of(module)]
    within = {id(inner) for body in bodies for inner in body.modules()} - {id(body) for body in bodies}
    steps: list[_Step] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        steps.append(_Step(module, next((each for each in (*args, *kwargs.values())), None), out))

    seen = [module for module in model.modules() if module is not model and id(module) not in within]
    handles = [module.register_forward_hook(record, with_kwargs=True) for module in seen]
    try:
        own = run(model, ids_T[None])
    except Exception as error:
        raise ModelError(f"{type(model).__name__} can't be run on text alone: {reason(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    if own.dim() != 3 or own.shape[:2] != (1, len(ids_T)):
        raise ModelError(
            f"{type(model).__name__} gives {list(own.shape)} for {len(ids_T)} tokens, and not logits for each of them: "
            "a model that predicts the next token is needed"
        )
    return own[0], steps


def _matching_heads(model: Any, ids_T: Tensor, own_TV: Tensor, steps: list[_Step]) -> Iterator[tuple[Head, Tensor]]:
    """Heads that give the model's own logits, with the hidden states ``[T, D]``."""
    limit, precise = tolerance(model), not half(model)
    bodies = [step for step in steps if "input_ids" in parameters_of(step.module) and step.out is not None]
    for body in bodies:
        assert body.out is not None
        if body.out.dim() != 3 or body.out.shape[:2] != (1, len(ids_T)):
            continue
        for output, raw in _outputs(model, body, steps):
            done = explain(raw[0], own_TV, model.config, half=not precise, tolerance=limit)
            if done is None:
                continue
            head = Head(body.module, output, own_TV.shape[1], done)
            hidden_TD = _run_body(head, ids_T)
            if hidden_TD is not None and same(head.logits(hidden_TD), own_TV, tolerance=limit):
                yield head, hidden_TD


def _outputs(model: Any, body: _Step, steps: list[_Step]) -> Iterator[tuple[nn.Module, Tensor]]:
    """Modules that may turn a body's hidden states into logits, with the raw logits ``[1, T, V]`` that they give."""
    assert body.out is not None
    own = model.get_output_embeddings()
    if isinstance(own, nn.Module) and (raw := _applied(own, body.out)) is not None:
        yield own, raw
    for path in _paths(body.out, steps, ()):
        if path == (own,):
            continue
        module = path[0] if len(path) == 1 else nn.Sequential(*path)
        if (raw := _applied(module, body.out)) is not None:
            yield module, raw


def _applied(module: nn.Module, hidden: Tensor) -> Tensor | None:
    """A module's output for hidden states; None if it doesn't take them."""
    try:
        out = module(as_weights(hidden, module))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return None
    return out if isinstance(out, Tensor) and out.dim() == 3 else None


def _paths(start: Tensor, steps: list[_Step], before: tuple[nn.Module, ...]) -> Iterator[tuple[nn.Module, ...]]:
    """Chains of at most four modules outside of any body; each takes what the one before it gave."""
    for step in steps:
        if step.given is None or step.out is None or step.module in before or "input_ids" in parameters_of(step.module):
            continue
        if step.given.shape == start.shape and same(step.given, start, tolerance=1e-6):
            path = (*before, step.module)
            yield path
            if len(path) < 4:
                yield from _paths(step.out, steps, path)


def _run_body(head: Head, ids_T: Tensor, **inputs: Tensor) -> Tensor | None:
    """Hidden states ``[T, D]`` of the body run without the model around it; None if it can't run so."""
    try:
        return run(head.body, ids_T[None], **inputs)[0]
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return None


def _with_body_facts(head: Head, ids_T: Tensor, hidden_TD: Tensor) -> Head:
    """Add to a head how its body counts positions, and whether rows of a batch influence each other."""
    half_T = ids_T[: max(1, len(ids_T) // 2)]
    padded_T = torch.cat([half_T, half_T[-1:].expand(len(ids_T) - len(half_T))])
    positions_1T = torch.arange(len(ids_T), device=ids_T.device)[None]
    limit = 0.1 if half(head.body) else 1e-3
    alone = hidden_TD, run(head.body, half_T[None])[0]

    def equal(one: Tensor, two: Tensor) -> bool:
        return difference(one[: len(two)], two) <= limit * spread(two)

    counted = _run_body(head, ids_T, position_ids=positions_1T)
    counts = counted is not None and equal(counted, hidden_TD)
    beside = run(head.body, torch.stack([ids_T, padded_T]))
    independent = all(equal(one, two) for one, two in zip(beside, alone, strict=True))
    return replace(head, alone=not independent, counts_positions=counts, turn=_turn(head.body))


def _turn(body: nn.Module) -> int | None:
    """The length at which a long-context rotary embedding ("longrope") changes its frequencies, if the body has one."""
    lengths = []
    for module in body.modules():
        kinds = getattr(module, "rope_type", None)
        if "longrope" not in (kinds.values() if isinstance(kinds, dict) else [kinds]):
            continue
        parameters: dict[str, Any] = getattr(module, "config").rope_parameters  # noqa: B009 - not every module has one
        parts = [parameters, *(part for part in parameters.values() if isinstance(part, dict))]
        lengths += [part[_ORIGINAL] for part in parts if part.get(_ORIGINAL)]
    return min(lengths, default=None)
