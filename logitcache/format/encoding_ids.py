"""Token ids are stored as indices of tables, called places. Common ids come first, so most places are small numbers.

Top-k ids use two tables. One is shared: it lists every id that occurs in the shard, the commonest first. The other
belongs to a class of rows: it lists the ids that are common in that class. Rows are divided into classes by their ids
(see ``classes.py``): for example, positions before a noun and positions before a year can have their own tables. A
place below the size of the class's table is an index of that table; larger places go on into the shared table.

Within a table, ids of about equal frequency are in ascending order: so their differences are small and store well.

Shape legend: N rows, K ids a row, C classes, T entries of the shared table, M entries of all class tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CorruptCacheError
from logitcache.format.classes import cluster_rows
from logitcache.format.encoding_symbols import SymbolReader, to_symbols
from logitcache.format.stored import ArrayReader, row_blocks, to_planes

# Above this, counting every id of the vocabulary costs more memory than sorting the ids that occur.
_DENSE_VOCABULARY = 1 << 22
#: Only the commonest ids may be in a class's table: for a rarer id, the entry takes more space than it saves.
_CLASS_IDS = 1 << 14
#: An id must occur at least so often in a class to be in its table.
_CLASS_COUNT = 3

_Uint32 = NDArray[np.uint32]


def encode_tokens(token_ids_L: NDArray[np.uint32]) -> dict[str, NDArray[Any]]:
    """Store the token ids of the sequences."""
    table_T, places_L = _rank(token_ids_L)
    return {"token_table": _differences(table_T)} | to_symbols("token_places", places_L)


def decode_tokens(arrays: ArrayReader, tokens: int) -> NDArray[np.uint32]:
    """Undo :func:`encode_tokens`.

    Raises:
        CorruptCacheError: the arrays are malformed.
    """
    table_T = _read_table(arrays, "token_table", np.uint32)
    places_L = SymbolReader.read(arrays, "token_places", tokens)
    return _look_up(table_T, places_L, "token_places")


def encode_topk_ids(ids_NK: NDArray[np.uint32], order_N: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Store the top-k ids. The classes are stored in the order ``order_N``, which sorts the rows by their token."""
    table_T, ranks_NK = _rank(ids_NK)
    stored: dict[str, NDArray[Any]] = {"id_table": _differences(table_T)}
    classes_N = cluster_rows(ranks_NK)
    if classes_N is None:
        return stored | to_symbols("id_places", np.ascontiguousarray(ranks_NK.T))
    if len(table_T) + _CLASS_IDS > 1 << 16:  # the largest place is the size of both tables together
        ranks_NK = ranks_NK.astype(np.uint32, copy=False)
    sizes_C, entries_M, places_NK = _class_places(ranks_NK, classes_N, len(table_T))
    stored["id_class_sizes"] = sizes_C
    stored["id_class_tables"] = _differences(entries_M)
    stored["id_classes"] = classes_N[order_N]
    return stored | to_symbols("id_places", np.ascontiguousarray(places_NK.T))


def decode_topk_ids(
    arrays: ArrayReader, shape_KN: tuple[int, int], order_N: NDArray[np.int64], vocab_size: int
) -> NDArray[np.uint32]:
    """Undo :func:`encode_topk_ids`; the result is ``[K, N]``.

    Raises:
        CorruptCacheError: the arrays are malformed.
    """
    table: _Uint32 = _read_table(arrays, "id_table", np.uint32)
    if len(table) and int(table.max()) >= vocab_size:
        raise CorruptCacheError(f"id_table: id {int(table.max())} is outside the vocabulary of {vocab_size}")
    table, sizes_N, first_N, rest_N = _read_classes(arrays, table, order_N)
    places = SymbolReader(arrays, "id_places", shape_KN)
    ids_KN = np.empty(shape_KN, np.uint32)
    for start, end in row_blocks(*shape_KN):
        places_KN = places.rows(start, end)
        index_KN = places_KN + np.where(places_KN < sizes_N, first_N, rest_N)
        _check_below(index_KN, len(table), "id_places")
        # mode="clip" avoids a copy of ``out``; nothing is clipped, as the indices were checked.
        table.take(index_KN, out=ids_KN[start:end], mode="clip")
    places.finish()
    return ids_KN


def _read_classes(
    arrays: ArrayReader, table_T: _Uint32, order_N: NDArray[np.int64]
) -> tuple[_Uint32, _Uint32, _Uint32, _Uint32]:
    """Join all tables to one, the shared table last.

    Returns:
        The joined table; and for each row (or for all rows, if there are no classes) the size of its class's table,
        what to add to a place below that size, and what to add to a larger place, to get an index of the joined table.
    """
    if "id_classes" not in arrays:
        nothing = np.zeros(1, np.uint32)
        return table_T, nothing, nothing, nothing
    sizes_C = arrays.array("id_class_sizes", np.uint32, (None,))
    entries_M = _read_table(arrays, "id_class_tables", np.uint16)
    if int(sizes_C.sum(dtype=np.int64)) != len(entries_M):
        raise CorruptCacheError(f"id_class_sizes don't add up to the {len(entries_M)} entries of id_class_tables")
    classes_N = np.empty(len(order_N), np.uint8)
    classes_N[order_N] = arrays.array("id_classes", np.uint8, (len(order_N),))
    _check_below(classes_N, len(sizes_C), "id_classes")
    sizes_N: _Uint32 = sizes_C[classes_N]
    first_N: _Uint32 = (np.cumsum(sizes_C, dtype=np.uint32) - sizes_C)[classes_N]
    table = np.concatenate([_look_up(table_T, entries_M, "id_class_tables"), table_T])
    return table, sizes_N, first_N, np.uint32(len(entries_M)) - sizes_N


def _rank(ids: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[Any]]:
    """The table ``[T]`` of the ids that occur, by frequency in powers of two, and each id's place in it."""
    found, counts, inverse = _count(ids)
    order = np.lexsort((found, -_magnitude(counts, 1)))
    place = np.empty(len(found), np.uint16 if len(found) <= 1 << 16 else np.uint32)
    place[order] = np.arange(len(found))
    if inverse is None:
        place_of_id = np.zeros(int(found[-1]) + 1 if len(found) else 0, place.dtype)
        place_of_id[found] = place
        return found[order].astype(np.uint32), place_of_id[ids]
    return found[order].astype(np.uint32), place[inverse]


def _count(ids: NDArray[np.uint32]) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64] | None]:
    """The ids that occur, ascending; how often; and, for huge vocabularies only, the index of each among them."""
    if ids.size == 0 or int(ids.max()) < _DENSE_VOCABULARY:
        counts = np.bincount(ids.ravel())
        found = np.flatnonzero(counts)
        return found, counts[found], None
    found, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    return found, counts, inverse.reshape(ids.shape)


def _class_places(
    ranks_NK: NDArray[Any], classes_N: NDArray[np.uint8], table_size: int
) -> tuple[_Uint32, NDArray[np.uint16], NDArray[Any]]:
    """Make the class tables: sizes ``[C]``, entries ``[M]`` (places in the shared table), and places ``[N, K]``."""
    width = min(_CLASS_IDS, table_size)
    order_N = np.argsort(classes_N, kind="stable")
    sorted_NK = ranks_NK[order_N]
    ends_C = np.cumsum(np.bincount(classes_N))
    tables = []
    for start, end in zip([0, *ends_C[:-1]], ends_C, strict=True):
        table, sorted_NK[start:end] = _table_of_class(sorted_NK[start:end], width)
        tables.append(table)
    places_NK = np.empty_like(sorted_NK)
    places_NK[order_N] = sorted_NK
    return np.array([len(table) for table in tables], np.uint32), np.concatenate(tables), places_NK


def _table_of_class(ranks_RK: NDArray[Any], width: int) -> tuple[NDArray[np.uint16], NDArray[Any]]:
    """The table of one class, from its rows; and the places of these rows' ids in both tables."""
    # The last column counts all ids that are too rare for a class's table.
    counts_W = np.bincount(np.minimum(ranks_RK, width).ravel(), minlength=width + 1)
    table = np.flatnonzero(counts_W[:width] >= _CLASS_COUNT)
    table = table[np.lexsort((table, -_magnitude(counts_W[table], 2)))]
    beyond_RK = ranks_RK + ranks_RK.dtype.type(len(table))
    place_W = np.arange(width + 1, dtype=ranks_RK.dtype) + ranks_RK.dtype.type(len(table))
    place_W[table] = np.arange(len(table))
    places_RK = np.where(ranks_RK < width, place_W[np.minimum(ranks_RK, width)], beyond_RK)
    return table.astype(np.uint16), places_RK


def _magnitude(counts: NDArray[np.int64], steps_per_octave: int) -> NDArray[np.int64]:
    magnitude: NDArray[np.int64] = np.floor(steps_per_octave * np.log2(counts)).astype(np.int64)
    return magnitude


def _differences(table: NDArray[Any]) -> NDArray[np.uint8]:
    """Differences of neighbours, modulo the size of the table's integer type, as byte planes."""
    return to_planes(np.diff(table, prepend=table.dtype.type(0)))


def _read_table(arrays: ArrayReader, name: str, dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    return np.cumsum(arrays.planes(name, dtype, (None,)), dtype=dtype)


def _check_below(values: NDArray[Any], limit: int, what: str) -> None:
    if values.size and int(values.max()) >= limit:
        raise CorruptCacheError(f"{what}: {int(values.max())} points beyond a table of {limit} entries")


def _look_up(table: NDArray[np.uint32], places: NDArray[Any], what: str) -> NDArray[np.uint32]:
    _check_below(places, len(table), what)
    ids: NDArray[np.uint32] = table[places]
    return ids
