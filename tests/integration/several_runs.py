"""What each rank of test_sharding.py runs, one run after the other: `several_runs.py RUNS.json`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from fsdp_on_cpu import allow_fsdp_on_cpu

import logitcache as lc
from logitcache.evaluate.measure import MetricSums
from logitcache.losses.residual_kl import ResidualKL
from logitcache.train.trainer import DistillTrainer, Feed

torch.set_num_threads(1)
WRAPPERS = {"DDP": torch.nn.parallel.DistributedDataParallel, "FSDP": torch.distributed.fsdp.FSDPModule}
seen: dict[str, Any] = {}


def numbers(targets: lc.TopK) -> dict[str, list[Any]]:
    """The dtype of each of the targets' tensors and the sum over it, which rounding would change."""
    names = ("logprobs", "residual_logprob", "log_partition", "logit_std")
    tensors = {name: getattr(targets, name) for name in names}
    return {name: [str(value.dtype), float(value.double().sum())] for name, value in tensors.items()}


@lc.losses.register
@dataclass(frozen=True)
class Recording(ResidualKL):
    """Keeps a record of what arrives."""

    name: ClassVar[str] = "recording"

    def per_token(self, logits_NV: torch.Tensor, targets: lc.TopK, labels_N: torch.Tensor | None) -> torch.Tensor:
        seen["at the loss"].append(numbers(targets))
        return super().per_token(logits_NV, targets, labels_N)


def watch() -> None:
    """Record what is fed, what the loss and the metrics leave as, and what DDP was told."""
    pull, compute, reduced = Feed.__iter__, DistillTrainer.compute_loss, MetricSums.reduced

    def feed(self: Feed) -> Any:
        for inputs in pull(self):
            seen["targets"].append(len(inputs["batch"].targets))
            if seen["keeps numbers"]:
                seen["fed"].append(numbers(inputs["batch"].targets))
            yield inputs

    def compute_loss(self: DistillTrainer, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, model, *args, **kwargs)
        seen["loss dtypes"].append(str(loss.dtype))
        seen["wrapper"] = [name for name, kind in WRAPPERS.items() if isinstance(model, kind)]
        seen["searches"] = getattr(model, "find_unused_parameters", None)
        return loss

    def reduce(self: MetricSums, device: torch.device) -> MetricSums:
        seen["metric dtypes"] = sorted({str(value.dtype) for value in self.sums.values()})
        return reduced(self, device)

    Feed.__iter__ = feed  # type: ignore[method-assign]
    DistillTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
    MetricSums.reduced = reduce  # type: ignore[method-assign]


def run(settings: dict[str, Any]) -> None:
    seen.update({"targets": [], "fed": [], "at the loss": [], "loss dtypes": []})
    seen["keeps numbers"] = settings.get("loss") == "recording"
    os.environ.pop("ACCELERATE_USE_FSDP", None)  # accelerate would go on with FSDP
    try:
        result = lc.train(**settings)
        seen["losses"] = [entry["loss"] for entry in result.history if "loss" in entry]
    except lc.LogitCacheError as error:
        seen["error"] = f"{type(error).__name__}: {error}"


def main() -> None:
    watch()
    allow_fsdp_on_cpu()
    rank, place = os.environ["RANK"], Path(sys.argv[1]).parent
    for name, settings in json.loads(Path(sys.argv[1]).read_text()).items():
        start = settings.pop("starts from", None)
        if start is not None and rank == "0":
            shutil.copytree(start, Path(settings["out"]) / "checkpoints" / Path(start).name)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        seen.clear()
        run(settings)
        (place / f"{name}.{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
