"""Audit rows: dumped with every id at a few positions, and what they tell in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import logitcache as lc
from logitcache.train import run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def audit(tiny_llama_dir: Path, heldout_text: Path, tmp_path_factory: pytest.TempPathFactory) -> lc.Cache:
    root = tmp_path_factory.mktemp("audit")
    text = root / "text.txt"
    text.write_text(heldout_text.read_text(encoding="utf-8")[:3000], encoding="utf-8")
    return lc.dump(
        teacher=tiny_llama_dir, data=text, out=root / "audit", top_k="all", every=7, max_length=64, preset="half"
    )


def test_every_seventh_position_holds_every_id(audit: lc.Cache, tiny_llama_dir: Path) -> None:
    assert audit.top_k == audit.vocab_size
    totals = audit.manifest.totals
    seen = 0
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    for sequence in audit:
        expected = [p for p in range(len(sequence.token_ids) - 1) if (seen + p) % 7 == 0]
        assert sequence.positions.tolist() == expected
        seen += len(sequence.token_ids) - 1
        with torch.no_grad():
            logits = model(input_ids=sequence.token_ids[None]).logits[0, sequence.positions]
        stored = torch.empty_like(logits).scatter_(1, sequence.targets.ids, sequence.targets.logprobs)
        assert (stored - logits.log_softmax(1)).abs().max() < 1 / 64
        assert torch.all(sequence.targets.residual_logprob == -torch.inf)
    assert totals.targets == -(-seen // 7)
    assert audit.manifest.provenance.settings["every"] == 7


def test_every_third_target_of_the_corpus_stays(tiny_llama_dir: Path, heldout_text: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(heldout_text.read_text(encoding="utf-8")[:2000], encoding="utf-8")
    settings = {"teacher": tiny_llama_dir, "data": text, "max_length": 64, "min_mass": 0.0}
    whole = lc.dump(out=tmp_path / "whole", **settings)  # type: ignore[arg-type]
    third = lc.dump(out=tmp_path / "third", every=3, **settings)  # type: ignore[arg-type]
    masks = [np.concatenate([s.target_mask.numpy() for s in cache]) for cache in (whole, third)]
    assert np.flatnonzero(masks[1]).tolist() == np.flatnonzero(masks[0])[::3].tolist()


@pytest.fixture(scope="module")
def small(tiny_llama_dir: Path, heldout_text: Path, tmp_path_factory: pytest.TempPathFactory) -> lc.Cache:
    root = tmp_path_factory.mktemp("small")
    (root / "text.txt").write_text(heldout_text.read_text(encoding="utf-8")[6000:9000], encoding="utf-8")
    return lc.dump(
        teacher=tiny_llama_dir, data=root / "text.txt", out=root / "cache", top_k=16, max_length=64, min_mass=0.0
    )


def other_student(tiny_llama_dir: Path, out: Path) -> Path:
    """The teacher with noise on its weights."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * parameter.std() * 0.5
    model.save_pretrained(out)
    for path in tiny_llama_dir.glob("tokenizer*"):
        (out / path.name).write_bytes(path.read_bytes())
    return out


def test_training_chooses_its_fill_and_logs_how_true_it_stays(
    audit: lc.Cache, small: lc.Cache, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    student = other_student(tiny_llama_dir, tmp_path / "student")
    settings = {
        "cache": small.root, "student": student, "audit": audit.root, "eval_cache": small.root, "batch_size": 4,
        "max_steps": 4, "eval_every": 2, "loss": "bild=1.0,residual_kl=0.5", "checkpoint_every": 2,
    }  # fmt: skip
    result = lc.train(out=tmp_path / "whole", **settings)
    (note,) = [note for note in result.notes if "audit rows" in note]
    assert "cosine" in note
    logged = [entry["eval_s_ld_cosine"] for entry in result.history if "eval_s_ld_cosine" in entry]
    assert len(logged) == 3
    assert all(0 < value <= 1 for value in logged)
    # The first is what the fill was chosen for.
    assert f"{logged[0]:.3f}" in note
    again = lc.train(out=tmp_path / "again", **settings)
    assert [e["loss"] for e in again.history if "loss" in e] == [e["loss"] for e in result.history if "loss" in e]


def test_rows_that_are_no_audit_are_refused(
    audit: lc.Cache, small: lc.Cache, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(lc.LogitCacheError, match="--top-k all"):
        lc.train(cache=small.root, student=tiny_llama_dir, out=tmp_path / "out", audit=small.root)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_drops_pairs_keeps_doing_so_and_is_measured(
    audit: lc.Cache, small: lc.Cache, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    student = other_student(tiny_llama_dir, tmp_path / "student")
    result = lc.train(
        cache=small.root,
        student=student,
        out=tmp_path / "out",
        audit=audit.root,
        loss="s_ld(missing=drop)",
        max_steps=1,
    )
    (note,) = [note for note in result.notes if "audit rows" in note]
    assert note.startswith("pairs with a teacher value that the cache lacks are left out")


def test_the_fill_is_chosen_in_the_arithmetic_of_the_run(
    audit: lc.Cache, small: lc.Cache, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, flash attention can't run in any other."""
    dtypes: list[torch.dtype | None] = []

    def choose(*given: Any) -> list[str]:
        dtypes.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return []

    monkeypatch.setattr(run, "choose_fill", choose)
    for precision in ("bf16", "no"):
        settings = {"audit": audit.root, "max_steps": 1, "mixed_precision": precision, "trainer": {"use_cpu": True}}
        lc.train(cache=small.root, student=tiny_llama_dir, out=tmp_path / precision, **settings)
    assert dtypes == [torch.bfloat16, None]
