"""The corpus of a job as a stream of sequences, with what was seen on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator

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
                    yield number, row_number, sequence
                if self._stop.is_set():
                    raise DumpInterruptedError("stopped on request, before the corpus was read; nothing is kept")
                self.rows += 1
                self.empty_rows += empty
                if self.rows % _REPORT_ROWS == 1:
                    self._report("tokenise", self.rows, None, "rows")
        self._report("tokenise", self.rows, self.rows, "rows")
