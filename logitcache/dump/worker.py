"""One worker's share of a dump: claim a shard, compute it, hand it to the writer, until none is missing."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from logitcache.data import TokenSequence
from logitcache.dump.assemble import Computed
from logitcache.dump.claims import Claim, try_claim
from logitcache.dump.config import DumpConfig
from logitcache.dump.descriptors import read_descriptor
from logitcache.dump.plan import Plan, cut_into_batches
from logitcache.dump.writer import ShardWriter
from logitcache.engines.tensor_parallel import Teacher
from logitcache.errors import DumpInterruptedError, LogitCacheWarning, StorageError
from logitcache.format.manifest import MANIFEST_NAME
from logitcache.utils.files import SCRATCH_DIR
from logitcache.utils.progress import Report

_WAIT_SECONDS = 0.5


class LowMassWarning(LogitCacheWarning):
    """The top K leave out much of the teacher's probability."""


def compute(
    teacher: Teacher,
    sequences: list[TokenSequence],
    config: DumpConfig,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Computed:
    """Answers, if they are wanted, and targets, in batches that depend on the sequences alone.

    Args:
        advance: told the number of tokens after each batch.
    """
    assert config.batch_tokens is not None
    if config.generate is not None:
        answered: dict[int, TokenSequence] = {}
        lengths = [len(prompt.token_ids_L) + config.reserved for prompt in sequences]
        for members in cut_into_batches(lengths, config.batch_tokens):
            answered |= zip(members, teacher.answer([sequences[s] for s in members], config.generate), strict=True)
            advance(sum(lengths[s] for s in members))
        sequences = [answered[s] for s in range(len(sequences))]
        advance = _told_already
    lengths = [len(sequence.token_ids_L) for sequence in sequences]
    batches = []
    for members in cut_into_batches(lengths, config.batch_tokens):
        batches.append((members, teacher.topk([sequences[s] for s in members])))
        advance(sum(lengths[s] for s in members))
    return Computed(sequences, batches)


def _told_already(tokens: int) -> None:
    """Answering takes nearly all the time; the pass that follows isn't counted again."""


class Worker:
    """Works on one output until every shard of the plan is there, whoever made it.

    Args:
        root: the output.
        plan: what there is to do.
        config: resolved settings.
        load_teacher: called once, when there is something to compute.
        report: progress in tokens.
        stop: set when the worker should end at the next shard.
    """

    def __init__(
        self,
        root: Path,
        plan: Plan,
        config: DumpConfig,
        load_teacher: Callable[[], Teacher],
        report: Report,
        stop: threading.Event,
    ) -> None:
        self._root = root
        self._plan = plan
        self._config = config
        self._load_teacher = load_teacher
        self._report = report
        self._stop = stop
        self._teacher: Teacher | None = None
        self._at_hand = 0
        first = config.rank * len(plan) // config.world_size
        self._order = [*range(first, len(plan)), *range(first)]
        self._missing = set(self._order)
        self._missing_tokens = plan.tokens

    def run(self) -> None:
        """Return when all shards are published.

        Raises:
            DumpInterruptedError: a signal asked for the end, and shards are still missing.
            NonFiniteLogitsError, StorageError, ModelError: from the teacher or the writer.
        """
        while not self._finished():
            if not self._pass():
                # What is missing is in other hands; if one of them dies, its claim is free again.
                self._stop.wait(_WAIT_SECONDS)
            if self._stop.is_set() and not self._finished():
                done = len(self._plan) - len(self._missing)
                raise DumpInterruptedError(
                    f"stopped on request; {done} of {len(self._plan)} shards are done. "
                    "Run the same command again to go on"
                )

    def _finished(self) -> bool:
        """Look again at what is missing; other workers may have been at it."""
        if (self._root / MANIFEST_NAME).exists():
            return True
        for index in [i for i in self._missing if read_descriptor(self._root, i) is not None]:
            self._drop(index)
        self._report_progress()
        return not self._missing

    def _pass(self) -> bool:
        """Go through the missing shards once; True if any could be claimed."""
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
            raise StorageError(f"{self._root / SCRATCH_DIR} has gone while the dump was at work") from error
        if claim is None:
            return None
        # Only with the claim in hand is the answer final: somebody may have finished it, or everything, just before.
        if (self._root / MANIFEST_NAME).exists() or read_descriptor(self._root, index) is not None:
            claim.release()
            self._drop(index)
            return None
        return claim

    def _compute(self, index: int) -> Computed:
        if self._teacher is None:
            self._teacher = self._load_teacher()
        self._at_hand = 0
        computed = compute(self._teacher, self._plan.shard_sequences(index), self._config, self._advance)
        self._drop(index)
        self._at_hand = 0
        if index == 0:
            self._check_mass(computed)
        return computed

    def _drop(self, index: int) -> None:
        if index in self._missing:
            self._missing.remove(index)
            self._missing_tokens -= self._plan.shard_tokens(index)

    def _advance(self, tokens: int) -> None:
        self._at_hand += tokens
        self._report_progress()

    def _report_progress(self) -> None:
        done = self._plan.tokens - self._missing_tokens + self._at_hand
        self._report("dump", done, self._plan.tokens, "tokens")

    def _check_mass(self, computed: Computed) -> None:
        """Warn when K covers little of what the teacher means; measured on the first shard."""
        assert self._teacher is not None
        found = [host.wait() for _, host in computed.batches]
        ranked, beyond = found[0].ranked, found[0].k - found[0].ranked
        residual = torch.cat([targets.top(ranked).residual_logprob for targets in found])
        mass = float(-torch.expm1(residual.double()).mean())
        if not mass < self._config.min_mass:  # NaN included: the writer reports that by position
            return
        members = computed.batches[0][0]
        needed = self._teacher.k_for_mass([computed.sequences[s] for s in members[:1]], self._config.min_mass)
        warnings.warn(
            f"the top {ranked} cover {mass:.0%} of the teacher's probability; {self._config.min_mass:.0%} need "
            f"--top-k {needed + beyond}. A loss over the top few, such as BiLD, may not mind",
            LowMassWarning,
            stacklevel=2,
        )
