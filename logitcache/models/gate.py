"""Check a teacher or student on a few tokens: its prediction of a token may depend only on the tokens before it.

This is done when a model is loaded. :func:`logitcache.models.load_language_model` checks the weights.

Shape legend: T tokens of the probe, V ids of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitcache.errors import ModelError
from logitcache.models.finding import find_head
from logitcache.models.head import Head, evaluating, run, without_adapter
from logitcache.models.probe import difference, half, probe_ids, spread, vocabulary

# The largest effect of a later token at earlier positions, as a share of its effect at its own position. It allows for
# rounding only. Half precision rounds differently if a router groups the tokens differently.
_LEAK = {False: 1e-4, True: 0.03}


def check_language_model(model: Any, what: str, name: str) -> Head:
    """Check a model on a few tokens, and find its body and head.

    A model whose logits are NaN passes: they are reported later, with their position.

    Args:
        model: a transformers language model, or a PEFT model around one.
        what: its role, for messages: teacher, student …
        name: the user's name for it, for messages.

    Raises:
        ModelError: it gives no logits for text alone, gives different logits for the same tokens, or a token changes
            the logits at earlier positions.
    """
    language_model, refusal = without_adapter(model)
    if refusal:
        raise ModelError(f"{what} {name} can't be used: {refusal}")
    try:
        head = find_head(language_model)
    except ModelError as error:
        raise ModelError(f"{what} {name}: {error}") from error
    _check_causal(language_model, f"{what} {name}", independent=not head.alone)
    if head.alone:
        _check_beginning(language_model, f"{what} {name}")
    return head


@torch.no_grad()
def _check_causal(model: Any, who: str, *, independent: bool) -> None:
    """Change a token: the logits before it must not change.

    Args:
        independent: rows of a batch don't change each other, so that one pass for all rows is enough.

    Raises:
        ModelError: they do; the message says by how much.
    """
    ids_T = probe_ids(model)
    places = len(ids_T) - 1, len(ids_T) // 2
    rows = [ids_T, ids_T, *(_with_other(ids_T, place, vocabulary(model)) for place in places)]
    with evaluating(model):
        passes = run(model, torch.stack(rows)) if independent else [run(model, row[None])[0] for row in rows]
    own_TV, again_TV, *changed = passes
    if not torch.isfinite(own_TV).any():
        return
    limit = _LEAK[half(model)]
    effect = max(difference(own_TV[place], other_TV[place]) for place, other_TV in zip(places, changed, strict=True))
    if (noise := difference(own_TV, again_TV)) > limit * effect:
        raise ModelError(
            f"{who} gives other values for the same tokens: its logits differ by {noise:.2g} on average, so none "
            "of it can be stored"
        )
    for place, other_TV in zip(places, changed, strict=True):
        leak = difference(own_TV[:place], other_TV[:place])
        if leak > limit * effect:
            raise ModelError(
                f"{who} is not causal: another token at position {place} changes the logits before it by {leak:.2g} on "
                f"average (at its own position by {effect:.2g}){_advice(model)}"
            )


@torch.no_grad()
def _check_beginning(model: Any, who: str) -> None:
    """Remove the last token: the logits before it must not change, or they aren't those that the model generates with.

    Raises:
        ModelError: they do; the message says by how much.
    """
    ids_T = probe_ids(model)
    last = len(ids_T) - 1
    if last == 0:
        return
    with evaluating(model):
        whole_TV, cut_TV = run(model, ids_T[None])[0], run(model, ids_T[None, :last])[0]
    if (off := difference(whole_TV[:last], cut_TV)) > _LEAK[half(model)] * spread(whole_TV):
        raise ModelError(
            f"{who} gives other logits for the same tokens when one more follows, whichever it is: they differ by "
            f"{off:.2g} on average, so they aren't the logits that it generates text with"
        )


def _with_other(ids_T: Tensor, place: int, vocab_size: int) -> Tensor:
    """The same token ids, except for a different one at ``place``."""
    other = ids_T.clone()
    others = [token for token in ids_T.tolist() if token != int(ids_T[place])]
    other[place] = others[0] if others else (int(ids_T[place]) + 1) % vocab_size
    return other


def _advice(model: Any) -> str:
    """The setting in the configuration that lets a model see later tokens, if there is one."""
    config = model.config.get_text_config()
    if getattr(config, "is_decoder", True) is False:
        return "; is_decoder is false in its config.json: it fills in masked tokens, and doesn't predict the next one"
    ahead = [name for name, value in vars(config).items() if "bidirectional" in name and value]
    return f"; {ahead[0]} is set in its config.json" if ahead else "; a model that predicts the next token is needed"
