"""Tests that need a GPU: `make test-gpu`. Without one they are left out, and one line says so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from make_caches import TEXT, cache_of_model, save_llama, save_tokenizer, text_sequences
from transformers import AutoModelForCausalLM

from benchmarks._device import why_no_gpu
from logitcache.cache.reader import Cache

Torchrun = Callable[..., subprocess.CompletedProcess[str]]


HERE = Path(__file__).parent
_left_out: list[pytest.Item] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if why_no_gpu():
        _left_out.extend(item for item in items if HERE in item.path.parents)
        config.hook.pytest_deselected(items=_left_out)
        items[:] = [item for item in items if HERE not in item.path.parents]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _left_out:
        terminalreporter.write_line(f"tests/gpu: {len(_left_out)} tests left out: {why_no_gpu()}")


@pytest.fixture
def two_gpus() -> None:
    if (count := torch.cuda.device_count()) < 2:
        pytest.skip(f"needs two GPUs, and there is {count}")


@pytest.fixture(autouse=True)
def _memory_as_before() -> Iterator[None]:
    """A test may cap the memory of a device; the next one has all of it."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, 0)
    torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers with opinions, and a tokenizer of 600 words."""
    place = tmp_path_factory.mktemp("teacher")
    return save_llama(place / "teacher", save_tokenizer(place / "tokenizer", TEXT), seed=2, width=64, sharpness=20)


@pytest.fixture(scope="session")
def student_dir(teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("student") / "student", teacher_dir, seed=1, width=64)


@pytest.fixture(scope="session")
def cache(teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """What training learns from, computed on the CPU."""
    teacher = AutoModelForCausalLM.from_pretrained(teacher_dir).eval()
    place = tmp_path_factory.mktemp("cache") / "cache"
    return cache_of_model(place, teacher, text_sequences(teacher_dir, TEXT, 48, 41), teacher_dir, k=16)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT.read_text(encoding="utf-8")[:8000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def torchrun() -> Torchrun:
    """Run a script or, with ``--no-python``, a command in two processes, one for each GPU."""

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        launcher += ["--master-addr=127.0.0.1", f"--master-port={port}", *command]
        done = subprocess.run(launcher, capture_output=True, text=True, check=False, timeout=500, env=dict(os.environ))
        assert done.returncode == 0, done.stderr[-6000:]
        return done

    return run
