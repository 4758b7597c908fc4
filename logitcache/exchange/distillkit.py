"""Read rows of DistillKit's Parquet layout: packed ids, and log-probs as exact values, a polynomial and quantised rest.

The decoder follows ``distillkit.compression`` (Apache-2.0, Arcee AI): bits are packed from the highest to the lowest,
deltas run along K, and the integers of a bin are scaled. Values have the error of that codec and no other.

Shape legend: L tokens of a sequence, M positions that have a list, B bytes per list, K entries per list.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from logitcache.errors import DataError
from logitcache.exchange.rows import Row
from logitcache.utils.files import storage_error
from logitcache.utils.reasons import reason
from logitcache.utils.validation import first_fault

CONFIG_NAME = "compression_config.yaml"
Term = Literal["float16", "bfloat16", "float32", "float64"]
_BYTES: dict[str, int] = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_COLUMNS = ("input_ids", "compressed_logprobs", "bytepacked_indices")


class Bin(BaseModel):
    """Quantised values that share a scale."""

    model_config = ConfigDict(frozen=True)

    scale_dtype: Term
    element_bits: int = Field(ge=1, le=32)
    num_elements: int = Field(ge=1, le=1 << 20)


class Compression(BaseModel):
    """DistillKit's ``DistributionQuantizationConfig``, as its YAML file has it."""

    model_config = ConfigDict(frozen=True)

    d: int = Field(ge=1, le=2**32)
    k: int = Field(ge=1, le=1 << 20)
    exact_k: int = Field(ge=0)
    exact_dtype: Term = "float32"
    polynomial_terms: tuple[int | Literal["sqrt", "exp"], ...] | None = None
    term_dtype: Term = "float32"
    residual_bins: tuple[Bin, ...] = ()
    delta_encoding: bool = True
    normalize_t: bool = False


def distillkit_rows(places: list[Path]) -> Iterator[Row]:
    """The rows of directories, or of Parquet files with their settings in the same directory.

    Raises:
        DataError: settings or columns are missing, or don't fit the data.
        StorageError: the system refused to read a file.
    """
    for path in _files(places):
        config = _config(path.parent / CONFIG_NAME)
        try:
            file = pq.ParquetFile(path)
            missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise DataError(f"{path} has no column {missing[0]}: it isn't DistillKit's layout")
            number = 0
            for batch in file.iter_batches(batch_size=64, columns=list(_COLUMNS)):
                for row in batch.to_pylist():
                    number += 1
                    yield _row(row, config, f"{path.name} row {number}")
        except OSError as error:
            raise storage_error("read", path, error) from error
        except pa.ArrowException as error:
            raise DataError(f"{path} is not a Parquet file: {reason(error)}") from error


def _row(row: dict[str, Any], config: Compression, where: str) -> Row:
    tokens_L = np.array(row["input_ids"], np.uint32)
    packed, coded = row["bytepacked_indices"], row["compressed_logprobs"]
    if len(packed) != len(coded) or len(coded) > len(tokens_L):
        raise DataError(f"{where}: {len(tokens_L)} tokens, {len(packed)} lists of ids, {len(coded)} of log-probs")
    count = min(len(coded), max(len(tokens_L) - 1, 0))  # no token follows the last one, so its list is left out
    try:
        ids_MK = unpack_bits(np.array(packed[:count], np.uint8), (config.d - 1).bit_length() or 1, config.k)
        logprobs_MK = decode_logprobs(np.array(coded[:count], np.uint8), config)
    except ValueError as error:
        raise DataError(f"{where}: its bytes don't fit {CONFIG_NAME}: {reason(error)}") from error
    return Row(where, tokens_L, np.arange(count, dtype=np.int64), list(ids_MK), list(logprobs_MK))


def unpack_bits(packed_MB: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """Unpack integers of ``bits`` bits each, the highest bit first: int64 ``[M, count]``.

    Raises:
        ValueError: there are too few bytes.
    """
    if not len(packed_MB):
        return np.zeros((0, count), np.int64)
    stream = np.unpackbits(packed_MB, axis=1)
    if stream.shape[1] < bits * count:
        raise ValueError(f"{count} numbers of {bits} bits don't fit into {packed_MB.shape[1]} bytes")
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int64)
    result: NDArray[np.int64] = stream[:, : bits * count].reshape(-1, count, bits).astype(np.int64) @ weights
    return result


def decode_logprobs(coded_MB: NDArray[np.uint8], config: Compression) -> NDArray[np.float64]:
    """Decode log-probs: float64 ``[M, K]``. They fall along K, except where the codec's errors change the order.

    Raises:
        ValueError: there are too few bytes.
    """
    if not len(coded_MB):
        return np.zeros((0, config.k))
    reader = _Reader(coded_MB)
    exact_MK = reader.floats(config.exact_dtype, config.exact_k)
    rest = config.k - config.exact_k
    fitted_MK = np.zeros((len(coded_MB), rest))
    if config.polynomial_terms:
        coefficients = reader.floats(config.term_dtype, len(config.polynomial_terms))
        fitted_MK += coefficients @ _terms(config.polynomial_terms, rest, config.normalize_t).T
    start = 0
    for part in config.residual_bins:
        scale = reader.floats(part.scale_dtype, 1)
        size = (part.num_elements * part.element_bits + 7) // 8
        numbers = unpack_bits(reader.take(size), part.element_bits, part.num_elements)
        values = numbers * 2.0 - 1.0 if part.element_bits == 1 else numbers - 2.0 ** (part.element_bits - 1)
        fitted_MK[:, start : start + part.num_elements] += values * scale
        start += part.num_elements
    decoded = np.concatenate([exact_MK, fitted_MK], axis=1)
    return np.cumsum(decoded, axis=1) if config.delta_encoding else decoded


class _Reader:
    def __init__(self, coded_MB: NDArray[np.uint8]) -> None:
        self._coded, self._at = coded_MB, 0

    def take(self, size: int) -> NDArray[np.uint8]:
        part = self._coded[:, self._at : self._at + size]
        if part.shape[1] < size:
            raise ValueError(f"{self._coded.shape[1]} bytes a position are too few")
        self._at += size
        return np.ascontiguousarray(part)

    def floats(self, dtype: str, count: int) -> NDArray[np.float64]:
        if not count:
            return np.zeros((len(self._coded), 0))
        raw = self.take(count * _BYTES[dtype])
        if dtype == "bfloat16":
            wide = raw.view("<u2").astype(np.uint32) << 16
            return wide.view(np.float32).astype(np.float64)
        return raw.view({"float16": "<f2", "float32": "<f4", "float64": "<f8"}[dtype]).astype(np.float64)


def _terms(terms: tuple[int | str, ...], count: int, normalize: bool) -> NDArray[np.float64]:
    points = np.linspace(0, 1, count) if normalize else np.arange(count, dtype=np.float64)
    named = {"sqrt": np.sqrt, "exp": np.exp}
    return np.stack([points**term if isinstance(term, int) else named[term](points) for term in terms], axis=1)


def _files(places: list[Path]) -> list[Path]:
    files: list[Path] = []
    for place in places:
        found = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
        if not found:
            raise DataError(f"{place} holds no Parquet file")
        files += found
    return files


def _config(path: Path) -> Compression:
    try:
        return Compression.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: DistillKit's files can't be read without its settings") from error
    except OSError as error:
        raise storage_error("read", path, error) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML") from error
    except ValidationError as error:
        raise DataError(f"{path}: {first_fault(error)}") from error
