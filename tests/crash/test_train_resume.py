"""Training that is killed at any moment and resumed ends with the same bits as training that wasn't."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from make_caches import TEXT, cache_of_model, save_tokenizer, text_sequences
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from logitcache.cache.reader import Cache

pytestmark = pytest.mark.crash
KILLS = 20 if os.environ.get("LOGITCACHE_FULL_CRASH") else 2
STEPS = 24

# A step is held up a little, so that there is time to be killed in; the kill may fall anywhere, also into a checkpoint.
SCRIPT = """
import sys, time
import torch
torch.set_num_threads(1)
import logitcache as lc
from logitcache.train.trainer import Feed
cache, student, out, resume, pause = sys.argv[1:6]
inner = Feed.__iter__
def slow(self):
    for inputs in inner(self):
        time.sleep(float(pause))
        yield inputs
Feed.__iter__ = slow
lc.train(
    cache=cache, student=student, out=out, resume=resume == "yes", loss="forward_kl", epochs=4, batch_size=4,
    micro_batch_size=2, learning_rate=1e-3, checkpoint_every=2, seed=5,
    write_report=False,
)
"""


@pytest.fixture(scope="module")
def student_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 shaped and tiny, with dropout: the random numbers have to go on where they stopped too."""
    path = tmp_path_factory.mktemp("student") / "student"
    tokenizer = AutoTokenizer.from_pretrained(save_tokenizer(path, TEXT))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def cache(student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    teacher = GPT2LMHeadModel.from_pretrained(student_dir).eval()
    sequences = text_sequences(student_dir, TEXT, 24, 22)
    return cache_of_model(tmp_path_factory.mktemp("cache") / "cache", teacher, sequences, student_dir, k=8)


def start(cache: Cache, student: Path, out: Path, *, resume: bool, pause: float) -> subprocess.Popen[bytes]:
    arguments = [str(cache.root), str(student), str(out), "yes" if resume else "no", str(pause)]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr.decode()[-2000:]


@pytest.fixture(scope="module")
def whole(cache: Cache, student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that an undisturbed run ends with."""
    out = tmp_path_factory.mktemp("whole") / "out"
    finish(start(cache, student_dir, out, resume=False, pause=0))
    return load_file(out / "model.safetensors")


def assert_same(out: Path, whole: dict[str, torch.Tensor]) -> None:
    resumed = load_file(out / "model.safetensors")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def newest_step(out: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in (out / "checkpoints").glob("checkpoint-*")), default=0)


def kill_after(process: subprocess.Popen[bytes], out: Path, step: int, delay: float) -> None:
    """Kill -9 a moment after a checkpoint of ``step`` or later has begun to appear."""
    deadline = time.monotonic() + 200
    while newest_step(out) < step and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_and_resumed_equals_undisturbed(
    cache: Cache, student_dir: Path, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    chance = random.Random(0)
    survived = 0
    for kill in range(KILLS):
        out = tmp_path / f"killed-{kill}"
        process = start(cache, student_dir, out, resume=False, pause=0.02)
        kill_after(process, out, chance.randrange(2, STEPS - 2), chance.uniform(0, 0.3))
        if (out / "model.safetensors").exists():
            continue  # the run was faster than the kill
        survived += 1
        assert not (out / "config.json").exists()  # nothing there looks finished
        finish(start(cache, student_dir, out, resume=True, pause=0))
        assert_same(out, whole)
        shutil.rmtree(out)
    assert survived >= KILLS // 2


def test_killed_twice_in_one_run(
    cache: Cache, student_dir: Path, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    kill_after(start(cache, student_dir, out, resume=False, pause=0.05), out, 6, 0.05)
    kill_after(start(cache, student_dir, out, resume=True, pause=0.05), out, 14, 0.02)
    finish(start(cache, student_dir, out, resume=True, pause=0))
    assert_same(out, whole)


def test_a_checkpoint_without_its_marker_is_not_used(
    cache: Cache, student_dir: Path, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """What a kill in the middle of a checkpoint leaves: some files, and no marker."""
    out = tmp_path / "out"
    torso = out / "checkpoints" / "checkpoint-20"
    torso.mkdir(parents=True)
    (torso / "model.safetensors").write_bytes(b"half")
    finish(start(cache, student_dir, out, resume=True, pause=0))
    assert_same(out, whole)
