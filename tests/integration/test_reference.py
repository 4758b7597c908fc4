"""From a dump with a reference, or with a sample of the tail, to a trained student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from make_caches import save_llama, save_tokenizer
from transformers import AutoModelForCausalLM

import logitcache as lc
from logitcache.cache.convert import convert_cache
from logitcache.dump.config import make_config
from logitcache.dump.run import new_plan
from logitcache.dump.settings import resolve
from logitcache.errors import ResumeMismatchError, TokenizerMismatchError
from logitcache.losses import metrics
from logitcache.losses.bild import SLD
from logitcache.losses.fidelity import compare, gradient
from logitcache.students.cut import make_student

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, heldout_text: Path) -> Path:
    text = tmp_path_factory.mktemp("text") / "address.txt"
    text.write_text(heldout_text.read_text()[:1500])
    return text


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("student") / "ten"
    make_student(smollm2_dir, path, layers=(*range(7), 27, 28, 29))
    return path


@pytest.fixture(scope="module")
def liked(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path, student: Path, text: Path) -> lc.Cache:
    out = tmp_path_factory.mktemp("caches") / "liked"
    return lc.dump(
        teacher=str(smollm2_dir),
        reference=str(student),
        data=[str(text)],
        out=out,
        top_k=32,
        max_length=128,
        min_mass=0,
    )


def test_s_ld_from_the_cache_is_exact_for_the_reference(liked: lc.Cache, student: Path, smollm2_dir: Path) -> None:
    assert (liked.top_k, liked.ranked) == (32, 16)
    assert liked.manifest.provenance.settings["reference"]["name"] == "ten"
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (smollm2_dir, student)]
    loss = lc.losses.get("s_ld")
    assert isinstance(loss, SLD)
    cosines = {"candidates": 0.0, "top": 0.0}
    for sequence in liked:
        with torch.no_grad():
            teacher_NV, student_NV = (
                model(input_ids=sequence.token_ids[None]).logits[0, sequence.positions] for model in models
            )
        assert metrics.s_ld_coverage(student_NV, sequence.targets).mean() > 0.999
        exact_Nk = gradient(loss, student_NV, lc.TopK.from_logits(teacher_NV, liked.vocab_size))
        for name, targets in (("candidates", sequence.targets), ("top", lc.TopK.from_logits(teacher_NV, 32))):
            cosines[name] += compare(gradient(loss, student_NV, targets), exact_Nk).cosine / len(liked)
    assert cosines["candidates"] > 0.9999 > 0.95 > cosines["top"]


def test_a_cache_without_its_candidates_names_no_reference(liked: lc.Cache, tmp_path: Path) -> None:
    convert_cache(liked, tmp_path / "arrow", shard_format="arrow")
    convert_cache(liked, tmp_path / "cut", top_k=16)
    kept, cut = (lc.open(tmp_path / name).manifest.provenance for name in ("arrow", "cut"))
    assert kept.settings["reference"] == liked.manifest.provenance.settings["reference"]
    assert (cut.candidates, "reference" in cut.settings) == (None, False)


def test_training_reads_the_candidates(liked: lc.Cache, student: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 2, "batch_size": 1, "checkpoint_every": 0, "write_report": False}
    result = lc.train(cache=liked.root, student=student, out=tmp_path / "out", loss="bild", **settings)
    (first, *_) = [entry["s_ld_coverage"] for entry in result.history if "s_ld_coverage" in entry]
    assert first > 0.999
    found = lc.evaluate(liked, student)
    assert found.s_ld_coverage > 0.999
    assert set(found.overlap) == {1, 8}  # overlap@32 needs 32 ranked entries


def test_another_reference_is_another_dump(
    smollm2_dir: Path, tiny_llama_dir: Path, student: Path, text: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"data": [str(text)], "top_k": 8, "max_length": 64, "min_mass": 0, "candidates": 4}
    out = tmp_path / "out"
    (out / ".dump").mkdir(parents=True)
    config = make_config({"teacher": str(tiny_llama_dir), "reference": str(student), "out": out, **settings})
    new_plan(resolve(config), out, lambda *_: None)
    with pytest.raises(ResumeMismatchError, match="reference was"):
        lc.dump(teacher=str(tiny_llama_dir), reference=str(smollm2_dir), out=out, **settings)


def test_a_reference_with_another_tokenizer_is_refused(tiny_llama_dir: Path, text: Path, tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path / "tokenizer", text, words=300)
    save_llama(tmp_path / "stranger", tokenizer, seed=0)
    with pytest.raises(TokenizerMismatchError, match=r"the reference's tokenizer .* is not the teacher's"):
        lc.dump(
            teacher=str(tiny_llama_dir), reference=str(tmp_path / "stranger"), data=[str(text)], out=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_training_from_a_sample_of_the_tail(smollm2_dir: Path, student: Path, text: Path, tmp_path: Path) -> None:
    """The Trainer's first loss is the library's own, on the same sample."""
    cache = lc.dump(
        teacher=str(smollm2_dir), data=[str(text)], out=tmp_path / "cache", top_k=32, tail_samples=16, max_length=128
    )
    settings: dict[str, Any] = {"max_steps": 1, "batch_size": 64, "checkpoint_every": 0, "write_report": False}
    result = lc.train(cache=cache.root, student=student, out=tmp_path / "out", loss="forward_kl", **settings)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    total, count = 0.0, 0
    for sequence in cache:
        with torch.no_grad():
            student_NV = model(input_ids=sequence.token_ids[None]).logits[0, sequence.positions]
        total += float(lc.losses.get("forward_kl")(student_NV, sequence.targets).sum())
        count += len(sequence.targets)
    assert result.history[0]["loss"] == pytest.approx(total / count, rel=1e-4)
