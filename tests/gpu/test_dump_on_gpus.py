"""Dumps on one GPU and on two against the CPU's: the same tokens, and targets that differ by rounding only."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from make_caches import TEXT, save_llama
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import logitcache as lc
from logitcache.engines.transformers_engine import TransformersEngine
from logitcache.models.identity import find_teacher
from logitcache.models.teacher import load_model

pytestmark = pytest.mark.gpu
SETTINGS: dict[str, Any] = {"top_k": 16, "max_length": 64, "shard_tokens": 256, "batch_tokens": 512, "min_mass": 0.0}
#: What other kernels may change, in nats.
NOISE = {"fp32": 2e-3, "bf16": 0.3}


def dumped(teacher: Path, text: Path, out: Path, **more: Any) -> lc.Cache:
    return lc.dump(teacher=teacher, data=[text], out=out, preset="exact", **(SETTINGS | more))


def save_untied(teacher_dir: Path, place: Path) -> None:
    """A teacher whose head may stand elsewhere than its embedding, and whose keys can be split in two."""
    config = AutoConfig.from_pretrained(teacher_dir, tie_word_embeddings=False, num_key_value_heads=2)
    torch.manual_seed(4)
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    AutoTokenizer.from_pretrained(teacher_dir).save_pretrained(place)


@pytest.fixture(scope="module")
def on_the_cpu(teacher_dir: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> lc.Cache:
    return dumped(teacher_dir, text, tmp_path_factory.mktemp("cpu") / "cache", device="cpu", dtype="fp32")


def compare(ours: lc.Cache, theirs: lc.Cache, noise: float) -> None:
    """Every target, so that one that was read before it had arrived is found."""
    assert len(ours) == len(theirs) > 10
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.token_ids, other.token_ids)
        assert torch.equal(one.positions, other.positions)
        assert (one.targets.logprobs - other.targets.logprobs).abs().max() <= noise
        assert (one.targets.residual_logprob - other.targets.residual_logprob).abs().max() <= noise
        # Ids of nearly equal log-probs may swap places.
        same = (one.targets.ids[:, 0] == other.targets.ids[:, 0]).float().mean()
        assert same >= (0.98 if noise < 0.01 else 0.8)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_one_gpu(teacher_dir: Path, text: Path, tmp_path: Path, on_the_cpu: lc.Cache, dtype: str) -> None:
    compare(dumped(teacher_dir, text, tmp_path / "out", device="cuda", dtype=dtype), on_the_cpu, NOISE[dtype])


def test_auto_is_the_gpu(teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    cache = dumped(teacher_dir, text, tmp_path / "out")
    assert cache.manifest.provenance.settings["device"] == "cuda"


def test_small_batches_leave_no_copy_unfinished(
    teacher_dir: Path, text: Path, tmp_path: Path, on_the_cpu: lc.Cache
) -> None:
    for batch_tokens in (64, 128, 4096):
        out = tmp_path / str(batch_tokens)
        cache = dumped(teacher_dir, text, out, device="cuda", dtype="fp32", batch_tokens=batch_tokens)
        compare(cache, on_the_cpu, NOISE["fp32"])


def test_a_dump_gives_the_same_bytes_twice(teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    one, two = (dumped(teacher_dir, text, tmp_path / name, device="cuda") for name in ("one", "two"))
    assert one.digest == two.digest


def test_answers(teacher_dir: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "The state of"}\n{"prompt": "My fellow citizens"}\n', encoding="utf-8")
    cache = dumped(teacher_dir, prompts, tmp_path / "out", device="cuda", generate={"max_new_tokens": 8})
    assert len(cache) == 2
    assert cache.manifest.totals.targets > 2


@pytest.mark.usefixtures("two_gpus")
def test_the_second_gpu(teacher_dir: Path, text: Path, tmp_path: Path, on_the_cpu: lc.Cache) -> None:
    for batch_tokens in (64, 512):  # several batches, so that copies are under way while the next one computes
        out = tmp_path / str(batch_tokens)
        cache = dumped(teacher_dir, text, out, device="cuda:1", dtype="fp32", batch_tokens=batch_tokens)
        compare(cache, on_the_cpu, NOISE["fp32"])


@pytest.mark.usefixtures("two_gpus")
def test_a_teacher_spread_over_two_with_its_head_on_the_last(teacher_dir: Path, text: Path, tmp_path: Path) -> None:
    save_untied(teacher_dir, tmp_path / "untied")
    model = load_model(
        find_teacher(str(tmp_path / "untied")),
        dtype=torch.float32,
        device=torch.device("cuda:0"),
        device_map="balanced",
    )
    assert model.lm_head.weight.device == torch.device("cuda:1")
    assert model.model.embed_tokens.weight.device == torch.device("cuda:0")
    asked = {"dtype": "fp32", "batch_tokens": 128}
    cache = dumped(tmp_path / "untied", text, tmp_path / "out", device_map="balanced", **asked)
    compare(cache, dumped(tmp_path / "untied", text, tmp_path / "cpu", device="cpu", **asked), NOISE["fp32"])


@pytest.mark.usefixtures("two_gpus")
def test_tensor_parallel(
    teacher_dir: Path,
    text: Path,
    tmp_path: Path,
    torchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    save_untied(teacher_dir, tmp_path / "untied")
    program = str(Path(sys.executable).parent / "logitcache")
    settings = ["--top-k", "16", "--max-length", "64", "--shard-tokens", "256", "--batch-tokens", "512"]
    settings += ["--min-mass", "0", "--dtype", "fp32", "--preset", "exact", "--tensor-parallel"]
    settings += ["--teacher", str(tmp_path / "untied"), "--data", str(text), "--out", str(tmp_path / "out")]
    torchrun("--no-python", program, "dump", *settings)
    alone = dumped(tmp_path / "untied", text, tmp_path / "cpu", device="cpu", dtype="fp32")
    compare(lc.open(tmp_path / "out"), alone, NOISE["fp32"])


def test_a_batch_that_doesnt_fit_is_halved(teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the GPU's memory capped: the first passes fail, halves succeed, and the targets are those of the CPU."""
    wide = save_llama(tmp_path / "wide", teacher_dir, seed=3, width=1024, sharpness=5)
    text = tmp_path / "text.txt"
    text.write_text(TEXT.read_text(encoding="utf-8"), encoding="utf-8")
    expected = dumped(wide, text, tmp_path / "cpu", device="cpu", dtype="fp32", batch_tokens=2048)
    real, sizes = TransformersEngine._run, []

    def watched(self: TransformersEngine, batch: Any) -> Any:
        sizes.append(len(batch))
        return real(self, batch)

    monkeypatch.setattr(TransformersEngine, "_run", watched)
    torch.cuda.empty_cache()
    # Room for the weights (about 70 MiB) and for some of the activations of 8,192 tokens (about 350 MiB).
    torch.cuda.set_per_process_memory_fraction((260 << 20) / torch.cuda.get_device_properties(0).total_memory, 0)
    cache = dumped(wide, text, tmp_path / "gpu", device="cuda:0", dtype="fp32", batch_tokens=8192, shard_tokens=8192)
    assert any(later * 2 in (earlier, earlier - 1, earlier + 1) for earlier, later in itertools.pairwise(sizes))
    for one, other in zip(cache, expected, strict=True):
        assert torch.equal(one.token_ids, other.token_ids)
        assert (one.targets.logprobs - other.targets.logprobs).abs().max() <= 5e-3
