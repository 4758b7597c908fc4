"""Estimate what a dump would do: its plan, size and time, measured on a small sample. Nothing is written."""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from logitcache.data import Tally, TokenSequence
from logitcache.dump.assemble import assemble
from logitcache.dump.config import DumpConfig, make_config
from logitcache.dump.engine import check_engine, open_teacher
from logitcache.dump.plan import Plan
from logitcache.dump.run import new_plan, prepare_output
from logitcache.dump.settings import Job, resolve
from logitcache.dump.worker import compute
from logitcache.engines import Engine, team
from logitcache.errors import OutputExistsError
from logitcache.format.formats import encode_shard
from logitcache.models.teacher import choose_device
from logitcache.utils.progress import Report, silent

#: Tokens that are run to measure the rate and the size, after a warm-up with the first sequence.
_SAMPLE_TOKENS = 2_048


@dataclass(frozen=True)
class WorkerShare:
    """The shards that a worker computes first. After those it helps other workers."""

    rank: int
    first_shard: int
    shards: int
    tokens: int


@dataclass(frozen=True)
class DryRun:
    """The plan of a dump, and an estimate of its size and time.

    Attributes:
        rows, empty_rows: number of rows of the input, and of those that are left out.
        tally: counts of the rows, as :meth:`logitcache.data.Tally.to_json` returns them.
        sequences, tokens, targets, shards: of the whole cache; with ``generate``, if every answer has the most tokens.
        padding: share of padding in all tokens that are computed.
        bytes_per_target, bytes: estimated from one small shard; larger shards compress a little better.
        tokens_per_second: of one worker, measured here.
        seconds: for all workers together at this rate.
        workers: what each worker computes first.
    """

    rows: int
    empty_rows: int
    tally: dict[str, Any]
    sequences: int
    tokens: int
    targets: int
    shards: int
    padding: float
    bytes_per_target: float
    bytes: int
    tokens_per_second: float
    seconds: float
    workers: tuple[WorkerShare, ...]


def plan_dump(config: DumpConfig | None = None, /, *, report: Report = silent, **settings: Any) -> DryRun:
    """Tokenise the corpus and run the teacher on a small sample, to estimate the size and time of a dump.

    Arguments and errors are those of :func:`logitcache.dump`. Nothing is written to the output.
    """
    config = config or make_config(settings)
    check_engine(config)
    if prepare_output(config.out, dry=True) is not None:
        raise OutputExistsError(f"output {config.out} already holds a finished cache")
    # All processes of a split teacher do the same here.
    with team(config.tensor_parallel, choose_device(config.device)) as processes:
        job = resolve(config, processes.size)
        with tempfile.TemporaryDirectory() as scratch:
            plan = new_plan(job, Path(scratch), report)
            return _estimate(job, plan)


def _estimate(job: Job, plan: Plan) -> DryRun:
    engine = open_teacher(job)
    tokens_per_second, bytes_per_target = _measure(engine, job, plan)
    computed = sum(engine.computed_tokens(plan.shard_lengths(shard)) for shard in range(len(plan)))
    tally = Tally.from_json(plan.tally)
    seconds = plan.tokens / tokens_per_second / job.config.world_size
    return DryRun(
        rows=tally.read,
        empty_rows=tally.left_out_rows,
        tally=plan.tally,
        sequences=plan.sequences,
        tokens=plan.tokens,
        targets=plan.targets,
        shards=len(plan),
        padding=1 - plan.tokens / computed,
        bytes_per_target=bytes_per_target,
        bytes=round(bytes_per_target * plan.targets),
        tokens_per_second=tokens_per_second,
        seconds=seconds,
        workers=tuple(_shares(plan, job.config.world_size)),
    )


def _measure(engine: Engine, job: Job, plan: Plan) -> tuple[float, float]:
    """Tokens per second, and bytes per target."""
    sample: list[TokenSequence] = []
    tokens = 0
    for sequence in plan.shard_sequences(0):
        length = len(sequence.token_ids_L) + plan.reserved
        if sample and tokens + length > _SAMPLE_TOKENS:
            break
        sample.append(sequence)
        tokens += length
    list(engine.score(sample[:1]))
    started = time.perf_counter()
    computed = compute(engine, sample, job.config.generate)
    rate = tokens / (time.perf_counter() - started)
    arrays, _ = assemble(computed, plan.where, skip_non_finite=job.config.skip_non_finite)
    if arrays is None:
        return rate, 0.0
    payload = encode_shard(arrays, job.config.encoding, job.config.shard_format)
    return rate, len(payload) / arrays.targets


def _shares(plan: Plan, world_size: int) -> list[WorkerShare]:
    firsts = [rank * len(plan) // world_size for rank in range(world_size + 1)]
    tokens_P = np.asarray([plan.shard_tokens(shard) for shard in range(len(plan))])
    return [
        WorkerShare(rank, first, after - first, int(tokens_P[first:after].sum()))
        for rank, (first, after) in enumerate(itertools.pairwise(firsts))
    ]
