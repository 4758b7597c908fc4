"""Stage 2: train a student from a cache."""

from __future__ import annotations

import os
import time
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from logitcache.cache.opening import open_place
from logitcache.errors import LogitCacheWarning, OutputExistsError
from logitcache.evaluate.measure import Metrics
from logitcache.evaluate.report import NO_PLOT, write_report
from logitcache.losses import StudentWithLoss
from logitcache.losses.registry import resolve
from logitcache.models.dtypes import DTYPES
from logitcache.stream import Stream, stream
from logitcache.students.pairing import check_lengths, load_student, pair
from logitcache.train import checkpoints, sharding
from logitcache.train.arguments import CHECKPOINTS, micro_batch_size, training_arguments
from logitcache.train.attention import at_loading, choose_attention
from logitcache.train.audit import Audit, choose_fill
from logitcache.train.config import TrainConfig
from logitcache.train.lora import prepare_student
from logitcache.train.packing import check_packing
from logitcache.train.precision import autocast, describe_precision, warn_of_half_weights, with_precision
from logitcache.train.processes import check_processes, several_gpus
from logitcache.train.result import TrainResult, evaluations
from logitcache.train.source import Source, check_eval_cache
from logitcache.utils.atomic import write_atomically
from logitcache.utils.progress import Report, silent
from logitcache.utils.settings import resumed_as

if TYPE_CHECKING:
    from logitcache.train.trainer import DistillTrainer

CONFIG_NAME = "train_config.yaml"
NOTHING_LEARNT = "no position met the conditions, so the student is what it was"


def plan(config: TrainConfig) -> dict[str, Any]:
    """Describe a run after all checks, without writing anything. Raises as :func:`train` does."""
    run = Run(config, silent)
    stream, totals = run.train_stream(), [cache.manifest.totals for cache in run.source.caches]
    parameters = [(value.numel(), value.requires_grad) for value in run.student.parameters()]
    components = run.source.components(stream)
    exact = stream.layout.lengths.keeps_all and config.weights is None
    return {
        "cache": stream.cache.digest,
        **({"caches": components} if components else {}),
        "sequences": stream.plan(0).order.samples,
        "tokens": stream.epoch_tokens,
        # Targets are counted for whole caches; their number in a part of a cache is known only when it is read.
        **({"targets": sum(total.targets for total in totals)} if exact else {}),
        "optimizer_steps": config.max_steps or sum(run.steps),
        "steps_per_epoch": run.steps[0],
        "parameters": sum(count for count, _ in parameters),
        "trained_parameters": sum(count for count, trained in parameters if trained),
        "precision": describe_precision(run.config),
        "resumes_from": run.checkpoint,
        "notes": [*run.notes, *filter(None, [several_gpus(config)])],
    }


def train(config: TrainConfig | None = None, *, report: Report = silent, **settings: Any) -> TrainResult:
    """Train a student from a cache. The teacher's files are not needed.

    Args:
        config: the settings; or give them as keywords; see :class:`TrainConfig`.
        report: called with progress in tokens.

    Raises:
        ConfigError: a setting isn't allowed.
        OutputExistsError: ``out`` exists and ``resume`` isn't set.
        TokenizerMismatchError, ModelError, TargetsError: the student can't be trained from this cache.
        ResumeMismatchError: the cache or the settings have changed since the run was started.
    """
    config = TrainConfig.parse(settings) if config is None else config
    started = time.perf_counter()
    check_processes(config)
    run = Run(config, report)
    config = run.config
    trainer = run.trainer()
    trainer.train(resume_from_checkpoint=run.checkpoint)
    measured = evaluations(trainer.state.log_history)
    if config.eval_cache is not None and (not measured or measured[-1][0] != trainer.state.global_step):
        trainer.evaluate()
        measured = evaluations(trainer.state.log_history)
    run.save(trainer)
    if not trainer.feed.met_targets:
        run.notes.append(NOTHING_LEARNT)
    before, after = (measured[0][1], measured[-1][1]) if measured else (None, None)
    history = trainer.state.log_history
    files = run.write_report(trainer, before, after)
    return TrainResult(
        out=config.out,
        steps=trainer.state.global_step,
        before=before,
        after=after,
        history=history,
        seconds=time.perf_counter() - started,
        notes=(*run.notes, *([NO_PLOT] if len(files) == 2 else [])),
        files=files,
    )


class Run:
    """One run. It opens and checks everything before it writes anything."""

    def __init__(self, config: TrainConfig, report: Report) -> None:
        self.config = config = with_precision(config)
        self._report = report
        self.loss = resolve(config.loss, **config.loss_options)
        self.checkpoint = _place(config)
        self.settings = config.model_dump(mode="json", exclude=resumed_as(TrainConfig, "free"))
        self.state = None if self.checkpoint is None else checkpoints.read_state(Path(self.checkpoint), self.settings)
        self.source = Source.open(config)
        self.cache = self.source.first
        self.eval_cache = None if config.eval_cache is None else open_place(config.eval_cache)
        check_eval_cache(self.source.caches, self.eval_cache)
        audit_cache = None if config.audit is None else open_place(config.audit)
        check_eval_cache(self.source.caches, audit_cache)
        self._check_targets()
        torch.manual_seed(config.seed)
        with sharding.all_ranks_load():
            student = load_student(config.student, dtype=DTYPES[config.dtype], attention=at_loading(config))
        self.pairing = pair(self.cache, student, config.student, max_length=config.max_length)
        for cache in self.source.caches[1:]:
            check_lengths(cache, student, config.max_length)
        for cache in filter(None, (self.eval_cache, audit_cache)):
            check_lengths(cache, student)
        self.student = prepare_student(student, config)
        warn_of_half_weights(self.student, config)
        if config.pack_tokens is not None:
            check_packing(student)
        limit = self.pairing.vocab_limit
        self.audit = None if audit_cache is None else Audit(audit_cache, self.source.caches, limit)

    @cached_property
    def steps(self) -> list[int]:
        """Optimizer steps of each epoch."""
        return [self.train_stream().steps(epoch) for epoch in range(1 if self.config.max_steps else self.config.epochs)]

    @cached_property
    def notes(self) -> list[str]:
        """Notes for the user about the caches and the student."""
        return [*self.source.notes(self.train_stream(), self.eval_cache), *self.pairing.notes]

    def _check_targets(self) -> None:
        """Check, before the first step, that the cache holds what the loss needs."""
        batch = next(iter(stream(self.source.readable, batch_size=1, shuffle=False, prefetch=0)))
        self.loss.check_inputs(batch.targets, batch.labels)

    def trainer(self) -> DistillTrainer:
        """Make the Trainer. This writes the first files."""
        # Imported late: loading transformers' Trainer takes seconds, and other commands don't need it.
        from logitcache.train.trainer import DistillTrainer, Feed

        config = self.config
        args = self.arguments()
        feed_stream = self.train_stream(args.process_index, args.world_size)
        done = 0 if self.checkpoint is None else checkpoints.step_of(Path(self.checkpoint))
        if self.state is not None:
            feed_stream.load_state_dict(self.state)
        limit = self.pairing.vocab_limit
        module = StudentWithLoss(self.student, self.loss, limit, args.world_size)
        choose_attention(self.student, config, args.device)
        if module.why_dense:
            warnings.warn(module.why_dense, LogitCacheWarning, stacklevel=2)
        if self.audit is not None:
            with autocast(config, args.device):
                self.notes.extend(choose_fill(self.audit, module.to(args.device)))
        if is_first_rank():
            config.out.mkdir(parents=True, exist_ok=True)
            write_atomically(config.out / CONFIG_NAME, yaml.safe_dump(config.model_dump(mode="json")))
        trainer = DistillTrainer(
            model=module,
            args=args,
            feed=Feed(feed_stream, feed_stream.plan(0).order.samples, args.max_steps - done),
            eval_stream=None if self.eval_cache is None else lambda: self._eval_stream(args, module.head),
            tokenizer=self.pairing.tokenizer,
            settings=self.settings,
            components=self.source.components(feed_stream),
            audit=self.audit,
            keep_checkpoints=config.keep_checkpoints,
            total_tokens=round(feed_stream.epoch_tokens * args.max_steps / max(1, self.steps[0])),
            report=self._report,
        )
        if self.checkpoint is not None:
            sharding.check_checkpoint(Path(self.checkpoint), trainer.fsdp)
        return trainer

    def arguments(self) -> Any:
        """The settings as ``transformers.TrainingArguments``. Raises as ``training_arguments`` does."""
        layout = self.train_stream(0, int(os.environ.get("WORLD_SIZE", "1"))).layout
        return training_arguments(self.config, layout, self.steps, resumes=self.checkpoint is not None)

    def train_stream(self, rank: int = 0, world_size: int = 1) -> Stream:
        size, limit = micro_batch_size(self.config, world_size), self.pairing.vocab_limit
        return self.source.stream(self.config, size, limit, rank, world_size)

    def _eval_stream(self, args: Any, head: Any) -> Stream:
        assert self.eval_cache is not None
        return stream(
            self.eval_cache,
            batch_size=(8 if head.turn is None else 1) * args.world_size,
            rank=args.process_index,
            world_size=args.world_size,
            shuffle=False,
            vocab_limit=self.pairing.vocab_limit,
        )

    def save(self, trainer: DistillTrainer) -> None:
        """Save the trained student to a temporary directory, then move its files to ``out``, the configuration last."""
        aside = self.config.out / ".incoming"
        trainer.save_model(str(aside))
        if not trainer.args.should_save:
            return
        for path in sorted(aside.iterdir(), key=lambda path: path.name in ("config.json", "adapter_config.json")):
            os.replace(path, self.config.out / path.name)
        aside.rmdir()

    def write_report(self, trainer: DistillTrainer, before: Metrics | None, after: Metrics | None) -> tuple[Path, ...]:
        config = self.config
        if not (config.write_report and trainer.args.should_save):
            return ()
        facts: dict[str, Any] = {
            "cache": self.source.readable.digest,
            "teacher": self.source.teachers(),
            "precision": describe_precision(config),
        }
        if components := self.source.components(trainer.feed.stream):
            facts["caches"] = components
        if self.eval_cache is not None:
            facts["eval_cache"] = self.eval_cache.digest
        return tuple(
            write_report(
                config.out,
                title=f"{Path(config.student).name} trained with {config.loss}",
                history=trainer.state.log_history,
                before=before,
                after=after,
                settings=config.model_dump(mode="json"),
                facts=facts,
            )
        )


def check_settings(config: TrainConfig) -> None:
    """Check the settings without loading a cache or a model. Raises as :func:`train` does."""
    resolve(config.loss, **config.loss_options)
    check_processes(config)
    _place(config)


def is_first_rank() -> bool:
    """True in the process that writes files and messages: the only one, or the first one of torchrun."""
    return os.environ.get("RANK", "0") == "0"


def _place(config: TrainConfig) -> str | None:
    """The checkpoint to continue from, if there is one.

    Raises:
        OutputExistsError: there is something in ``out``, and ``resume`` isn't set.
        ResumeMismatchError: there is nothing to resume.
    """
    out = config.out
    if not config.resume:
        if not is_first_rank():
            return None  # the first rank may have written files already
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputExistsError(f"{out} exists: choose another --out, remove it, or go on with --resume")
        return None
    if is_first_rank() and ((out / "config.json").exists() or (out / "adapter_config.json").exists()):
        raise OutputExistsError(f"{out} holds a finished run: there is nothing to resume")
    found = checkpoints.newest(out / CHECKPOINTS)
    return None if found is None else str(found)
