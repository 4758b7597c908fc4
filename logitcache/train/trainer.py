"""transformers.Trainer with batches from a cache's stream, the loss from the module, and plain students on disk."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from logitcache.errors import DivergedError, LogitCacheWarning, StorageError
from logitcache.evaluate.measure import MetricSums, metric_sums
from logitcache.losses import HeadStats, Sealed, StudentWithLoss
from logitcache.losses.metrics import coverage_advice
from logitcache.stream import Batch, Stream
from logitcache.students.saving import save_model
from logitcache.train import checkpoints, sharding
from logitcache.train.audit import Audit, shared_logits, without_targets
from logitcache.train.processes import prepare_division
from logitcache.utils.progress import Report
from logitcache.utils.reasons import reason


class Feed:
    """The stream as the Trainer's dataloader. It also measures the time of waiting for batches.

    The Trainer looks for keys in what it is fed, so each batch stands in a dictionary, as ``forward`` names it.

    It has no length: the whole run is one pass of ``steps`` steps, and the stream counts the epochs.
    """

    def __init__(self, stream: Stream, epoch_samples: int, steps: int) -> None:
        self.stream, self._epoch_samples, self._steps = stream, epoch_samples, steps
        self.waiting, self.tokens, self.epoch, self.met_targets = 0.0, 0, 0.0, False

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        batches, left = iter(self.stream), self._steps
        while left > 0:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waiting += time.perf_counter() - started
            if batch is None:
                return
            self.tokens += batch.tokens
            self.met_targets |= batch.batch_targets > 0
            left -= batch.ends_step
            self.epoch = batch.epoch + batch.samples_consumed / self._epoch_samples
            yield {"batch": batch}


class DistillTrainer(Trainer):
    """See the module's docstring; everything that isn't overridden here is the Trainer's."""

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *,
        model: StudentWithLoss,
        args: Any,
        feed: Feed,
        eval_stream: Callable[[], Stream] | None,
        tokenizer: Mapping[str, bytes],
        settings: dict[str, Any],
        components: list[dict[str, Any]],
        audit: Audit | None,
        keep_checkpoints: int,
        total_tokens: int,
        report: Report,
    ) -> None:
        # The Trainer wants an eval_dataset where there is an eval_strategy; evaluate() below uses the stream.
        super().__init__(model=model, args=args, eval_dataset=[] if eval_stream else None)
        self.remove_callback(PrinterCallback)
        prepare_division(self, model)
        self.feed, self._eval_stream, self._tokenizer = feed, eval_stream, tokenizer
        self._settings, self._keep, self._advised = settings, keep_checkpoints, False
        self._components, self._audit, self._seen = components, audit, _Coverage()
        self.add_callback(_Follow(self, total_tokens, report))

    @property
    def fsdp(self) -> Any | None:
        """accelerate's plugin for FSDP, if the student is divided that way."""
        return getattr(self.accelerator.state, "fsdp_plugin", None)

    def get_train_dataloader(self) -> Any:
        return self.feed

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        # Copied as it is: under DeepSpeed the Trainer would round the teacher's log-probs to half precision.
        return {"batch": inputs["batch"].to(self.args.device, non_blocking=True)}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, stats = model(Sealed(inputs["batch"]))
        self._seen.add(stats, inputs["batch"].targets.k)
        return (loss, {"loss": loss}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the coverage of s-LD to the log, and warn once if it is too low."""
        if "loss" in logs and (seen := self._seen.take()) is not None:
            coverage, listed = seen
            logs = {**logs, "s_ld_coverage": round(coverage, 4)}
            advice = coverage_advice(coverage, listed, audited=self._audit is not None)
            if advice and not self._advised:
                self._advised = True
                warnings.warn(advice, LogitCacheWarning, stacklevel=2)
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Measure the student on the held-out cache; each rank takes its share of every batch."""
        assert self._eval_stream is not None
        model = self.model_wrapped
        model.eval()
        total: MetricSums | None = None
        for batch in self._eval_stream():
            part = model(Sealed(self._prepare_inputs({"batch": batch})["batch"]), read=_metrics)
            total = part if total is None else total.plus(part)
        assert total is not None
        if self.args.world_size > 1:
            total = total.reduced(self.args.device)
        logs = total.mean().flat(f"{metric_key_prefix}_")
        if self._audit is not None and (match := self._audit.match(self._module().loss, self._audited)) is not None:
            logs[f"{metric_key_prefix}_s_ld_cosine"] = match.cosine
        model.train()
        self.log(logs)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, logs)
        return logs

    def _audited(self, batch: Batch) -> Tensor:
        """Every rank runs all audit rows: they are few, and a sharded student needs all ranks anyway."""
        inputs = self._prepare_inputs({"batch": without_targets(batch)})
        logits: Tensor = self.model_wrapped(Sealed(inputs["batch"]), read=shared_logits)
        return logits

    def student(self) -> Any:
        """The student without its wrappers."""
        return self._module().student

    def _module(self) -> StudentWithLoss:
        module: StudentWithLoss = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return module

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A whole student, also where checkpoints hold shards: the Trainer writes no student then."""
        if sharding.form_of(self.fsdp) == sharding.SHARDED:
            self._save(output_dir, self.accelerator.get_state_dict(self.model))
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save a plain student, which ``from_pretrained`` loads without logitcache."""
        if not self.args.should_save:
            return
        out = Path(str(output_dir or self.args.output_dir))
        own = None
        if state_dict is not None:
            own = {name.removeprefix("student."): value for name, value in state_dict.items()}
        save_student(self.student(), out, self._tokenizer, own)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.world_size > 1:
            torch.distributed.barrier()
        if self.args.should_save:
            directory = Path(str(self.args.output_dir))
            checkpoint = directory / f"checkpoint-{self.state.global_step}"
            checkpoints.complete(checkpoint, self.feed.stream.state_dict(), self._settings, self._components)
            checkpoints.rotate(directory, self._keep)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, self.student())

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that doesn't fit. A tied head isn't in the file, which is no fault."""
        tied = set(getattr(self.student(), "_tied_weights_keys", None) or ())
        missing = [name for name in load_result.missing_keys if name not in tied]
        if missing or load_result.unexpected_keys:
            raise RuntimeError(f"the checkpoint doesn't fit the student: {missing or load_result.unexpected_keys}")


def _metrics(module: StudentWithLoss, batch: Batch, hidden_ND: Tensor) -> MetricSums:
    """The metrics at held-out positions; for ``read`` of the module's ``forward``."""
    assert module.vocab_limit is not None
    targets = batch.targets.limited(module.vocab_limit)
    return metric_sums(module.head, hidden_ND, targets, batch.labels, module.vocab_limit)


class _Coverage:
    """Share of the student's top k that the targets hold, over the steps since the last :meth:`take`."""

    def __init__(self) -> None:
        self._covered, self._counted, self._listed = torch.zeros(()), 0, 0

    def add(self, stats: HeadStats, k: int) -> None:
        """``k``: K of the targets."""
        if stats.coverage is not None:
            # Kept on the device until it is read, so that the CPU doesn't wait.
            self._covered = self._covered.to(stats.coverage.device) + stats.coverage * stats.tokens
            self._counted, self._listed = self._counted + stats.tokens, k

    def take(self) -> tuple[float, int] | None:
        """The share, and K; None if the loss doesn't use the student's top k."""
        if not self._counted:
            return None
        share = float(self._covered) / self._counted
        self._covered, self._counted = torch.zeros(()), 0
        return share, self._listed


def save_student(
    student: Any, out: Path, tokenizer: Mapping[str, bytes], state_dict: dict[str, Tensor] | None = None
) -> None:
    """Save a student with a tokenizer's files beside it.

    Raises:
        StorageError: the disk is full, or permission is denied.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_model(student, out, state_dict=state_dict)
        for name, content in tokenizer.items():
            (out / name).write_bytes(content)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"can't save the student in {out}: {reason(error)}") from error


class _Follow(TrainerCallback):
    """Sets the Trainer's epoch, adds rates to the log, and reports progress."""

    def __init__(self, trainer: DistillTrainer, total_tokens: int, report: Report) -> None:
        self._trainer, self._total, self._report = trainer, total_tokens, report
        self._started = self._waited = 0.0
        self._tokens = self._before = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before = round(self._total * state.global_step / state.max_steps)  # before a resume
        self._mark()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        feed = self._trainer.feed
        state.epoch = feed.epoch
        done = min(self._before + feed.tokens * args.world_size, self._total)
        self._report("Training", done, self._total, "tokens")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise DivergedError(
                f"the loss is {logs['loss']} at step {state.global_step}: lower the learning rate, warm up longer, or "
                "compute in a wider dtype"
            )
        feed, now = self._trainer.feed, time.perf_counter()
        seconds = max(1e-9, now - self._started)
        entry = state.log_history[-1]
        entry["tokens_per_second"] = (feed.tokens - self._tokens) * args.world_size / seconds
        entry["waiting_share"] = (feed.waiting - self._waited) / seconds
        entry["seconds"] = seconds
        self._mark()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark()

    def _mark(self) -> None:
        """Measure time from here on: evaluating and saving don't count as training."""
        feed = self._trainer.feed
        self._started, self._tokens, self._waited = time.perf_counter(), feed.tokens, feed.waiting
