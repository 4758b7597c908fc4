"""Students of all kinds: in half precision, with adapters, and with heads of another size than the teacher's."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from make_caches import TEXT, cache_of_model, text_sequences
from tiny_models import quantise, shard, write_gguf
from train_tools import losses_of, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, GPT2Config

import logitcache as lc
from logitcache.cache.reader import Cache
from logitcache.errors import ConfigError, ModelError
from logitcache.students.cut import make_student
from logitcache.train import TrainConfig
from logitcache.train.lora import prepare_student

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


def test_new_adapters_say_nothing_of_renamed_functions(student_dir: Path) -> None:
    pytest.importorskip("peft")
    student = AutoModelForCausalLM.from_pretrained(student_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        prepare_student(student, TrainConfig.parse({"cache": "c", "student": student_dir, "out": "o", "lora_rank": 2}))


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


ONE_STEP: dict[str, Any] = {
    "loss": "forward_kl", "batch_size": 22, "max_steps": 1, "checkpoint_every": 0, "write_report": False,
}  # fmt: skip


def halve(place: Path) -> None:
    AutoModelForCausalLM.from_pretrained(place, dtype=torch.float16).save_pretrained(place)


def pickle_weights(place: Path) -> None:
    torch.save(AutoModelForCausalLM.from_pretrained(place).state_dict(), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()


@pytest.mark.parametrize(("change", "tolerance"), [(shard, 1e-6), (halve, 1e-3), (pickle_weights, 1e-6)])
def test_files_of_every_kind(
    cache: Cache, student_dir: Path, tmp_path: Path, change: Callable[[Path], None], tolerance: float
) -> None:
    student = shutil.copytree(student_dir, tmp_path / "student")
    change(student)
    plain, other = (
        lc.train(cache=cache.root, student=place, out=tmp_path / f"out-{place.name}-{number}", **ONE_STEP)
        for number, place in enumerate((student_dir, student))
    )
    assert losses_of(other) == pytest.approx(losses_of(plain), abs=tolerance)
    assert weights(other.out)["model.embed_tokens.weight"].dtype == torch.float32


def test_a_gguf_file_as_the_student(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    """Trained in full, it becomes an ordinary directory; adapters on it would have a base that nobody else can load."""
    pytest.importorskip("gguf")
    gguf = write_gguf(student_dir, tmp_path / "student.gguf")
    plain = lc.train(cache=cache.root, student=student_dir, out=tmp_path / "plain", **ONE_STEP)
    result = lc.train(cache=cache.root, student=gguf, out=tmp_path / "out", **ONE_STEP)
    assert losses_of(result) == pytest.approx(losses_of(plain), abs=1e-5)
    assert lc.evaluate(cache, gguf).kl == pytest.approx(lc.evaluate(cache, student_dir).kl, abs=1e-5)
    assert weights(result.out).keys() == weights(plain.out).keys()
    with pytest.raises(ConfigError, match=r"make .*student.gguf a directory with `logitcache student"):
        lc.train(cache=cache.root, student=gguf, out=tmp_path / "lora", lora_rank=2, **ONE_STEP)


def test_quantised_weights_are_not_trained(student_dir: Path, tmp_path: Path) -> None:
    """A Trainer would train what isn't quantised, and say nothing."""
    pytest.importorskip("gguf")
    write_gguf(student_dir, tmp_path / "student.gguf")
    quantised = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="student.gguf", quantization_config=GgufConfig()
    )
    assert quantised.hf_quantizer is not None
    settings = {"cache": "cache", "student": str(student_dir), "out": tmp_path / "out"}
    for lora, advice in (({}, "give --lora-rank, or"), ({"lora_rank": 2}, "adapters on them can't be trained")):
        with pytest.raises(ConfigError, match=rf"are quantised \(gguf\).*{advice}"):
            prepare_student(quantised, TrainConfig.parse(settings | lora))


def test_a_student_in_eight_bits_is_trained_as_what_it_stands_for(
    cache: Cache, student_dir: Path, tmp_path: Path
) -> None:
    """Without a GPU its weights come as full numbers; it is trained and saved in those."""
    if torch.cuda.is_available():
        pytest.skip("on a GPU the weights stay in eight bits, and are refused")
    student = shutil.copytree(student_dir, tmp_path / "student")
    quantise(student)
    result = lc.train(cache=cache.root, student=student, out=tmp_path / "out", eval_cache=cache.root, **ONE_STEP)
    assert result.before is not None
    assert result.after is not None
    assert lc.evaluate(cache, student).kl == pytest.approx(result.before.kl, abs=1e-6)
    assert lc.evaluate(cache, tmp_path / "out").kl == pytest.approx(result.after.kl, abs=1e-6)
    assert make_student(student, tmp_path / "cut", layers=1) == (0,)


def test_sequences_longer_than_the_student_takes(cache: Cache, teacher_dir: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    config = GPT2Config(vocab_size=cache.vocab_size, n_positions=40, n_embd=32, n_layer=2, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(student)
    AutoTokenizer.from_pretrained(teacher_dir).save_pretrained(student)
    told = "a sequence of 48 tokens, and the student takes 40: train with --max-length 40"
    with pytest.raises(ConfigError, match=told):
        lc.train(cache=cache.root, student=student, out=tmp_path / "out", **ONE_STEP)
    with pytest.raises(ConfigError, match=told):
        lc.evaluate(cache, student)
    held_out = {"max_length": 40, "eval_cache": cache.root}
    with pytest.raises(ConfigError, match=told):
        lc.train(cache=cache.root, student=student, out=tmp_path / "out", **ONE_STEP, **held_out)
    assert not (tmp_path / "out").exists()
    assert lc.train(cache=cache.root, student=student, out=tmp_path / "out", max_length=40, **ONE_STEP).steps == 1


def test_a_broken_tokenizer_is_one_line(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    student = shutil.copytree(student_dir, tmp_path / "student")
    (student / "tokenizer.json").write_text("{")
    for measure in (
        lambda: lc.train(cache=cache.root, student=student, out=tmp_path / "out", **ONE_STEP),
        lambda: lc.evaluate(cache, student),
    ):
        with pytest.raises(ModelError, match="its tokenizer can't be loaded") as error:
            measure()
        assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()
