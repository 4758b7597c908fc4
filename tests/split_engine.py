"""The transformers engine in two processes: `test_engines.py` runs this file by torchrun, once in each process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_conformance import EngineConformance, Open

from logitcache import engines
from logitcache.engines import Engine, Team


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
