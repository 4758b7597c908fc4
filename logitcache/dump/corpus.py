"""The corpus of a job as a stream of sequences, with what was seen on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from logitcache.data import PromptTokeniser, RowTokeniser, TokenSequence, read_rows
from logitcache.dump.settings import Job
from logitcache.errors import DumpInterruptedError
from logitcache.progress import Report

_REPORT_ROWS = 64


class Corpus:
    """Iterate once: ``(source, row, sequence)``, in the order of the input, until ``stop`` is set.

    Attributes:
        rows: rows read so far.
        empty_rows: those of them without a position to predict.
    """

    def __init__(self, job: Job, report: Report, stop: threading.Event | None = None) -> None:
        config = job.config
        assert config.max_length is not None
        self._job = job
        self._report = report
        self._stop = stop or threading.Event()
        self._tokeniser: RowTokeniser | PromptTokeniser
        if config.generate is not None:
            self._tokeniser = PromptTokeniser(
                job.tokenizer,
                vocab_size=job.vocab_size,
                max_length=config.max_length - config.reserved,
                positions=config.positions,
                text_column=config.text_column,
            )
        else:
            self._tokeniser = RowTokeniser(
                job.tokenizer,
                vocab_size=job.vocab_size,
                max_length=config.max_length,
                overlap=config.overlap,
                long_rows=config.long_rows,
                positions=config.positions,
                text_column=config.text_column,
            )
        self._every = config.every
        self._seen = 0
        self.rows = 0
        self.empty_rows = 0

    @property
    def positions(self) -> str:
        """``completion`` if any row had tokens that aren't to be predicted, else ``all``."""
        return "completion" if self._tokeniser.saw_masked else "all"

    def __iter__(self) -> Iterator[tuple[int, int, TokenSequence]]:
        for number, source in enumerate(self._job.sources):
            for row_number, row in enumerate(read_rows(source, self._job.config.split)):
                empty = True
                for sequence in self._tokeniser.sequences(row, f"{source.name} row {row_number + 1}"):
                    empty = False
                    if (kept := self._thinned(sequence)) is not None:
                        yield number, row_number, kept
                if self._stop.is_set():
                    raise DumpInterruptedError("stopped on request, before the corpus was read; nothing is kept")
                self.rows += 1
                self.empty_rows += empty
                if self.rows % _REPORT_ROWS == 1:
                    self._report("tokenise", self.rows, None, "rows")
        self._report("tokenise", self.rows, self.rows, "rows")

    def _thinned(self, sequence: TokenSequence) -> TokenSequence | None:
        """The sequence with every n-th target of the corpus only; None if none of its own is among them."""
        if self._every == 1:
            return sequence
        positions_M = np.flatnonzero(sequence.target_mask_L)
        kept_M = positions_M[-self._seen % self._every :: self._every]
        self._seen += len(positions_M)
        if not len(kept_M):
            return None
        mask_L = np.zeros_like(sequence.target_mask_L)
        mask_L[kept_M] = True
        return TokenSequence(sequence.token_ids_L, mask_L)
