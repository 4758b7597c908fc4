"""The engines that come with logitcache, held to what every engine must hold to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_conformance import EngineConformance, Open, assert_same, mixed, scored
from transformers import AutoModelForCausalLM

from logitcache.targets.topk import TopK

TESTS = Path(__file__).resolve().parents[1]


class TransformersConformance(EngineConformance):
    engine = "transformers"

    @torch.no_grad()
    def test_the_model_says_the_same(self, open: Open, teacher_dir: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(teacher_dir, dtype=torch.float32).eval()
        for one, targets in zip(mixed(), scored(open(), mixed()), strict=True):
            ids_L = torch.from_numpy(one.token_ids_L.astype(np.int64))
            logits_NV = model(input_ids=ids_L[None]).logits[0, torch.from_numpy(one.target_mask_L)]
            if len(targets):
                assert_same(TopK.from_logits(logits_NV, targets.k), targets, self.noise)


class TestTiny(TransformersConformance):
    @pytest.fixture
    def teacher_dir(self, tiny_llama_dir: Path) -> Path:
        return tiny_llama_dir


@pytest.mark.integration
class TestSmolLM2(TransformersConformance):
    noise = 1e-3

    @pytest.fixture
    def teacher_dir(self, smollm2_dir: Path) -> Path:
        return smollm2_dir


@pytest.mark.integration
def test_tensor_parallel(smollm2_dir: Path) -> None:
    """The same tests in two processes that share a teacher: one leads, and the other follows."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "pytest"]
    command += ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", str(TESTS / "split_engine.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LOGITCACHE_TEACHER": str(smollm2_dir)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=500, check=False, cwd=TESTS.parent
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    # The leader runs every test; the follower those only in which an engine is refused.
    assert re.search(r"^\d+ passed(, \d+ warnings?)? in", done.stdout, re.M), done.stdout[-4000:]
