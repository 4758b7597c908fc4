"""What each rank of the distributed tests runs: `torchrun … ranks.py MODE SETTINGS.json`."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from fsdp_on_cpu import allow_fsdp_on_cpu

import logitcache as lc
from logitcache.train.trainer import DistillTrainer, Feed

torch.set_num_threads(1)


def digest_of(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    allow_fsdp_on_cpu()
    place, settings = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    rank = int(__import__("os").environ.get("RANK", "0"))
    seen: dict[str, Any] = {"samples": [], "digest": None}

    # The first step's gradients, as the optimizer is about to see them, and the samples of each step.
    clip = DistillTrainer._clip_grad_norm

    def watch(self: DistillTrainer, model: torch.nn.Module) -> Any:
        seen["wrapper"] = type(model).__name__
        if self.state.global_step == 0 and rank == 0 and not self.is_fsdp_enabled:
            student = self.student()
            torch.save({n: p.grad.clone() for n, p in student.named_parameters()}, place / "gradients.pt")
        return clip(self, model)

    DistillTrainer._clip_grad_norm = watch  # type: ignore[method-assign]
    pull = Feed.__iter__

    def record(self: Feed) -> Any:
        for inputs in pull(self):
            ids, positions = inputs["batch"].input_ids, inputs["batch"].position_ids
            rows = [row[:8].tolist() for row, at in zip(ids, positions, strict=True) if at[0] == 0 and row.any()]
            seen["samples"].append(rows)
            yield inputs

    Feed.__iter__ = record  # type: ignore[method-assign]
    end = DistillTrainer.save_model

    def keep(self: DistillTrainer, *args: Any, **kwargs: Any) -> None:
        if not self.is_fsdp_enabled:
            seen["digest"] = digest_of(self.student())
        end(self, *args, **kwargs)

    DistillTrainer.save_model = keep  # type: ignore[method-assign]
    result = lc.train(**settings)
    seen["losses"] = [entry["loss"] for entry in result.history if "loss" in entry]
    seen["after"] = None if result.after is None else result.after.flat()
    (place / f"rank{rank}.json").write_text(json.dumps(seen))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


main()
