"""Read rows of token ids, and the columns that say which tokens are padding and which are targets."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from logitcache.data.files.sources import Row
from logitcache.data.shorten import shorten
from logitcache.errors import RowError

#: Columns that say which tokens are targets, as trainers name them.
MASKS = ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask")
#: All columns that are read in addition to the ids.
EXTRA_COLUMNS = ("attention_mask", "position_ids", "labels", *MASKS)
_NOT_PREDICTED = -100


@dataclass(frozen=True, eq=False)
class TokenRow:
    """Token ids; ``predicted`` is True for each target, or None if the row doesn't say which are."""

    token_ids: list[int]
    predicted: list[bool] | None


def token_row(ids: list[int], row: Row, where: str) -> TokenRow:
    """The row's token ids without padding, and which of them are targets.

    Raises:
        RowError: one of these columns has another length, holds wrong values, or contradicts the ids.
    """
    span = _unpadded(row.get("attention_mask"), ids, where)
    kept = ids[span]
    positions = _column(row, "position_ids", ids, span, where)
    if positions is not None and any(b != a + 1 for a, b in itertools.pairwise(positions)):
        raise RowError(f"{where}: position_ids begin again inside the row: give each document a row of its own")
    predicted: list[bool] | None = None
    labels = _column(row, "labels", ids, span, where)
    if labels is not None:
        predicted = [label != _NOT_PREDICTED for label in labels]
        for place, (label, token) in enumerate(zip(labels, kept, strict=True)):
            if label not in (_NOT_PREDICTED, token):
                raise RowError(
                    f"{where}: labels[{span.start + place}] is {shorten(label)} where the token is {shorten(token)}: "
                    "labels must repeat the tokens (not shifted), or be -100"
                )
    for name in MASKS:
        if (mask := _column(row, name, ids, span, where)) is not None:
            before = [True] * len(kept) if predicted is None else predicted
            predicted = [bool(marked) and was for marked, was in zip(mask, before, strict=True)]
    return TokenRow(kept, predicted)


def prompt_ids(row: TokenRow) -> list[int]:
    """The tokens before the last run of targets, which is the row's own answer.

    All tokens if the row doesn't say which are targets, or if the run is at the beginning.
    """
    if row.predicted is None or True not in row.predicted:
        return row.token_ids
    end = len(row.predicted) - row.predicted[::-1].index(True)
    begin = next((place for place in reversed(range(end)) if not row.predicted[place]), -1) + 1
    return row.token_ids[:begin] or row.token_ids


def _unpadded(attention: Any, ids: list[int], where: str) -> slice:
    """The range of the tokens that aren't padding, by the attention mask.

    Raises:
        RowError: the mask has another length, or masks tokens between others.
    """
    if attention is None:
        return slice(0, len(ids))
    _same_length("attention_mask", attention, ids, where)
    _whole_numbers("attention_mask", attention, where)
    seen = [place for place, mark in enumerate(attention) if mark]
    span = slice(seen[0], seen[-1] + 1) if seen else slice(0, 0)
    if len(seen) != span.stop - span.start:
        raise RowError(f"{where}: attention_mask hides tokens in the middle of the row; only padding can be left out")
    return span


def _column(row: Row, name: str, ids: list[int], span: slice, where: str) -> list[Any] | None:
    """The values of a column with one value per token, without those of padding; None if there is no column."""
    values = row.get(name)
    if values is None:
        return None
    _same_length(name, values, ids, where)
    _whole_numbers(name, values, where)
    return list(values)[span]


def _whole_numbers(name: str, values: Any, where: str) -> None:
    if not all(isinstance(value, int) for value in values):
        raise RowError(f"{where}: {name} holds something else than whole numbers")


def _same_length(name: str, values: Any, ids: list[int], where: str) -> None:
    if not isinstance(values, list | tuple) or len(values) != len(ids):
        size = len(values) if isinstance(values, list | tuple) else type(values).__name__
        raise RowError(f"{where}: {size} {name} for {len(ids)} token ids")
