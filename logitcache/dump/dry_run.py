"""Estimate a dump: its plan, memory by formula, size and time measured on a small sample. Nothing is written."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from logitcache.data import Tally, TokenSequence
from logitcache.dump.assemble import assemble
from logitcache.dump.config import DumpConfig, make_config
from logitcache.dump.engine import check_engine, open_teacher
from logitcache.dump.estimate import estimate_dump, fitting_batch, teacher_sizes
from logitcache.dump.plan import Plan
from logitcache.dump.run import new_plan, prepare_output
from logitcache.dump.settings import Job, resolve
from logitcache.dump.worker import compute
from logitcache.engines import Engine, team
from logitcache.engines.batch_size import CPU_TOKENS
from logitcache.engines.batches import padded_tokens
from logitcache.engines.transformers_engine import NAME as TRANSFORMERS
from logitcache.errors import ModelError, OutputExistsError
from logitcache.format.formats import encode_shard
from logitcache.models.cost import Estimate
from logitcache.models.hardware import Hardware, hardware_at_hand
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
        bytes_per_target, bytes: estimated from one small shard; larger shards compress a little better. None if the
            teacher was not run.
        tokens_per_second: of one worker, measured here; if the teacher was not run, the most that the described devices
            reach together, or None.
        seconds: for all workers together at this rate.
        measured: whether the teacher was run. It is not if it doesn't fit, or if the plan is for other devices.
        estimate: memory and operations by formula; None for an engine of another package, and for a model that can't be
            built without weights.
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
    bytes_per_target: float | None
    bytes: int | None
    tokens_per_second: float | None
    seconds: float | None
    measured: bool
    estimate: Estimate | None
    workers: tuple[WorkerShare, ...]


def plan_dump(
    config: DumpConfig | None = None, /, *, hardware: Hardware | None = None, report: Report = silent, **settings: Any
) -> DryRun:
    """Tokenise the corpus, estimate memory, and run the teacher on a small sample if it fits.

    Nothing is written to the output.

    Args:
        config, report, settings: as for :func:`logitcache.dump`.
        hardware: devices of another machine to plan for, and no weights are read; by default the devices of this one.

    Raises:
        LogitCacheError: as :func:`logitcache.dump` raises.
    """
    config = config or make_config(settings)
    check_engine(config)
    if prepare_output(config.out, dry=True) is not None:
        raise OutputExistsError(f"output {config.out} already holds a finished cache")
    if hardware is not None:
        return _planned(resolve(config, elsewhere=True), config, hardware, report)
    # All processes of a split teacher do the same here.
    with team(config.tensor_parallel, choose_device(config.device)) as processes:
        return _planned(resolve(config, processes.size), config, None, report)


def _planned(job: Job, asked: DumpConfig, described: Hardware | None, report: Report) -> DryRun:
    """The plan, the estimate of memory, and what a small sample shows if the teacher fits."""
    sizes = None
    try:
        sizes = teacher_sizes(job) if job.config.engine == TRANSFORMERS else None
    except ModelError:
        if described is not None:
            raise  # otherwise it may still load, or else loading says why it doesn't
    hardware = described or hardware_at_hand(job.device, torch.cuda.device_count() if job.config.device_map else 1)
    if sizes is not None:
        job = fitting_batch(job, sizes, hardware, asked.batch_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        # Nothing is recorded, so the teacher's files need not be hashed.
        generate = None if asked.generate is None else asked.generate.model_dump()
        unrecorded = {"generate": generate, "inputs": [{"name": source.name} for source in job.sources]}
        plan = new_plan(job, Path(scratch), report, settings=unrecorded)
        estimate = None if sizes is None else estimate_dump(job, sizes, plan, hardware, asked.batch_tokens)
        if described is not None or (estimate is not None and estimate.fits is False):
            batch_tokens = job.config.batch_tokens or CPU_TOKENS
            return _summary(job, plan, estimate, None, partial(padded_tokens, batch_tokens=batch_tokens))
        engine = open_teacher(job)
        return _summary(job, plan, estimate, _measure(engine, job, plan), engine.computed_tokens)


def _summary(
    job: Job,
    plan: Plan,
    estimate: Estimate | None,
    measured: tuple[float, float] | None,
    computed_tokens: Callable[[list[int]], int],
) -> DryRun:
    """All of it together; ``measured`` holds tokens per second and bytes per target."""
    workers, tally = job.config.world_size, Tally.from_json(plan.tally)
    computed = sum(computed_tokens(plan.shard_lengths(shard)) for shard in range(len(plan)))
    rate = None if estimate is None else estimate.rate
    seconds = None if rate is None else plan.tokens / rate
    if measured is not None:
        rate = measured[0]
        seconds = plan.tokens / rate / workers
    return DryRun(
        rows=tally.read,
        empty_rows=tally.left_out_rows,
        tally=plan.tally,
        sequences=plan.sequences,
        tokens=plan.tokens,
        targets=plan.targets,
        shards=len(plan),
        padding=1 - plan.tokens / computed,
        bytes_per_target=None if measured is None else measured[1],
        bytes=None if measured is None else round(measured[1] * plan.targets),
        tokens_per_second=rate,
        seconds=seconds,
        measured=measured is not None,
        estimate=estimate,
        workers=tuple(_shares(plan, workers)),
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
