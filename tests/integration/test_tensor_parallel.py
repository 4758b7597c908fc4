"""A teacher split over two processes gives what one process gives, but for rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import logitcache as lc

pytestmark = pytest.mark.integration

SETTINGS = ["--top-k", "8", "--max-length", "64", "--shard-tokens", "256", "--min-mass", "0"]


def split_dump(teacher: Path, data: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """`logitcache dump --tensor-parallel` in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--no-python"]
    command += [str(Path(sys.executable).parent / "logitcache"), "dump", "--tensor-parallel", "--device", "cpu"]
    command += ["--teacher", str(teacher), "--data", str(data), "--out", str(out), *SETTINGS, *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def alone(teacher: Path, data: Path, out: Path, **more: object) -> lc.Cache:
    return lc.dump(teacher=teacher, data=data, out=out, top_k=8, max_length=64, shard_tokens=256, min_mass=0.0, **more)


def compare(split: lc.Cache, whole: lc.Cache) -> None:
    assert len(split) == len(whole)
    bound = 2 * whole.manifest.encoding.bound + 1e-4
    for ours, theirs in zip(split, whole, strict=True):
        assert torch.equal(ours.token_ids, theirs.token_ids)
        assert torch.equal(ours.positions, theirs.positions)
        assert (ours.targets.logprobs - theirs.targets.logprobs).abs().max() <= bound
        assert (ours.targets.ids == theirs.targets.ids).float().mean() > 0.99  # ties may turn


def test_split_teacher_says_the_same(tiny_llama_dir: Path, heldout_text: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(heldout_text.read_text(encoding="utf-8")[:4000], encoding="utf-8")
    done = split_dump(tiny_llama_dir, text, tmp_path / "split", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == str(tmp_path / "split")  # one process speaks
    split = lc.open(tmp_path / "split")
    assert split.manifest.provenance.settings["tensor_parallel"] == 2
    compare(split, alone(tiny_llama_dir, text, tmp_path / "whole"))


def test_split_teacher_answers_the_same(tiny_llama_dir: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("The state of", "My fellow", "We")))
    done = split_dump(tiny_llama_dir, prompts, tmp_path / "split", "--generate", "--max-new-tokens", "8")
    assert done.returncode == 0, done.stderr
    compare(
        lc.open(tmp_path / "split"), alone(tiny_llama_dir, prompts, tmp_path / "whole", generate={"max_new_tokens": 8})
    )


def test_failure_ends_all_processes(tiny_llama_dir: Path, heldout_text: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    done = split_dump(tiny_llama_dir, heldout_text, tmp_path / "taken")
    assert done.returncode == 1
    assert "choose another --out" in done.stderr
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["file"]


def test_without_torchrun_it_is_refused(
    tiny_llama_dir: Path, heldout_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(lc.LogitCacheError, match="torchrun"):
        alone(tiny_llama_dir, heldout_text, tmp_path / "out", tensor_parallel=True)
    assert not (tmp_path / "out").exists()
