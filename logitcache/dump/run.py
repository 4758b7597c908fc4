"""Stage 1 as a whole: check, plan, work, finalise."""

from __future__ import annotations

import threading
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from logitcache.cache.reader import Cache, open_cache
from logitcache.data import Tally
from logitcache.data.tally import EMPTY
from logitcache.dump.config import DumpConfig, make_config
from logitcache.dump.corpus import Corpus
from logitcache.dump.engine import check_engine, open_teacher
from logitcache.dump.finalise import clear_scratch, finalise
from logitcache.dump.plan import Plan, load_plan, make_plan
from logitcache.dump.settings import Job, Stamps, check_resume, resolve, settings_of
from logitcache.dump.signals import stop_on_signal
from logitcache.dump.worker import Worker
from logitcache.engines import Team, team
from logitcache.errors import ConfigError, DumpInterruptedError, LogitCacheWarning, OutputExistsError, StorageError
from logitcache.format.manifest import MANIFEST_NAME
from logitcache.models.teacher import choose_device
from logitcache.utils.atomic import write_atomically
from logitcache.utils.files import SCRATCH_DIR, storage_error
from logitcache.utils.progress import Report, silent


class LeftOutWarning(LogitCacheWarning):
    """Rows of the corpus are left out, cut, or not read as they stand."""


def dump(config: DumpConfig | None = None, /, *, report: Report = silent, **settings: Any) -> Cache:
    """Run a teacher over a corpus and keep its top-k next-token distributions as a cache.

    Give a :class:`DumpConfig`, or its fields as keywords: ``lc.dump(teacher=..., data=[...], out=..., top_k=64)``. The
    same call again goes on where an earlier one stopped; several processes may run it at once on one output.

    Returns:
        The finished cache, opened.

    Raises:
        ConfigError, DataError, ModelError, MissingDependencyError: the settings, the data or the teacher can't be used.
        OutputExistsError: the output holds something else than an unfinished dump.
        ResumeMismatchError: it holds an unfinished dump of other settings.
        NonFiniteLogitsError, StorageError, DumpInterruptedError: work stopped; what was finished is kept.
    """
    if config is None:
        config = make_config(settings)
    elif settings:
        raise ConfigError("give either a DumpConfig or its fields as keywords, not both")
    check_engine(config)
    split, device = config.tensor_parallel, choose_device(config.device)
    with stop_on_signal() as stop, team(split, device) as processes:
        if processes.follows:
            return _follow(config, processes)
        with processes.leading():
            return _lead(config, processes, report, stop)


def _lead(config: DumpConfig, processes: Team, report: Report, stop: threading.Event) -> Cache:
    """The whole dump, as one worker does it."""
    ready = prepare_output(config.out)
    if ready is not None:
        return ready
    job = resolve(config, processes.size)
    if (config.out / MANIFEST_NAME).exists():
        return _finished_by_others(job, config)
    plan = _plan(job, report, stop)
    job = _as_planned(job, plan, config)
    check_resume(plan.settings, settings_of(job, Stamps.from_json(plan.stamps)), config.out)
    if not config.finalize:
        Worker(config.out, plan, job.config, lambda: processes.engine(lambda: open_teacher(job)), report, stop).run()
    finalise(job, plan)
    return open_cache(config.out)


def _follow(config: DumpConfig, processes: Team) -> Cache:
    """The passes of a split teacher, as another process asks for them.

    Raises:
        DumpInterruptedError: that process was told to stop.
    """
    job = resolve(config, processes.size)
    processes.follow(lambda: open_teacher(job))
    if not (config.out / MANIFEST_NAME).exists():
        raise DumpInterruptedError("the process that leads has stopped on request")
    return open_cache(config.out)


def config_path(out: Path) -> Path:
    """Where the resolved settings of a dump are kept: beside the output, since a finished cache never changes."""
    return out.with_name(f"{out.name}.dump.yaml")


def prepare_output(out: Path, *, dry: bool = False) -> Cache | None:
    """See that the output may be written; the cache itself if only its clearing up was cut off.

    A ``dry`` look leaves everything as it is.

    Raises:
        OutputExistsError: something else is there.
    """
    try:
        if (out.exists() or out.is_symlink()) and not out.is_dir():
            raise OutputExistsError(f"output {out} is a file: choose another --out")
        names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    except OSError as error:
        raise storage_error("read", out, error) from error
    if MANIFEST_NAME in names and dry:
        return open_cache(out)
    if MANIFEST_NAME in names and SCRATCH_DIR in names:
        clear_scratch(out)
        return open_cache(out)
    if names and not names & {MANIFEST_NAME, SCRATCH_DIR}:
        raise OutputExistsError(f"output {out} exists and is no unfinished dump: choose another --out")
    return None


def _finished_by_others(job: Job, asked: DumpConfig) -> Cache:
    """The finished cache, if this process is a late worker of the dump that made it.

    Where ``asked`` leaves the batch size open it is the first worker's; another device would choose another.

    Raises:
        OutputExistsError: it isn't.
    """
    out = job.config.out
    saved = _saved_config(out)
    if job.config.world_size > 1 and saved is not None:
        theirs, ours = yaml.safe_load(saved), yaml.safe_load(config_yaml(job.config))
        if asked.batch_tokens is None:
            ours["batch_tokens"] = theirs.get("batch_tokens")
        if ours == theirs:
            return open_cache(out)
    raise OutputExistsError(f"output {out} already holds a finished cache: choose another --out")


def _plan(job: Job, report: Report, stop: threading.Event) -> Plan:
    """The plan of an earlier start if there is one, else a new one."""
    config, out = job.config, job.config.out
    plan = load_plan(out)
    if plan is None and config.finalize:
        raise StorageError(f"there is no unfinished dump in {out} to finalise")
    if plan is None:
        plan = new_plan(job, out, report, stop=stop)
        _save_config(config)
        _warn_of_rows(Tally.from_json(plan.tally))
    return plan


def _warn_of_rows(tally: Tally) -> None:
    """Say before the teacher's work begins which rows it won't see; what is merely empty can wait for the end."""
    told = {**{reason: what for reason, what in tally.left_out.items() if reason != EMPTY}, **tally.cut, **tally.notes}
    for reason, what in told.items():
        rows = f"{what.rows:,} of {tally.read:,} rows"
        warnings.warn(f"{rows}: {reason}; the first is {what.first}", LeftOutWarning, stacklevel=3)


def _as_planned(job: Job, plan: Plan, config: DumpConfig) -> Job:
    """The job with the plan's batch size where the user left it open: what the first worker's device had room for."""
    if config.batch_tokens is not None:
        return job
    update = {"batch_tokens": plan.settings["batch_tokens"]}
    return replace(job, config=job.config.model_copy(update=update))


def new_plan(
    job: Job,
    root: Path,
    report: Report,
    settings: dict[str, Any] | None = None,
    stamps: Stamps | None = None,
    stop: threading.Event | None = None,
) -> Plan:
    """Tokenise the corpus into a plan under ``root``; ``settings`` and ``stamps`` are found out where not given.

    Raises:
        DataError: the corpus can't be read, or is empty; nothing stays behind then.
        DumpInterruptedError: ``stop`` was set.
        StorageError: the system refused.
    """
    stamps = stamps or Stamps()
    existed = root.exists()
    try:
        make_plan(
            root,
            settings or settings_of(job, stamps),
            stamps.to_json(),
            Corpus(job, report, stop),
            job.config.shard_tokens,
        )
    except BaseException:
        _remove_if_empty(root, existed)
        raise
    plan = load_plan(root)
    if plan is None:
        raise StorageError(f"{root / SCRATCH_DIR} has gone while the dump was at work")
    return plan


def _remove_if_empty(out: Path, existed: bool) -> None:
    """Leave nothing behind where nothing could be begun."""
    with suppress(OSError):  # not empty: another worker is at it
        (out / SCRATCH_DIR).rmdir()
        if not existed:
            out.rmdir()


def config_yaml(config: DumpConfig) -> str:
    """The content of :func:`config_path`."""
    return yaml.safe_dump(
        config.model_dump(mode="json", exclude={"rank", "world_size", "finalize"}, exclude_none=True), sort_keys=False
    )


def _saved_config(out: Path) -> str | None:
    try:
        return config_path(out).read_text(encoding="utf-8")
    except OSError:
        return None


def _save_config(config: DumpConfig) -> None:
    write_atomically(config_path(config.out), config_yaml(config))
