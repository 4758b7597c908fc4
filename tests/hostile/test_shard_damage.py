"""Shards that are damaged or made to mislead: always ``CorruptCacheError``, before anything large is allocated.

What mutates whole caches, with limits on memory and time, is in ``test_mutations.py``; here is one case for each rule
of the format, and bytes changed at random. Ten times as many of those with ``LOGITCACHE_FULL_FUZZ=1``.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shard_strategies import random_shard, stored_shard

from logitcache.errors import CorruptCacheError
from logitcache.format.encoding import Encoding, encode_arrays
from logitcache.format.formats import ShardFormatName, decode_shard, encode_shard, get_format
from logitcache.format.stored import StoredShard

pytestmark = pytest.mark.hostile
FORMATS: list[ShardFormatName] = ["zarr", "arrow"]
any_format = pytest.mark.parametrize("shard_format", FORMATS)
CHANGES = 25_000 if os.environ.get("LOGITCACHE_FULL_FUZZ") else 2_500

Arrays = dict[str, Any]
Change = Callable[[Arrays, dict[str, Any]], object]


def put(name: str, place: Any, value: Any) -> Change:
    """Set items of an array."""

    def change(arrays: Arrays, header: dict[str, Any]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][place] = value

    return change


def replace(name: str, make: Callable[[Any], Any]) -> Change:
    """Put another array in an array's place."""
    return lambda arrays, header: arrays.update({name: make(arrays[name])})


def head(**fields: Any) -> Change:
    """Change the header."""
    return lambda arrays, header: header.update(fields)


RULES: dict[str, tuple[Change, str]] = {
    "version": (head(logitcache_shard=2), "not a shard of format 1: its header says '2'"),
    "no version": (lambda arrays, header: header.pop("logitcache_shard"), "not a shard of format 1"),
    "unknown field": (head(codec="pickle"), "codec: Extra inputs"),
    "no tokens": (lambda arrays, header: header.pop("tokens"), "tokens: Field required"),
    "text for a number": (head(tokens="1140"), "tokens: Input should be a valid integer"),
    "K above V": (head(vocab_size=6), "top_k 7 of a vocabulary of 6"),
    "step no power of two": (head(step=0.03), "step 0.03"),
    "step with floats": (head(values="float32"), "step 0.03125 for values stored as float32"),
    "other kind of values": (head(values="float16", step=0.0), "logprob_differences is missing"),
    "huge K": (head(top_k=2**31, vocab_size=2**32), "too many for its size"),
    "huge N": (head(targets=2**31), "too many for its size"),
    "huge L": (head(tokens=2**39), "too many for its size"),
    "array gone": (lambda arrays, header: arrays.pop("residual"), "residual is missing"),
    "array more": (lambda arrays, header: arrays.update(pickle=np.zeros(3, np.uint8)), "pickle"),
    "dtype": (replace("sequence_lengths", lambda a: a.astype(np.float32)), "sequence_lengths is float32"),
    "shape": (replace("id_places", lambda a: a[:-1]), r"id_places is uint8 \(6, "),
    "too many planes": (replace("token_table", lambda a: np.concatenate([a, a, a, a])), "byte planes"),
    "no planes": (replace("residual", lambda a: a[:0]), "byte planes"),
    "lengths": (put("sequence_lengths", 0, 7), "add up to 47 tokens; the header says 1140"),
    "lengths that wrap": (put("sequence_lengths", 0, 2**32 - 1), "add up to"),
    "mask count": (put("target_mask", slice(0, 9), 0), "target_mask marks"),
    "token place": (
        lambda arrays, header: put("token_places", np.argmax(arrays["token_places"] > 95), 159)(arrays, header),
        "token_places: [0-9]+ points beyond a table",
    ),
    "token table short": (replace("token_table", lambda a: a[:, :3]), "points beyond a table of 3"),
    "id beyond V": (put("id_table", (slice(None), 0), 255), "is outside the vocabulary of 3000"),
    "class": (put("id_classes", 3, 200), "id_classes: 200 points beyond a table of 2"),
    "class sizes": (put("id_class_sizes", 0, 1), "don't add up"),
    "class sizes that wrap": (put("id_class_sizes", 0, 2**32 - 1), "don't add up"),
    "class entry": (put("id_class_tables", (slice(None), 0), 255), "id_class_tables: [0-9]+ points beyond"),
    "class tables gone": (lambda arrays, header: arrays.pop("id_class_tables"), "id_class_tables is missing"),
    "classes gone": (
        lambda arrays, header: arrays.pop("id_classes"),
        "points beyond a table|aren't part of the format",
    ),
    "id place": (put("id_places", (0, 0), 243), "id_places"),
    "symbol without bits": (put("id_places", (0, 0), 255), "symbol 255 needs extra bits"),
    "extra bits gone": (lambda arrays, header: arrays.pop("id_places_extra4"), "needs extra bits that are missing"),
    "extra bits short": (replace("id_places_extra4", lambda a: a[:-2]), "id_places_extra4 is too short"),
    "extra bits long": (replace("id_places_extra4", lambda a: np.append(a, a)), "id_places_extra4 is too long"),
    "steps short": (replace("logprob_more", lambda a: a[:, :-1]), "logprob_more is too short"),
    "steps long": (replace("logprob_more", lambda a: np.concatenate([a, a], 1)), "logprob_more is too long"),
    "steps that wrap": (
        replace("logprob_more", lambda a: np.full((a.shape[1], 2), [0xF0, 0xFF], np.uint8).T),
        "fall below",
    ),
    "statistics shape": (replace("logit_std", lambda a: a[:, 1:]), "logit_std is uint8"),
}


@any_format
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_kept(shard_format: ShardFormatName, rule: str) -> None:
    change, message = RULES[rule]
    stored = stored_shard()
    arrays, header = dict(stored.arrays), dict(stored.attributes)
    change(arrays, header)
    payload = get_format(shard_format).write(StoredShard(arrays, header))
    with pytest.raises(CorruptCacheError, match=message):
        decode_shard(payload, shard_format)


@any_format
@pytest.mark.parametrize(
    ("preset", "change", "message"),
    [
        ("exact", put("logprob_differences", (slice(None), 0, 0), 255), "rise, or are not numbers"),  # NaN
        ("exact", put("logprob_differences", (slice(None), 3, 0), 255), "rise, or are not numbers"),
        ("half", put("logprob_differences", (1, 2, 5), 0x7C), "rise, or are not numbers"),
        ("exact", put("residual", (slice(None), 0), 255), "residual log-prob is not a number"),
        ("half", put("residual", (slice(None), 0), [0, 0x7C]), r"not a number, or \+inf"),
        ("compact", put("logprob_exception_index", -1, 2**32 - 1), "logprob_exception_index is out of range"),
        ("compact", replace("logprob_exception_index", lambda a: a[::-1].copy()), "out of range or out of order"),
        ("compact", put("logprob_exception_value", 0, np.nan), "rise, or are not numbers"),
        ("compact", replace("logprob_exception_value", lambda a: a[1:]), "logprob_exception_value is float32"),
        ("compact", put("residual_exception_value", 0, np.inf), r"not a number, or \+inf"),
    ],
)
def test_numbers_are_checked(shard_format: ShardFormatName, preset: str, change: Change, message: str) -> None:
    stored = stored_shard(preset, values="model" if preset != "compact" else "absurd")
    arrays, header = dict(stored.arrays), dict(stored.attributes)
    change(arrays, header)
    payload = get_format(shard_format).write(StoredShard(arrays, header))
    with pytest.raises(CorruptCacheError, match=message):
        decode_shard(payload, shard_format)


def test_last_token_with_targets() -> None:
    stored = stored_shard()
    mask = np.unpackbits(stored.arrays["target_mask"], bitorder="little")
    mask[[1099, np.flatnonzero(mask)[0]]] = 1, 0
    arrays = {**stored.arrays, "target_mask": np.packbits(mask, bitorder="little")}
    with pytest.raises(CorruptCacheError, match="last token of a sequence"):
        decode_shard(get_format("zarr").write(StoredShard(arrays, stored.attributes)), "zarr")


@pytest.mark.parametrize(
    "payload", [b"", b"PK", b"ARROW1", b"PK\x03\x04" + bytes(100), b"ARROW1\0\0" + bytes(99) + b"ARROW1"]
)
@any_format
def test_not_a_shard_at_all(shard_format: ShardFormatName, payload: bytes) -> None:
    with pytest.raises(CorruptCacheError):
        decode_shard(payload, shard_format)


def damage(payload: bytes, source: random.Random) -> bytes:
    """Flip bits, overwrite, cut, repeat or drop a part."""
    data = bytearray(payload)
    for _ in range(source.choice((1, 1, 1, 3, 10))):
        if not data:
            break
        place, length = source.randrange(len(data)), source.choice((1, 1, 4, 8, 64))
        match source.randrange(6):
            case 0:
                data[place] ^= 1 << source.randrange(8)
            case 1:
                data[place : place + length] = source.randbytes(length)
            case 2:
                data[place : place + length] = bytes([source.choice((0, 255))]) * length
            case 3:
                del data[place : place + length]
            case 4:
                data[place:place] = data[max(0, place - length) : place]
            case _:
                del data[max(place, 8) :]
    return bytes(data)


@any_format
@pytest.mark.parametrize("preset", ["exact", "compact"])
@pytest.mark.timeout(1200)
def test_bytes_changed_at_random(shard_format: ShardFormatName, preset: str) -> None:
    shards = [
        random_shard(seed, [9, 4], 300, 5, values, statistics=True) for seed, values in enumerate(("model", "absurd"))
    ]
    payloads = [encode_shard(shard, Encoding.checked(preset, None), shard_format) for shard in shards]
    source = random.Random(f"{shard_format} {preset}")
    messages = []
    for _ in range(CHANGES):
        try:
            decode_shard(damage(source.choice(payloads), source), shard_format)
        except CorruptCacheError as error:
            messages.append(str(error))
    assert all(0 < len(message.splitlines()) <= 2 for message in messages)
    # Bare bytes of an Arrow file aren't checked by anything but the digest, which comes before.
    assert len(messages) > CHANGES * (0.9 if shard_format == "zarr" else 0.4)


def damage_arrays(stored: StoredShard, source: random.Random) -> StoredShard:
    """Change a few arrays or header fields, as bytes of the same array or in size, and leave the container sound."""
    arrays, header = dict(stored.arrays), dict(stored.attributes)
    for _ in range(source.choice((1, 1, 2, 4))):
        name = source.choice(sorted(arrays))
        array = arrays[name].copy()
        match source.randrange(8):
            case 0:
                header[source.choice(sorted(header))] = source.choice(
                    (0, 1, 2, 3, 7, 255, 2**20, 2**32, -1, 0.5, "steps")
                )
            case 1:
                arrays[name] = array[: source.randrange(len(array) + 1)]
            case 2:
                arrays[name] = np.concatenate([array, array])
            case 3:
                arrays[name] = array.reshape(-1)
            case _ if array.size:
                flat = array.reshape(-1).view(np.uint8)
                for _ in range(source.choice((1, 3, 100))):
                    flat[source.randrange(len(flat))] = source.choice(
                        (0, 1, 15, 95, 127, 128, 243, 255, source.randrange(256))
                    )
                arrays[name] = array
    return StoredShard(arrays, header)


@any_format
@pytest.mark.timeout(1200)
def test_arrays_changed_at_random(shard_format: ShardFormatName) -> None:
    shards = [
        random_shard(seed, [9, 4], 300, 5, values, statistics=True) for seed, values in enumerate(("model", "absurd"))
    ]
    stored = [
        encode_arrays(shard, Encoding.checked(preset, None)) for shard in shards for preset in ("compact", "half")
    ]
    stored.append(stored_shard())
    source = random.Random(shard_format)
    read = 0
    for _ in range(CHANGES // 5):
        payload = get_format(shard_format).write(damage_arrays(source.choice(stored), source))
        try:
            decoded = decode_shard(payload, shard_format)
        except CorruptCacheError:
            continue
        read += 1
        # What is read after all is a shard that makes sense.
        encode_arrays(decoded, Encoding(preset="exact"))
    assert 0 < read < CHANGES // 5 / 2


@any_format
def test_one_array_of_a_damaged_file(shard_format: ShardFormatName) -> None:
    """Whatever is changed or cut off, either the array comes out or the damage is told."""
    chance = random.Random(11)
    payload = encode_shard(random_shard(4, [60, 0, 40], 3000, 7), Encoding(), shard_format)
    reader, outcomes = get_format(shard_format), {"read": 0, "refused": 0}
    with tempfile.TemporaryFile() as file:
        for _ in range(CHANGES // 5):
            damaged = bytearray(payload)
            for _ in range(chance.randint(1, 4)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            if chance.random() < 0.2:
                del damaged[chance.randrange(len(damaged)) :]
            file.seek(0)
            file.truncate()
            file.write(damaged)
            file.flush()
            try:
                reader.read_one(file, "sequence_lengths")
            except CorruptCacheError:
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
    assert min(outcomes.values()) > 0
