"""Run a dump: check, plan, compute, finalise."""

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
    """Rows of the corpus are left out, cut, or changed."""


def dump(config: DumpConfig | None = None, /, *, report: Report = silent, **settings: Any) -> Cache:
    """Run a teacher on a corpus and store its top-k next-token distributions in a cache.

    Give a :class:`DumpConfig`, or its fields as keywords: ``lc.dump(teacher=..., data=[...], out=..., top_k=64)``. The
    same call again continues an unfinished dump. Several processes may work on one output at the same time.

    Returns:
        The finished cache, opened.

    Raises:
        ConfigError, DataError, ModelError, MissingDependencyError: the settings, the data or the teacher can't be used.
        OutputExistsError: the output holds something other than an unfinished dump.
        ResumeMismatchError: the output holds an unfinished dump with other settings.
        NonFiniteLogitsError, StorageError, DumpInterruptedError: the dump stopped; finished shards are kept.
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
    """Run the dump as one worker."""
    ready = prepare_output(config.out)
    if ready is not None:
        return ready
    job = resolve(config, processes.size)
    if (config.out / MANIFEST_NAME).exists():
        return _open_finished(job, config)
    plan = _plan(job, report, stop)
    job = _with_planned_batch_tokens(job, plan, config)
    check_resume(plan.settings, settings_of(job, Stamps.from_json(plan.stamps)), config.out)
    if not config.finalize:
        Worker(config.out, plan, job.config, lambda: processes.engine(lambda: open_teacher(job)), report, stop).run()
    finalise(job, plan)
    return open_cache(config.out)


def _follow(config: DumpConfig, processes: Team) -> Cache:
    """Run the forward passes of a split teacher that the leading process asks for.

    Raises:
        DumpInterruptedError: the leading process was stopped.
    """
    job = resolve(config, processes.size)
    processes.follow(lambda: open_teacher(job))
    if not (config.out / MANIFEST_NAME).exists():
        raise DumpInterruptedError("the leading process was stopped on request")
    return open_cache(config.out)


def config_path(out: Path) -> Path:
    """The file of a dump's resolved settings. It is next to the output, because a finished cache never changes."""
    return out.with_name(f"{out.name}.dump.yaml")


def prepare_output(out: Path, *, dry: bool = False) -> Cache | None:
    """Check that the output may be written. Returns the cache if it is finished and only its scratch directory is left.

    With ``dry`` nothing is changed, and any finished cache is returned.

    Raises:
        OutputExistsError: something else is there.
        StorageError: the system refused.
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


def _open_finished(job: Job, asked: DumpConfig) -> Cache:
    """Open the finished cache, if this process is a late worker of the dump that made it.

    If ``asked`` doesn't set the batch size, the first worker's is used; another device might choose another one.

    Raises:
        OutputExistsError: it is another dump.
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
    """The existing plan of an unfinished dump, else a new one."""
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
    """Warn of rows that are left out or changed, before the teacher runs. Empty rows are only reported at the end."""
    left_out = {reason: what for reason, what in tally.left_out.items() if reason != EMPTY}
    events = {**left_out, **tally.cut, **tally.notes}
    for reason, what in events.items():
        rows = f"{what.rows:,} of {tally.read:,} rows"
        warnings.warn(f"{rows}: {reason}; the first is {what.first}", LeftOutWarning, stacklevel=3)


def _with_planned_batch_tokens(job: Job, plan: Plan, config: DumpConfig) -> Job:
    """The job with the plan's batch size, if the user set none: the first worker has chosen it for its device."""
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
    """Tokenise the corpus into a plan under ``root``. ``settings`` and ``stamps`` are computed if they aren't given.

    Raises:
        DataError: the corpus can't be read, or is empty. Then no file is left.
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
        raise StorageError(f"{root / SCRATCH_DIR} disappeared while the dump was running")
    return plan


def _remove_if_empty(out: Path, existed: bool) -> None:
    """Remove the directories of a dump that couldn't begin."""
    with suppress(OSError):  # not empty: another worker uses it
        (out / SCRATCH_DIR).rmdir()
        if not existed:
            out.rmdir()


def config_yaml(config: DumpConfig) -> str:
    """The content of the file at :func:`config_path`."""
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
