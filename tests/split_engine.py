"""The transformers engine in two processes: `test_engines.py` runs this file by torchrun, once in each process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_conformance import EngineConformance, Open
from torch import nn
from torch.distributed.tensor import DeviceMesh, Replicate, Shard, distribute_tensor

from logitcache import engines
from logitcache.engines import Engine, EngineSettings, Team
from logitcache.models.finish import Finish
from logitcache.models.head import Head
from logitcache.models.identity import find_teacher
from logitcache.models.split_head import find_split
from logitcache.targets.parts import Part, top_k_of_parts
from logitcache.targets.topk import TopK


@pytest.fixture(scope="session")
def processes() -> Iterator[Team]:
    with engines.team(True, torch.device("cpu")) as joined:
        yield joined


class TestSplit(EngineConformance):
    engine = "transformers"
    settings = {"tensor_parallel": True}  # noqa: RUF012

    @pytest.fixture
    def teacher_dir(self, tiny_llama_dir: Path) -> Path:
        return tiny_llama_dir

    @pytest.fixture
    def open(self, teacher_dir: Path, processes: Team) -> Iterator[Open]:
        assert processes.size == 2
        opened = []

        def call(*, generation: bool = False, **more: Any) -> Engine:
            def load() -> Engine:
                return engines.open_engine(self.engine, self.asked(teacher_dir, **more), generation=generation)

            if processes.follows:
                processes.follow(load)
                pytest.skip("this process follows")
            opened.append(processes.engine(load))
            return opened[-1]

        yield call
        if opened:
            with processes.leading():
                pass


@pytest.mark.parametrize("vocab_size", [64, 65, 3])
def test_parts_give_what_the_whole_gives(processes: Team, vocab_size: int) -> None:
    logits = torch.randn(40, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 5
    logits[10:20] = logits[10:20].round()  # ties
    logits[20:30, ::2] = -torch.inf
    logits[30:] -= 1000 * torch.arange(vocab_size)  # a tail far below
    k = min(8, vocab_size)
    each = -(-vocab_size // processes.size)
    mine = logits[:, processes.rank * each : (processes.rank + 1) * each].clone()
    given = top_k_of_parts(mine, Part(processes.rank * each, vocab_size), k)
    whole = TopK.from_logits(logits, k)
    certain = whole.logprobs > whole.logprobs[:, -1:]  # which of several equal logits come last is left open
    assert torch.equal(given.ids[certain], whole.ids[certain])
    torch.testing.assert_close(given.logprobs, whole.logprobs)
    torch.testing.assert_close(given.residual_logprob, whole.residual_logprob)


@pytest.mark.parametrize("settings", [{}, {"statistics": True}])
def test_logits_are_gathered_only_where_all_are_needed(
    processes: Team, tiny_llama_dir: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = find_teacher(str(tiny_llama_dir))
    asked = EngineSettings(teacher, 8, torch.device("cpu"), torch.bfloat16, 64, tensor_parallel=True, **settings)
    engine = engines.open_engine("transformers", asked)
    assert (engine.output.split is None) == bool(settings)
    assert engine.info.head_dtype == (None if settings else "float32")


@pytest.mark.parametrize("bias", ["none", "divided", "replicated", "whole"])
@pytest.mark.parametrize(("rows", "kept"), [(67, None), (67, 40), (67, 20), (3, None)])
def test_each_process_has_the_biases_of_its_own_ids(processes: Team, bias: str, rows: int, kept: int | None) -> None:
    torch.manual_seed(rows)
    linear, hidden = nn.Linear(16, rows, bias=bias != "none"), torch.randn(9, 16)
    expected = linear(hidden)[:, :kept].detach()
    mesh = DeviceMesh("cpu", list(range(processes.size)))
    linear.weight = nn.Parameter(distribute_tensor(linear.weight.detach(), mesh, [Shard(0)]))
    if bias in ("divided", "replicated"):
        placement = Shard(0) if bias == "divided" else Replicate()
        linear.bias = nn.Parameter(distribute_tensor(linear.bias.detach(), mesh, [placement]))
    split = find_split(Head(nn.Identity(), linear, expected.shape[1], Finish(kept_rows=kept)))
    assert split is not None
    mine = split.logits(hidden)
    torch.testing.assert_close(mine, expected[:, split.part.first_id :][:, : mine.shape[1]])
    given, whole = top_k_of_parts(mine, split.part, 3), TopK.from_logits(expected, 3)
    assert torch.equal(given.ids, whole.ids)
    torch.testing.assert_close(given.logprobs, whole.logprobs)
