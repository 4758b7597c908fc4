"""Divide the rows of a shard into classes by their ids, so that each class can have its own table.

The model is a mixture of unigram distributions, fitted by hard expectation maximisation. Each round counts the ids of
every class, and then moves each row to the class that codes it in the fewest bits. The first rounds use a sample of the
rows, which gives equally good classes in less time. The shard decodes to the same arrays with any classes; only its
size differs.

Equal input must give equal bytes on any machine. So the bits of an id are rounded to multiples of 1/64, and are small
enough that float32 sums of them are exact in any order.

Shape legend: N rows, K ids a row, C classes, W the commonest ids, and one for all the rare ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

#: A class needs a table, which takes space: with fewer rows than this for each, there are fewer classes, or none.
_ROWS_PER_CLASS = 400
_CLASSES = 160
#: Only common ids at the first ranks are used: the others say little about the class of a row.
_COMMON_IDS, _COLUMNS = 8192, 64
#: Rows that are used in each round.
_ROUNDS = (4096,) * 6 + (8192,) * 4 + (16384,) * 4
#: Weight of the whole shard's distribution in the distribution of a class, in rows.
_SMOOTHING = 8.0
_GRID = 64.0
_SEED = 0
#: Rows whose costs are held in memory at a time.
_BLOCK = 16384


def cluster_rows(ranks_NK: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Return each row's class ``[N]``, or None if there are too few rows for classes.

    Args:
        ranks_NK: ids as indices of a table with the commonest ids first.
    """
    rows = len(ranks_NK)
    classes = min(_CLASSES, rows // _ROWS_PER_CLASS)
    if classes < 2:
        return None
    common_NK = torch.from_numpy(np.minimum(ranks_NK[:, :_COLUMNS], _COMMON_IDS).astype(np.int32))
    frequency_W = np.bincount(common_NK.numpy().ravel(), minlength=_COMMON_IDS + 1) / common_NK.numel()
    random = np.random.default_rng(_SEED)
    bits_WC = prior_C = None
    for wanted in _ROUNDS:
        stride = max(1, rows // wanted)
        sample_NK = common_NK[int(random.integers(0, stride)) :: stride]
        if bits_WC is None or prior_C is None:
            classes_N = random.integers(0, classes, len(sample_NK))
        else:
            classes_N = _assign(sample_NK, bits_WC, prior_C)
        bits_WC, prior_C = _fit(sample_NK, classes_N, classes, frequency_W)
    assert bits_WC is not None
    assert prior_C is not None
    return _commonest_first(_assign(common_NK, bits_WC, prior_C), classes)


def _fit(
    common_NK: torch.Tensor, classes_N: NDArray[np.int64], classes: int, frequency_W: NDArray[np.float64]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits of each id in each class ``[W, C]``, less its bits in the shard, and bits of each class number ``[C]``.

    A class's distribution is a mix of its own counts and the shard's distribution. So all ids that a class doesn't hold
    have the same bits, and logarithms are needed only for the ids that it holds.
    """
    width = len(frequency_W)
    pairs = np.sort((common_NK.numpy() * np.int32(classes) + classes_N.astype(np.int32)[:, None]).ravel())
    starts = np.flatnonzero(np.diff(pairs, prepend=np.int32(-1)))
    held, counts = pairs[starts], np.diff(starts, append=len(pairs))
    weight = _SMOOTHING * common_NK.shape[1]
    sizes_C = np.bincount(classes_N, minlength=classes)
    absent_C = np.log2(sizes_C * common_NK.shape[1] / weight + 1)
    ratio = counts / (weight * frequency_W[held // classes])
    bits_WC = np.tile(_on_grid(absent_C), (width, 1))
    bits_WC.reshape(-1)[held] = _on_grid(absent_C[held % classes] - np.log2(ratio + 1))
    bits_WC[-1] = 0  # the rare ids say nothing about the class
    prior_C = _on_grid(-np.log2((sizes_C + 1) / (len(classes_N) + classes)))
    return torch.from_numpy(bits_WC), torch.from_numpy(prior_C)


def _on_grid(bits: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.rint(bits * _GRID).astype(np.float32)


def _assign(common_NK: torch.Tensor, bits_WC: torch.Tensor, prior_C: torch.Tensor) -> NDArray[np.int64]:
    classes_N = np.empty(len(common_NK), np.int64)
    for start in range(0, len(common_NK), _BLOCK):
        cost_BC = torch.nn.functional.embedding_bag(common_NK[start : start + _BLOCK], bits_WC, mode="sum") + prior_C
        classes_N[start : start + _BLOCK] = cost_BC.numpy().argmin(1)
    return classes_N


def _commonest_first(classes_N: NDArray[np.int64], classes: int) -> NDArray[np.uint8]:
    order_C = np.argsort(-np.bincount(classes_N, minlength=classes), kind="stable")
    number_C = np.empty(classes, np.uint8)
    number_C[order_C] = np.arange(classes)
    renamed: NDArray[np.uint8] = number_C[classes_N]
    return renamed
