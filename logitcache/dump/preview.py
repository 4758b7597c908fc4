"""Show the first rows of a corpus as a dump would read them. The teacher isn't loaded."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from logitcache.data import Tally, TokenSequence
from logitcache.dump.config import DumpConfig
from logitcache.dump.corpus import Corpus
from logitcache.dump.settings import resolve
from logitcache.utils.progress import silent


@dataclass(frozen=True)
class PreviewedSequence:
    """A sequence as the teacher would read it.

    Attributes:
        row: name of its row.
        tokens, targets: number of tokens and targets.
        parts: its text in parts, each with True if it is a target.
    """

    row: str
    tokens: int
    targets: int
    parts: tuple[tuple[str, bool], ...]


def preview_rows(config: DumpConfig, rows: int) -> tuple[list[PreviewedSequence], Tally]:
    """The sequences of the first ``rows`` rows, and counts of those rows.

    Raises:
        ModelError, DataError, ConfigError: as for a dump.
    """
    job = resolve(config)
    corpus = Corpus(job, silent)
    found: list[PreviewedSequence] = []
    for _, _, where, sequences in itertools.islice(corpus.rows(), rows):
        found.extend(_preview(job.tokenizer, where, sequence) for sequence in sequences)
    return found, corpus.tally


def _preview(tokenizer: Any, where: str, sequence: TokenSequence) -> PreviewedSequence:
    ids_L, mask_L = sequence.token_ids_L, sequence.target_mask_L
    is_target_L = np.concatenate([[False], mask_L[:-1]])
    changes = [0, *(np.flatnonzero(np.diff(is_target_L)) + 1).tolist(), len(ids_L)]
    parts = tuple(
        (str(tokenizer.decode(ids_L[start:stop].tolist())), bool(is_target_L[start]))
        for start, stop in itertools.pairwise(changes)
    )
    return PreviewedSequence(where, len(ids_L), int(mask_L.sum()), parts)
