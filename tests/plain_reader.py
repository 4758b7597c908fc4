"""A reader of Zarr shards of every preset, written from docs/reference/shards.md with nothing of logitcache's."""

from __future__ import annotations

import numpy as np
import zarr

WIDTHS = 1 << np.repeat([0, 4, 8, 16, 32], [96, 64, 84, 11, 1])  # of the 256 symbols
BASES = np.cumsum(WIDTHS) - WIDTHS


def planes(a, dtype="u4"):
    return sum(plane.astype(dtype) << np.dtype(dtype).type(8 * i) for i, plane in enumerate(a)).astype(dtype)


def symbols(a, name):
    places = BASES[a[name]]
    for bits in (4, 8, 16, 32):
        if (extra := a.get(f"{name}_extra{bits}")) is not None:
            here = WIDTHS[a[name]] == 1 << bits
            extra = np.stack([extra & 15, extra >> 4], 1).ravel() if bits == 4 else planes(extra)
            places[here] += extra[: here.sum()]
    return places


def read_shard(path):
    group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
    a, head = {name: array[...] for name, array in group.arrays()}, group.attrs
    mask = np.unpackbits(a["target_mask"], count=head["tokens"], bitorder="little").astype(bool)
    tokens = np.cumsum(planes(a["token_table"]), dtype="u4")[symbols(a, "token_places")]
    table, places = np.cumsum(planes(a["id_table"]), dtype="u4"), symbols(a, "id_places")
    if "id_classes" in a:
        sizes, entries = a["id_class_sizes"], np.cumsum(planes(a["id_class_tables"], "u2"), dtype="u2")
        row_class = a["id_classes"][np.argsort(np.argsort(tokens[mask], kind="stable"))]
        size, first = sizes[row_class], (np.cumsum(sizes, dtype="u4") - sizes)[row_class]
        places = np.where(places < size, places + first, places - size + len(entries))
        table = np.append(table[entries], table)
    bits = {"steps": "u2", "float16": "u2", "float32": "u4"}[head["values"]]
    if head["values"] == "steps":
        steps = np.stack([a["logprob_pairs"] & 15, a["logprob_pairs"] >> 4], 1).astype(bits)
        steps = steps.reshape(-1, head["targets"])[: head["top_k"]]
        steps[steps == 15] += planes(a["logprob_more"], bits)
    else:
        steps = planes(a["logprob_differences"], bits)
    found = {"logprob": np.cumsum(steps, 0, dtype=bits).T.copy(), "residual": planes(a["residual"], bits)}
    for name, codes in found.items():
        is_steps, step = head["values"] == "steps", head["step"]
        found[name] = np.where(codes == 65535, -np.inf, codes * -step) if is_steps else codes.view(head["values"])
        found[name] = found[name].astype("f4")
        if f"{name}_exception_index" in a:
            found[name].reshape(-1)[a[f"{name}_exception_index"]] = a[f"{name}_exception_value"]
    return {"tokens": tokens, "lengths": a["sequence_lengths"], "mask": mask, "ids": table[places].T, **found}
