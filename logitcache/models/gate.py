"""What a teacher or student must hold to: it predicts each token from the ones before, and nothing else changes that.

Tried on a few tokens when a model is loaded. Weights are not looked at here: those are
:func:`logitcache.models.load_language_model`'s.

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

# What may be seen of a later token at an earlier position, as a share of what it changes at its own: rounding, no more.
# Half precision rounds differently where a router groups tokens otherwise.
_LEAK = {False: 1e-4, True: 0.03}


def check_language_model(model: Any, what: str, name: str) -> Head:
    """Try a model on a few tokens, and take it apart.

    A model whose logits there are not numbers passes: whoever uses it reports them by position.

    Args:
        model: a transformers language model, or a PEFT model around one.
        what: what it is to the caller, for messages: teacher, student …
        name: what the user calls it, for messages.

    Raises:
        ModelError: it gives no logits for text alone, gives others for the same tokens, or a token changes what stands
            before it.
    """
    language_model, refusal = without_adapter(model)
    if refusal:
        raise ModelError(f"{what} {name} can't be used: {refusal}")
    try:
        head = find_head(language_model)
    except ModelError as error:
        raise ModelError(f"{what} {name}: {error}") from error
    _check_causal(language_model, f"{what} {name}", apart=not head.alone)
    if head.alone:
        _check_beginning(language_model, f"{what} {name}")
    return head


@torch.no_grad()
def _check_causal(model: Any, who: str, *, apart: bool) -> None:
    """Change a token: what stands before it must stay as it was.

    Args:
        apart: rows of a batch don't change each other, so that one pass tells all.

    Raises:
        ModelError: it doesn't; the message says by how much.
    """
    ids_T = probe_ids(model)
    places = len(ids_T) - 1, len(ids_T) // 2
    rows = [ids_T, ids_T, *(_with_other(ids_T, place, vocabulary(model)) for place in places)]
    with evaluating(model):
        passes = run(model, torch.stack(rows)) if apart else [run(model, row[None])[0] for row in rows]
    own_TV, again_TV, *changed = passes
    if not torch.isfinite(own_TV).any():
        return
    limit = _LEAK[half(model)]
    effect = max(difference(own_TV[place], other_TV[place]) for place, other_TV in zip(places, changed, strict=True))
    if (noise := difference(own_TV, again_TV)) > limit * effect:
        raise ModelError(
            f"{who} gives other values for the same tokens: its logits differ by {noise:.2g} on average, so nothing "
            "that it says can be kept"
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
    """Cut the last token off: a row's beginning must stay as it was, or nothing holds for what the model will write.

    Raises:
        ModelError: it doesn't; the message says by how much.
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
            f"{off:.2g} on average, so they aren't what it writes by"
        )


def _with_other(ids_T: Tensor, place: int, words: int) -> Tensor:
    """The same tokens, but for one."""
    other = ids_T.clone()
    plain = [word for word in ids_T.tolist() if word != int(ids_T[place])]
    other[place] = plain[0] if plain else (int(ids_T[place]) + 1) % words
    return other


def _advice(model: Any) -> str:
    """What in the configuration makes a model look ahead, if it says so."""
    config = model.config.get_text_config()
    if getattr(config, "is_decoder", True) is False:
        return "; is_decoder is false in its config.json: it fills gaps, and doesn't predict the next token"
    ahead = [name for name, value in vars(config).items() if "bidirectional" in name and value]
    return f"; {ahead[0]} is set in its config.json" if ahead else "; it can't be a teacher or student of next tokens"
