"""Token ids as ranks: the commonest id of the shard is 0, the next 1, …, so that most codes are small."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CorruptCacheError

# Above this, counting every id of the vocabulary costs more memory than sorting the ids that occur.
_DENSE_VOCABULARY = 1 << 22


def rank_ids(ids: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[Any]]:
    """Return the table of ids ``[T]``, commonest first (ties by id), and each id's place in it, as uint16 or uint32."""
    flat = ids.ravel()
    if flat.size == 0:
        return np.zeros(0, np.uint32), np.zeros(ids.shape, np.uint16)
    if int(flat.max()) < _DENSE_VOCABULARY:
        counts = np.bincount(flat)
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        rank = np.zeros(len(counts), np.uint16 if len(order) <= 1 << 16 else np.uint32)
        rank[order] = np.arange(len(order))
        return order.astype(np.uint32), rank[ids]
    found, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.zeros(len(found), np.uint16 if len(order) <= 1 << 16 else np.uint32)
    rank[order] = np.arange(len(order))
    return found[order].astype(np.uint32), rank[inverse.reshape(ids.shape)]


def look_up(table: NDArray[np.uint32], codes: NDArray[Any], what: str) -> NDArray[np.uint32]:
    """``table[codes]``, checked.

    Raises:
        CorruptCacheError: a code is beyond the table.
    """
    if codes.size and int(codes.max()) >= len(table):
        raise CorruptCacheError(f"{what}: code {int(codes.max())} is beyond the table of {len(table)} ids")
    ids: NDArray[np.uint32] = table[codes]
    return ids
