"""Each call that concerns a device concerns the right one: seen on devices that keep a record, and on the real ones."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_devices import CUDA, GIB, FakeDevices, on_cuda_1
from torch import distributed
from transformers import AutoModelForCausalLM

import logitcache as lc
from logitcache.data import TokenSequence
from logitcache.engines import EngineSettings, team
from logitcache.engines.host import to_host
from logitcache.engines.transformers_engine import TransformersEngine, open_transformers
from logitcache.models.identity import find_teacher
from logitcache.models.teacher import choose_device
from logitcache.utils.device import DEVICES, local_device

CPU = torch.device("cpu")


def some_targets() -> lc.TopK:
    torch.manual_seed(0)
    return lc.TopK.from_logits(torch.randn(5, 40), 4, statistics=True)


def equal(one: lc.TopK, two: lc.TopK) -> bool:
    names = ("ids", "logprobs", "residual_logprob", "log_partition", "logit_std")
    pairs = [(getattr(one, name), getattr(two, name)) for name in names]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


def sequences(count: int = 6) -> list[TokenSequence]:
    rng = np.random.default_rng(0)
    lengths = [4 + 3 * number for number in range(count)]
    return [TokenSequence(rng.integers(0, 1000, length, np.uint32), np.ones(length, bool)) for length in lengths]


class TestCopies:
    """Targets on another device than the current one, as under --device-map, whose last device has the head."""

    def test_event_is_of_the_device_that_holds_the_targets(self) -> None:
        devices = FakeDevices(GIB, GIB)
        to_host(on_cuda_1(some_targets()), devices)
        assert devices.current == CUDA[0]
        assert devices.log == [("copy", CUDA[1])] * 5 + [("event", CUDA[1])]

    def test_targets_are_whole_after_the_wait(self) -> None:
        coming = to_host(on_cuda_1(some_targets()), FakeDevices(GIB, GIB))
        assert not equal(coming.targets, some_targets())  # the copies are late, or nothing here could fail
        assert equal(coming.wait(), some_targets())
        assert equal(coming.wait(), some_targets())

    def test_source_is_kept_until_the_copies_are_done_and_no_longer(self) -> None:
        devices = FakeDevices(GIB, GIB)
        coming = to_host(on_cuda_1(some_targets()), devices)
        gc.collect()
        assert equal(coming.wait(), some_targets())
        assert devices.lost == 0
        assert coming.source is None

    def test_engine_waits_for_the_device_that_computed(self, tiny_llama_dir: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)

        class HeadElsewhere(TransformersEngine):
            def _targets(self, batch: Any) -> lc.TopK:
                return on_cuda_1(super()._targets(batch))

        devices = FakeDevices(GIB, GIB)
        far = HeadElsewhere(model, top_k=4, batch_tokens=32, devices=devices)
        near = TransformersEngine(model, top_k=4, batch_tokens=32)
        pairs = list(zip(far.score(sequences()), near.score(sequences()), strict=True))
        assert len(pairs) > 2
        for (which, targets), (expected, wanted) in pairs:
            assert which == expected
            assert equal(targets, wanted)
        assert devices.lost == 0
        assert {device for what, device in devices.log if what == "event"} == {CUDA[1]}

    def test_cpu_needs_no_event(self) -> None:
        coming = to_host(some_targets())
        assert coming.event is None
        assert equal(coming.wait(), some_targets())


class TestOwnDevice:
    """Under torchrun each process has the GPU of its own number."""

    @pytest.mark.parametrize("asked", ["auto", "cuda"])
    @pytest.mark.parametrize(("variable", "number", "index"), [("LOCAL_RANK", 3, 3), ("SLURM_LOCALID", 5, 1)])
    def test_without_an_index_it_is_this_process_s(
        self, asked: str, variable: str, number: int, index: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("LOCAL_RANK", "SLURM_LOCALID"):
            monkeypatch.delenv(name, raising=False)
        devices = FakeDevices(*[GIB] * 4)
        assert choose_device(asked, devices) == CUDA[0]
        monkeypatch.setenv(variable, str(number))
        assert choose_device(asked, devices) == CUDA[index]

    def test_an_index_is_taken_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOCAL_RANK", "3")
        assert choose_device("cuda:1", FakeDevices(*[GIB] * 4)) == CUDA[1]
        assert choose_device("cpu", FakeDevices(*[GIB] * 4)) == CPU

    def test_no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOCAL_RANK", "3")
        assert choose_device("auto", FakeDevices()) == CPU
        with pytest.raises(lc.LogitCacheError, match="'cuda:4' can't be used"):
            choose_device("cuda:4", FakeDevices(GIB))

    def test_engine_makes_it_current_before_it_loads(self, tiny_llama_dir: Path) -> None:
        devices = FakeDevices()
        files = find_teacher(str(tiny_llama_dir))
        settings = EngineSettings(files, top_k=4, device=CPU, dtype=torch.float32, batch_tokens=64, attention="none")
        with pytest.raises(lc.LogitCacheError):  # no such attention
            open_transformers(settings, devices)
        assert devices.log == [("current", CPU)]


class TestTeam:
    """The processes of a split teacher: each on its own GPU before the first word between them."""

    @pytest.fixture(autouse=True)
    def under_torchrun(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"RANK": "2", "LOCAL_RANK": "2", "MASTER_ADDR": "127.0.0.1"}.items():
            monkeypatch.setenv(name, value)

    def test_device_is_current_before_the_group_is_made(self) -> None:
        devices = FakeDevices(*[GIB] * 4)

        def join(backend: str, *, timeout: Any, device_id: torch.device) -> None:
            devices.log.append(("join", backend, device_id))
            distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())

        with team(True, choose_device("cuda", devices), devices=devices, join=join) as processes:
            assert processes.size == 1
        assert devices.log == [("current", CUDA[2]), ("join", "nccl", CUDA[2])]
        assert not distributed.is_initialized()

    def test_one_gpu_for_all_is_refused(self) -> None:
        devices = FakeDevices(*[GIB] * 4)
        with (
            pytest.raises(lc.LogitCacheError, match="give --device cuda"),
            team(True, choose_device("cuda:1", devices), devices=devices),
        ):
            pass


class TestReal:
    """The real ones on a machine without accelerators do nothing, and claim nothing."""

    def test_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOCAL_RANK", "3")
        assert DEVICES.count("cpu") == 0
        assert local_device("cpu") == CPU
        assert DEVICES.free_bytes(CPU) is None
        assert DEVICES.record(CPU) is None
        assert DEVICES.has_bf16(CPU)
        tensor = torch.arange(3)
        assert torch.equal(DEVICES.copy_to_host(tensor), tensor)
        DEVICES.make_current(CPU)
        DEVICES.empty_cache(CPU)

    @pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
    @pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
    def test_none_of_a_kind(self, kind: str) -> None:
        assert DEVICES.count(kind) == 0
        assert local_device(kind) == torch.device(kind)
        with pytest.raises(lc.LogitCacheError, match="can't be used"):
            choose_device(kind)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_cuda(self) -> None:
        last = torch.device("cuda", torch.cuda.device_count() - 1)
        assert DEVICES.count("cuda") == torch.cuda.device_count()
        free = DEVICES.free_bytes(last)
        assert free is not None
        assert 0 < free <= torch.cuda.get_device_properties(last).total_memory
        DEVICES.make_current(last)
        assert torch.cuda.current_device() == last.index
        wanted = some_targets()
        for _ in range(20):
            torch.mm(*torch.randn(2, 4096, 4096, device=last))  # work before the copy, so that it can't be early
            assert equal(to_host(wanted.to(last)).wait(), wanted)
        torch.cuda.set_device(0)
