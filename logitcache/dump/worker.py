"""One worker of a dump: claim a shard, compute it, give it to the writer, until no shard is missing."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from logitcache.data import TokenSequence
from logitcache.dump.assemble import Computed
from logitcache.dump.claims import Claim, try_claim
from logitcache.dump.config import DumpConfig
from logitcache.dump.descriptors import read_descriptor
from logitcache.dump.plan import Plan
from logitcache.dump.writer import ShardWriter
from logitcache.engines import Engine, Generation
from logitcache.errors import DumpInterruptedError, LogitCacheWarning, StorageError
from logitcache.format.manifest import MANIFEST_NAME
from logitcache.targets.topk import TopK
from logitcache.utils.files import SCRATCH_DIR
from logitcache.utils.progress import Report

_WAIT_SECONDS = 0.5


class LowMassWarning(LogitCacheWarning):
    """The K entries hold too little of the teacher's probability."""


def compute(
    engine: Engine,
    sequences: list[TokenSequence],
    generation: Generation | None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Computed:
    """Compute the targets of a shard's sequences. With ``generation`` the engine answers the sequences first.

    Args:
        engine: the engine.
        sequences: the shard's sequences, from the plan.
        generation: how the engine generates answers; None for no answers.
        advance: called with the number of tokens after each batch. With answers only the generation is counted, because
            it takes nearly all of the time.
    """
    if generation is not None:
        answered: dict[int, TokenSequence] = {}
        for which, answers in engine.answer(sequences, generation):
            answered |= zip(which, answers, strict=True)
            advance(sum(len(sequences[s].token_ids_L) + generation.max_new_tokens for s in which))
        sequences = [answered[s] for s in range(len(sequences))]
    scored = []
    for which, targets in engine.score(sequences):
        scored.append((which, targets))
        if generation is None:
            advance(sum(len(sequences[s].token_ids_L) for s in which))
    return Computed(sequences, scored, engine.info.head_dtype)


class Worker:
    """Works on one output until every shard of the plan is there, by this or another worker.

    Args:
        root: the output.
        plan: the work plan.
        config: resolved settings.
        open_teacher: returns the engine; called once, when there is something to compute.
        report: called with progress in tokens.
        stop: set to stop the worker at the next shard.
    """

    def __init__(
        self,
        root: Path,
        plan: Plan,
        config: DumpConfig,
        open_teacher: Callable[[], Engine],
        report: Report,
        stop: threading.Event,
    ) -> None:
        self._root = root
        self._plan = plan
        self._config = config
        self._open_teacher = open_teacher
        self._report = report
        self._stop = stop
        self._engine: Engine | None = None
        self._in_progress = 0
        first = config.rank * len(plan) // config.world_size
        self._order = [*range(first, len(plan)), *range(first)]
        self._missing = set(self._order)
        self._missing_tokens = plan.tokens

    def run(self) -> None:
        """Work until all shards are published.

        Raises:
            DumpInterruptedError: a signal stopped the dump, and shards are still missing.
            NonFiniteLogitsError, StorageError, ModelError: from the teacher or the writer.
        """
        while not self._finished():
            if not self._compute_missing():
                # Other workers have claimed the missing shards. If one of them dies, its claim is free again.
                self._stop.wait(_WAIT_SECONDS)
            if self._stop.is_set() and not self._finished():
                done = len(self._plan) - len(self._missing)
                raise DumpInterruptedError(
                    f"stopped on request; {done} of {len(self._plan)} shards are done. "
                    "Run the same command again to go on"
                )

    def _finished(self) -> bool:
        """Check which shards are still missing, because other workers may have finished some; True if none is."""
        if (self._root / MANIFEST_NAME).exists():
            return True
        for index in [i for i in self._missing if read_descriptor(self._root, i) is not None]:
            self._mark_done(index)
        self._report_progress()
        return not self._missing

    def _compute_missing(self) -> bool:
        """Claim and compute each missing shard that is free; True if there was one."""
        claimed = False
        with ShardWriter(
            self._root,
            self._config.encoding,
            self._config.shard_format,
            skip_non_finite=self._config.skip_non_finite,
        ) as writer:
            for index in [i for i in self._order if i in self._missing]:
                if self._stop.is_set():
                    break
                claim = self._claim(index)
                if claim is None:
                    continue
                claimed = True
                try:
                    computed = self._compute(index)
                except BaseException:
                    claim.release()
                    raise
                writer.submit(index, computed, claim, partial(self._where, index))
        return claimed

    def _where(self, index: int, s: int) -> str:
        return self._plan.where(int(self._plan.shards[index]) + s)

    def _claim(self, index: int) -> Claim | None:
        try:
            claim = try_claim(self._root, f"{index:08d}")
        except FileNotFoundError as error:
            if (self._root / MANIFEST_NAME).exists():
                return None
            raise StorageError(f"{self._root / SCRATCH_DIR} disappeared while the dump was running") from error
        if claim is None:
            return None
        # Check again after claiming: another worker may have finished this shard, or the dump, just before.
        if (self._root / MANIFEST_NAME).exists() or read_descriptor(self._root, index) is not None:
            claim.release()
            self._mark_done(index)
            return None
        return claim

    def _compute(self, index: int) -> Computed:
        if self._engine is None:
            self._engine = self._open_teacher()
        self._in_progress = 0
        sequences = self._plan.shard_sequences(index)
        computed = compute(self._engine, sequences, self._config.generate, self._advance)
        self._mark_done(index)
        self._in_progress = 0
        if index == 0:
            self._check_mass(self._engine, computed)
        return computed

    def _mark_done(self, index: int) -> None:
        if index in self._missing:
            self._missing.remove(index)
            self._missing_tokens -= self._plan.shard_tokens(index)

    def _advance(self, tokens: int) -> None:
        self._in_progress += tokens
        self._report_progress()

    def _report_progress(self) -> None:
        done = self._plan.tokens - self._missing_tokens + self._in_progress
        self._report("dump", done, self._plan.tokens, "tokens")

    def _check_mass(self, engine: Engine, computed: Computed) -> None:
        """Warn if the top K hold too little of the teacher's probability in the first shard."""
        first = computed.scored[0][1]
        ranked, beyond = first.ranked, first.k - first.ranked
        masses = [-torch.expm1(targets.top(ranked).residual_logprob.double()) for _, targets in computed.scored]
        mass = float(torch.cat(masses).mean())
        if not mass < self._config.min_mass:  # also for NaN, which the writer reports with its position
            return
        needed = engine.k_for_mass(_typical(computed, masses, mass), self._config.min_mass)
        larger = "a larger --top-k" if needed is None else f"about --top-k {_rounded(needed, first) + beyond}"
        warnings.warn(
            f"the top {ranked} cover {mass:.0%} of the teacher's probability; {self._config.min_mass:.0%} need "
            f"{larger}. A loss over the top few ids, such as BiLD, may not need that many",
            LowMassWarning,
            stacklevel=2,
        )


def _rounded(needed: int, targets: TopK) -> int:
    """An estimate of K, more than what was kept already, rounded up to a multiple of 8."""
    return min(-(-max(needed, targets.ranked + 1) // 8) * 8, targets.vocab_size)


def _typical(computed: Computed, masses: list[Tensor], mean: float) -> TokenSequence:
    """Of the sequences at least half as long as the longest, the one whose top K hold nearest to the mean."""
    least = max(len(sequence.token_ids_L) for sequence in computed.sequences) / 2
    nearest, found = math.inf, computed.sequences[0]
    for (which, _), mass_N in zip(computed.scored, masses, strict=True):
        start = 0
        for sequence in (computed.sequences[s] for s in which):
            end = start + int(sequence.target_mask_L.sum())
            away = abs(float(mass_N[start:end].mean()) - mean)
            if len(sequence.token_ids_L) >= least and away < nearest:
                nearest, found = away, sequence
            start = end
    return found
