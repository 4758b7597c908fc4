"""The work plan: which sequences each shard has. It depends only on the input and the settings.

The corpus is tokenised once. Its token ids are stored with the plan in the scratch directory, and every worker
memory-maps them. So any worker can compute any shard, in any order, and a later change of the input has no effect on an
unfinished dump.

Shape legend: S sequences of the whole corpus, L tokens of all of them, P shards.
"""

from __future__ import annotations

import errno
import hashlib
import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.data import TokenSequence
from logitcache.dump.corpus import Corpus, empty_corpus_error
from logitcache.errors import StorageError
from logitcache.utils.atomic import atomic_directory, sync_directory, sync_file
from logitcache.utils.files import SCRATCH_DIR, storage_error

PLAN_DIR = "plan"
_TOKENS, _MASK, _OFFSETS, _ROWS, _SETTINGS = "tokens.u32", "mask.bool", "offsets.i64", "rows.i64", "plan.json"


@dataclass(frozen=True, eq=False)
class Plan:
    """A loaded plan.

    Attributes:
        settings: what the plan was made for, see :func:`logitcache.dump.settings.settings_of`.
        stamps: hashes of files already read, see :class:`logitcache.dump.settings.Stamps`.
        corpus_digest: over the tokenised sequences in order.
        positions: ``all``, or ``completion`` if some tokens aren't targets.
        tally: counts of the rows of the input, as :meth:`logitcache.data.Tally.to_json` returns them.
        facts: facts for the manifest that were known after reading.
        shards: ``[P + 1]``, shard ``i`` holds the sequences from ``shards[i]`` to ``shards[i + 1]``.
    """

    settings: dict[str, Any]
    stamps: dict[str, Any]
    corpus_digest: str
    positions: str
    tally: dict[str, Any]
    facts: dict[str, Any]
    shards: NDArray[np.int64]
    _tokens_L: NDArray[np.uint32]
    _mask_L: NDArray[np.bool_]
    _offsets_S1: NDArray[np.int64]
    _rows_S2: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shards) - 1

    @property
    def sequences(self) -> int:
        """Number of sequences in the corpus."""
        return len(self._offsets_S1) - 1

    @property
    def reserved(self) -> int:
        """Most tokens that the teacher's answer may add to each sequence."""
        generate = self.settings["generate"]
        return int(generate["max_new_tokens"]) if generate else 0

    @property
    def tokens(self) -> int:
        """Number of tokens in the corpus, with every answer at its longest."""
        return len(self._tokens_L) + self.reserved * self.sequences

    @property
    def targets(self) -> int:
        """Number of positions that get targets, with every answer at its longest."""
        # The last token of an answer predicts nothing. The prompt's last position, already marked, predicts its first.
        return int(np.count_nonzero(self._mask_L)) + max(self.reserved - 1, 0) * self.sequences

    def shard_sequences(self, index: int) -> list[TokenSequence]:
        """The sequences of one shard."""
        return [self._sequence(s) for s in range(int(self.shards[index]), int(self.shards[index + 1]))]

    def shard_lengths(self, index: int) -> list[int]:
        """Number of tokens of each sequence of one shard, with its answer at its longest."""
        offsets = self._offsets_S1[self.shards[index] : self.shards[index + 1] + 1]
        return [int(length) + self.reserved for length in np.diff(offsets)]

    def shard_tokens(self, index: int) -> int:
        """Number of tokens of one shard, with every answer at its longest."""
        first, after = int(self.shards[index]), int(self.shards[index + 1])
        return int(self._offsets_S1[after] - self._offsets_S1[first]) + self.reserved * (after - first)

    def where(self, sequence: int) -> str:
        """The input and row of a sequence, for messages."""
        source, row = (int(number) for number in self._rows_S2[sequence])
        name = self.settings["inputs"][source]["name"]
        return f"{name} row {row + 1} (sequence {sequence})"

    def _sequence(self, s: int) -> TokenSequence:
        span = slice(int(self._offsets_S1[s]), int(self._offsets_S1[s + 1]))
        return TokenSequence(np.asarray(self._tokens_L[span]), np.asarray(self._mask_L[span]))


def cut_into_shards(lengths_S: NDArray[np.int64], shard_tokens: int) -> NDArray[np.int64]:
    """First sequence of each shard, then the number of sequences. A shard ends when it has ``shard_tokens`` or more.

    Returns:
        int64 ``[P + 1]``.
    """
    bounds, tokens = [0], 0
    for s, length in enumerate(lengths_S.tolist(), start=1):
        tokens += length
        if tokens >= shard_tokens:
            bounds.append(s)
            tokens = 0
    if bounds[-1] != len(lengths_S):
        bounds.append(len(lengths_S))
    return np.asarray(bounds, dtype=np.int64)


def load_plan(root: Path) -> Plan | None:
    """The plan of an unfinished dump; None if there is none yet.

    Raises:
        StorageError: the system refused, or the plan is damaged.
    """
    directory = root / SCRATCH_DIR / PLAN_DIR
    try:
        head = json.loads((directory / _SETTINGS).read_bytes())
        return Plan(
            shards=np.asarray(head.pop("shards"), dtype=np.int64),
            **head,
            _tokens_L=np.memmap(directory / _TOKENS, dtype=np.uint32, mode="r"),
            _mask_L=np.memmap(directory / _MASK, dtype=np.bool_, mode="r"),
            _offsets_S1=np.fromfile(directory / _OFFSETS, dtype=np.int64),
            _rows_S2=np.memmap(directory / _ROWS, dtype=np.int64, mode="r").reshape(-1, 2),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"the plan in {directory} is damaged: delete {root} and start again") from error
    except OSError as error:
        raise storage_error("read", directory, error) from error


def make_plan(root: Path, settings: dict[str, Any], stamps: dict[str, Any], corpus: Corpus, shard_tokens: int) -> None:
    """Tokenise the corpus and write the plan, completely or not at all.

    Several workers may do this at the same time. They write the same plan, and the first one is used.

    Raises:
        DataError: the corpus has no targets, or can't be read.
        DumpInterruptedError: a signal stopped the dump.
        StorageError: the system refused.
    """
    scratch = root / SCRATCH_DIR
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with atomic_directory(scratch / PLAN_DIR) as temporary:
            _write_plan(temporary, settings, stamps, corpus, shard_tokens)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and (scratch / PLAN_DIR / _SETTINGS).is_file():
            return  # another worker was first, with the same plan
        raise storage_error("write the plan in", scratch, error) from error


def _write_plan(
    directory: Path, settings: dict[str, Any], stamps: dict[str, Any], corpus: Corpus, shard_tokens: int
) -> None:
    offsets, rows = array("q", [0]), array("q")
    reserved = settings["generate"]["max_new_tokens"] if settings["generate"] else 0
    digest = hashlib.sha256()
    with (directory / _TOKENS).open("wb") as tokens, (directory / _MASK).open("wb") as mask:
        for source, row, sequence in corpus:
            ids_L, mask_L = sequence.token_ids_L, sequence.target_mask_L
            for part in (len(ids_L).to_bytes(8, "little"), ids_L.astype("<u4").tobytes(), mask_L.tobytes()):
                digest.update(part)
            tokens.write(ids_L.tobytes())
            mask.write(mask_L.tobytes())
            offsets.append(offsets[-1] + len(ids_L))
            rows.extend((source, row))
    for name in (_TOKENS, _MASK):
        sync_file(directory / name)
    if len(offsets) == 1:
        raise empty_corpus_error(corpus.tally)
    _write_synced(directory / _OFFSETS, offsets.tobytes())
    _write_synced(directory / _ROWS, rows.tobytes())
    head = {
        "settings": settings,
        "stamps": stamps,
        "positions": corpus.positions,
        "tally": corpus.tally.to_json(),
        "facts": corpus.facts(),
        "corpus_digest": "sha256:" + digest.hexdigest(),
        "shards": cut_into_shards(np.diff(np.asarray(offsets)) + reserved, shard_tokens).tolist(),
    }
    _write_synced(directory / _SETTINGS, json.dumps(head).encode())
    sync_directory(directory)


def _write_synced(path: Path, payload: bytes) -> None:
    path.write_bytes(payload)
    sync_file(path)
