"""A row, as the readers of other programs' files return it.

Shape legend: L tokens of a sequence, M of its positions that have a list.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Row:
    """One sequence of another program's file.

    Attributes:
        where: file and row, for messages.
        token_ids_L: uint32.
        positions_M: int64, ascending; position ``t`` holds the prediction for token ``t + 1``.
        ids: for each of those positions the listed ids, at least one.
        logprobs: the log-probs of those ids, in nats; in any order.
        skipped: positions whose list can't be used.
    """

    where: str
    token_ids_L: NDArray[np.uint32]
    positions_M: NDArray[np.int64]
    ids: list[NDArray[np.int64]]
    logprobs: list[NDArray[np.float64]]
    skipped: int = 0
