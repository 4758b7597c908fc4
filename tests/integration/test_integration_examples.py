"""The examples of docs/how-to/own-loop.md, run as a reader would: on a real cache of the real teacher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import logitcache as lc
from logitcache.students.cut import make_student

# BiLD alone says nothing of the mass outside the ids it compares, so far from the teacher KL joins it.
MIX = ("--loss", "bild=1.0,residual_kl=1.0")
EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def cache(smollm2_dir: Path, heldout_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 800 tokens of the teacher's targets."""
    folder = tmp_path_factory.mktemp("integration")
    (folder / "text.txt").write_text(heldout_text.read_text()[:3600])
    lc.dump(teacher=str(smollm2_dir), data=[str(folder / "text.txt")], out=folder / "cache", max_length=128)
    return folder / "cache"


@pytest.fixture(scope="module")
def student(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("integration") / "student"
    make_student(smollm2_dir, path, layers=3)
    return path


def run(example: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / example), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def evaluated(cache: Path, student: Path) -> float:
    return lc.evaluate(cache, student).kl


def test_the_plain_loop_brings_the_student_closer(cache: Path, student: Path, tmp_path: Path) -> None:
    out = run(
        "plain_loop.py", "--cache", cache, "--student", student, "--out", tmp_path / "trained", "--steps", 8, *MIX
    )
    assert "step    8" in out
    assert "coverage 0." in out
    assert evaluated(cache, tmp_path / "trained") < evaluated(cache, student) - 0.2


def test_trl_trains_on_the_same_cache(cache: Path, student: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs the extra: pip install 'logitcache[trl]'")
    trained = tmp_path / "trained"
    out = run("trl_sft.py", "--cache", cache, "--student", student, "--out", trained, "--steps", 8, *MIX)
    assert "s_ld_coverage" in out
    assert evaluated(cache, trained) < evaluated(cache, student) - 0.2


def test_trl_and_the_plain_loop_see_the_same_loss(cache: Path, student: Path, tmp_path: Path) -> None:
    """Before the first update, over all sequences at once, both report the loss of the untrained student."""
    pytest.importorskip("trl", reason="needs the extra: pip install 'logitcache[trl]'")
    size = len(lc.open(cache))
    arguments = ("--cache", cache, "--student", student, "--steps", 1, "--batch-size", size)
    plain = run("plain_loop.py", *arguments, "--out", tmp_path / "plain")
    code = (
        f"import sys, json; sys.path.insert(0, {str(EXAMPLES)!r}); import trl_sft\n"
        f"trainer = trl_sft.train({str(cache)!r}, {str(student)!r}, {str(tmp_path / 'trl')!r}, "
        f"loss='bild', steps=1, batch_size={size})\n"
        "print('LOSS', json.dumps(trainer.state.log_history[0]['loss']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout.rsplit("LOSS", 1)[1])
    ours = float(plain.split("loss")[1].split()[0])

    sequences = [lc.open(cache)[row] for row in range(size)]
    model = AutoModelForCausalLM.from_pretrained(student)
    with torch.no_grad():
        values = [lc.losses.get("bild")(model(s.token_ids[None]).logits[0, s.positions], s.targets) for s in sequences]
    expected = torch.cat(values).mean().item()
    assert ours == pytest.approx(expected, rel=1e-3)
    assert theirs == pytest.approx(expected, rel=1e-3)
