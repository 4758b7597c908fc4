"""Groups the rows of a shard by the ids they hold, so that each group can have a table of its own.

A mixture of unigram distributions, fitted by hard expectation maximisation: in turn, count the ids of every class, then
move each row to the class that would code it in the fewest bits. The first rounds look at a sample of rows, which is as
good and far cheaper. Whatever the classes are, the shard decodes to the same arrays; only its size differs.

Equal input must give equal bytes on any machine, so the bits of an id are rounded to a grid fine enough (1/64 bit) and
small enough that float32 sums of them are exact, in whatever order they are taken.

Shape legend: N rows, K ids a row, C classes, W commonest ids that are told apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

#: A class must repay its table: below so many rows for each, there are fewer classes, or none.
_ROWS_PER_CLASS = 400
_CLASSES = 160
#: Rarer ids say little about the class of a row, and nor do ids far down in it.
_WORDS, _COLUMNS = 8192, 64
#: Rows looked at in each round.
_ROUNDS = (4096,) * 6 + (8192,) * 4 + (16384,) * 4
#: Weight of the shard's distribution in that of a class, in rows.
_SMOOTHING = 8.0
_GRID = 64.0
_SEED = 0
#: Rows whose costs are held in memory at a time.
_BLOCK = 16384


def cluster_rows(ranks_NK: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Return each row's class ``[N]``, or None where classes would not pay.

    Args:
        ranks_NK: ids as places in a table that holds the commonest first.
    """
    rows = len(ranks_NK)
    classes = min(_CLASSES, rows // _ROWS_PER_CLASS)
    if classes < 2:
        return None
    words_NK = torch.from_numpy(np.minimum(ranks_NK[:, :_COLUMNS], _WORDS).astype(np.int32))
    frequency_W = np.bincount(words_NK.numpy().ravel(), minlength=_WORDS + 1) / words_NK.numel()
    random = np.random.default_rng(_SEED)
    bits_WC = prior_C = None
    for wanted in _ROUNDS:
        stride = max(1, rows // wanted)
        sample_NK = words_NK[int(random.integers(0, stride)) :: stride]
        if bits_WC is None or prior_C is None:
            classes_N = random.integers(0, classes, len(sample_NK))
        else:
            classes_N = _assign(sample_NK, bits_WC, prior_C)
        bits_WC, prior_C = _fit(sample_NK, classes_N, classes, frequency_W)
    assert bits_WC is not None
    assert prior_C is not None
    return _commonest_first(_assign(words_NK, bits_WC, prior_C), classes)


def _fit(
    words_NK: torch.Tensor, classes_N: NDArray[np.int64], classes: int, frequency_W: NDArray[np.float64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits that each id costs in each class beyond what it costs in the shard, and bits to name the class.

    A class's distribution is its counts and the shard's distribution, mixed. Ids that the class doesn't hold then cost
    the same, so that logarithms are due only for those that it does.
    """
    width = len(frequency_W)
    pairs = np.sort((words_NK.numpy() * np.int32(classes) + classes_N.astype(np.int32)[:, None]).ravel())
    starts = np.flatnonzero(np.diff(pairs, prepend=np.int32(-1)))
    held, counts = pairs[starts], np.diff(starts, append=len(pairs))
    weight = _SMOOTHING * words_NK.shape[1]
    sizes_C = np.bincount(classes_N, minlength=classes)
    absent_C = np.log2(sizes_C * words_NK.shape[1] / weight + 1)
    ratio = counts / (weight * frequency_W[held // classes])
    bits_WC = np.tile(_on_grid(absent_C), (width, 1))
    bits_WC.reshape(-1)[held] = _on_grid(absent_C[held % classes] - np.log2(ratio + 1))
    bits_WC[-1] = 0  # all the rare ids together: no evidence
    prior_C = _on_grid(-np.log2((sizes_C + 1) / (len(classes_N) + classes)))
    return torch.from_numpy(bits_WC), torch.from_numpy(prior_C)


def _on_grid(bits: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.rint(bits * _GRID).astype(np.float32)


def _assign(words_NK: torch.Tensor, bits_WC: torch.Tensor, prior_C: torch.Tensor) -> NDArray[np.int64]:
    classes_N = np.empty(len(words_NK), np.int64)
    for start in range(0, len(words_NK), _BLOCK):
        cost_BC = torch.nn.functional.embedding_bag(words_NK[start : start + _BLOCK], bits_WC, mode="sum") + prior_C
        classes_N[start : start + _BLOCK] = cost_BC.numpy().argmin(1)
    return classes_N


def _commonest_first(classes_N: NDArray[np.int64], classes: int) -> NDArray[np.uint8]:
    order_C = np.argsort(-np.bincount(classes_N, minlength=classes), kind="stable")
    number_C = np.empty(classes, np.uint8)
    number_C[order_C] = np.arange(classes)
    renamed: NDArray[np.uint8] = number_C[classes_N]
    return renamed
