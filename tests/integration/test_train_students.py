"""Students of all kinds: in half precision, with adapters, and with heads of another size than the teacher's."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from make_caches import TEXT, cache_of_model, text_sequences
from train_tools import losses_of, weights
from transformers import AutoModelForCausalLM

import logitcache as lc
from logitcache.cache import Cache

pytestmark = pytest.mark.integration


def test_half_precision_stays_close(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    full = lc.train(cache=cache.root, student=student_dir, out=tmp_path / "a", batch_size=8, checkpoint_every=0)
    mixed = lc.train(
        cache=cache.root,
        student=student_dir,
        out=tmp_path / "b",
        batch_size=8,
        checkpoint_every=0,
        mixed_precision="bf16",
        trainer={"use_cpu": True},
    )
    assert losses_of(mixed) == pytest.approx(losses_of(full), rel=0.05)
    assert losses_of(mixed) != losses_of(full)


def test_lora_trains_adapters_only(cache: Cache, held_out: Cache, student_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    result = lc.train(
        cache=cache.root,
        student=student_dir,
        out=tmp_path / "out",
        eval_cache=held_out.root,
        loss="forward_kl",
        batch_size=4,
        learning_rate=1e-2,
        lora_rank=4,
        max_steps=8,
    )
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    adapted = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = weights(student_dir)
    found = adapted.state_dict()
    changed = [name for name in found if "lora_" in name and "lora_B" in name and bool(found[name].any())]
    assert changed
    for name, value in base.items():
        own = name if name in found else name.replace(".weight", ".base_layer.weight")
        assert torch.equal(found[own], value)
    assert result.after is not None
    assert lc.evaluate(held_out, tmp_path / "out").kl == pytest.approx(result.after.kl, abs=1e-6)


@pytest.mark.parametrize("rows", [-300, 128])
def test_padded_vocabularies_go_together(
    cache: Cache, held_out: Cache, teacher_dir: Path, student_dir: Path, tmp_path: Path, rows: int
) -> None:
    """The same tokenizer, another number of rows in the head: a larger head's padding takes no part.

    A smaller head than the tokenizer needs is refused; that is tested with the hostile input.
    """
    words = cache.vocab_size
    if rows < 0:
        teacher = AutoModelForCausalLM.from_pretrained(teacher_dir)
        teacher.resize_token_embeddings(words - rows)  # the teacher's is padded
        sequences = text_sequences(teacher_dir, TEXT, 32, 6)
        used = cache_of_model(tmp_path / "padded", teacher.eval(), sequences, teacher_dir, k=64)
        student = student_dir
    else:
        used = cache
        torch.manual_seed(3)
        student = tmp_path / "student"
        shutil.copytree(student_dir, student)
        larger = AutoModelForCausalLM.from_pretrained(student)
        larger.resize_token_embeddings(words + rows)
        larger.save_pretrained(student)
    result = lc.train(cache=used.root, student=student, out=tmp_path / "out", batch_size=3, eval_cache=used.root)
    assert len(result.notes) == 1
    assert "head has" in result.notes[0]
    assert all(math.isfinite(loss) for loss in losses_of(result))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert saved.get_output_embeddings().weight.shape[0] == (words if rows < 0 else words + rows)
