"""Read the corpus of a job as a stream of sequences, and count its rows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from logitcache.data import (
    ChatTemplate,
    PromptTokeniser,
    RowTokeniser,
    SpecialTokens,
    Tally,
    TokenSequence,
    read_rows,
)
from logitcache.dump.settings import Job
from logitcache.errors import DataError, DumpInterruptedError, RowError
from logitcache.utils.progress import Report

_REPORT_ROWS = 64


class Corpus:
    """Iterate once over ``(source, row, sequence)``, in the order of the input, until ``stop`` is set.

    Attributes:
        tally: counts of the rows so far.
    """

    def __init__(self, job: Job, report: Report, stop: threading.Event | None = None) -> None:
        self._job = job
        self._report = report
        self._stop = stop or threading.Event()
        self.tally = Tally()
        self._chat = chat_template(job)
        self._tokeniser = _tokeniser(job, self._chat, self.tally)
        self._skip_bad = job.config.bad_rows == "skip"
        self._every = job.config.every
        self._seen = 0

    @property
    def positions(self) -> str:
        """``completion`` if any row so far had tokens that aren't targets, else ``all``."""
        return "completion" if self._tokeniser.saw_masked else "all"

    def facts(self) -> dict[str, Any]:
        """Facts for the manifest that are known after reading: the date that a chat template wrote."""
        return {"date": self._chat.date} if self._chat.date is not None else {}

    def __iter__(self) -> Iterator[tuple[int, int, TokenSequence]]:
        for number, row_number, _, sequences in self.rows():
            for sequence in sequences:
                if (kept := self._keep_every_nth(sequence)) is not None:
                    yield number, row_number, kept
        self._report("tokenise", self.tally.read, self.tally.read, "rows")

    def rows(self) -> Iterator[tuple[int, int, str, list[TokenSequence]]]:
        """``(source, row, name of the row, its sequences)`` of each row, also of rows that are left out.

        Raises:
            DataError: the corpus can't be read.
            DumpInterruptedError: ``stop`` was set.
        """
        for number, source in enumerate(self._job.sources):
            for row_number, row in enumerate(read_rows(source, self._job.config.split)):
                where = f"{source.name} row {row_number + 1}"
                yield number, row_number, where, self._sequences(row, where)
                if self._stop.is_set():
                    raise DumpInterruptedError("stopped on request, before the corpus was read; nothing is kept")
                if self.tally.read % _REPORT_ROWS == 1:
                    self._report("tokenise", self.tally.read, None, "rows")

    def _sequences(self, row: dict[str, Any], where: str) -> list[TokenSequence]:
        self.tally.read += 1
        try:
            return self._tokeniser.sequences(row, where)
        except RecursionError:
            fault = RowError(f"{where}: a value of the row is nested too deep")
        except RowError as error:
            fault = error
        if self._skip_bad:
            self.tally.leave_out(str(fault).removeprefix(f"{where}: "), where)
            return []
        raise RowError(f"{fault} (--bad-rows skip leaves such rows out and counts them)") from fault

    def _keep_every_nth(self, sequence: TokenSequence) -> TokenSequence | None:
        """The sequence with only every n-th target of the corpus; None if it has none of those."""
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


def chat_template(job: Job) -> ChatTemplate:
    """The teacher's chat template with the job's arguments."""
    config = job.config
    return ChatTemplate(job.tokenizer, arguments=config.template_args, turns=config.turns)


def special_tokens(job: Job) -> dict[str, Any]:
    """The tokens at the beginning of a text and the end of a document, for the manifest; absent if there are none."""
    special = SpecialTokens.of(job.tokenizer, job.config.end_of_text)
    before = job.tokenizer.convert_ids_to_tokens(list(special.before))
    end = special.end_of_text
    return {
        **({"begin_of_sequence": before} if before else {}),
        **({} if end is None else {"end_of_text": job.tokenizer.convert_ids_to_tokens(end)}),
    }


def empty_corpus_error(tally: Tally) -> DataError:
    """The error for a corpus without sequences; it says why the rows were left out."""
    reasons = "; ".join(
        f"{what.rows:,} {reason} (the first is {what.first})" for reason, what in tally.left_out.items()
    )
    if not reasons:
        return DataError("the corpus is empty: it has no rows")
    return DataError(f"the corpus is empty: of {tally.read:,} rows none has a token to predict: {reasons}")


def _tokeniser(job: Job, chat: ChatTemplate, tally: Tally) -> RowTokeniser | PromptTokeniser:
    config = job.config
    assert config.max_length is not None
    if config.generate is not None:
        return PromptTokeniser(
            job.tokenizer,
            vocab_size=job.vocab_size,
            max_length=config.max_length - config.reserved,
            drop_long=config.long_rows == "drop",
            positions=config.positions,
            text_column=config.text_column,
            chat=chat,
            tally=tally,
        )
    return RowTokeniser(
        job.tokenizer,
        vocab_size=job.vocab_size,
        max_length=config.max_length,
        overlap=config.overlap,
        long_rows=config.long_rows,
        positions=config.positions,
        text_column=config.text_column,
        end_of_text=config.end_of_text,
        chat=chat,
        tally=tally,
    )
