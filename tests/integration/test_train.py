"""Training from a cache: what comes out, that nothing but cache and student is needed, and that the loss is right."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from make_caches import cache_of_model, save_llama, save_tokenizer, text_sequences
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitcache as lc
from logitcache.cache import Cache
from logitcache.training.run import plan

pytestmark = pytest.mark.integration
TEXT = Path(__file__).resolve().parents[2] / "examples" / "data" / "train" / "1961_john_f_kennedy.txt"


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with decided opinions, and a tokenizer of 600 words of its own."""
    place = tmp_path_factory.mktemp("teacher")
    tokenizer = save_tokenizer(place / "tokenizer", TEXT)
    return save_llama(place / "teacher", tokenizer, seed=0, sharpness=20)


@pytest.fixture(scope="module")
def student_dir(teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random model of the same shape, with the same tokenizer."""
    return save_llama(tmp_path_factory.mktemp("student") / "student", teacher_dir, seed=1)


@pytest.fixture(scope="module")
def cache(teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    model = AutoModelForCausalLM.from_pretrained(teacher_dir).eval()
    sequences = text_sequences(teacher_dir, TEXT, 48, 22)
    return cache_of_model(tmp_path_factory.mktemp("cache") / "cache", model, sequences, teacher_dir)


@pytest.fixture(scope="module")
def held_out(teacher_dir: Path, heldout_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    model = AutoModelForCausalLM.from_pretrained(teacher_dir).eval()
    sequences = text_sequences(teacher_dir, heldout_text, 48, 8)
    return cache_of_model(tmp_path_factory.mktemp("held-out") / "cache", model, sequences, teacher_dir)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(path).state_dict())


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def losses_of(result: lc.TrainResult) -> list[float]:
    return [entry["loss"] for entry in result.history if "loss" in entry]


def test_a_student_comes_closer_and_loads_like_any_model(
    cache: Cache, held_out: Cache, student_dir: Path, tmp_path: Path
) -> None:
    result = lc.train(
        cache=cache.root,
        student=student_dir,
        out=tmp_path / "out",
        eval_cache=held_out.root,
        loss="bild=1.0,forward_kl=1.0",
        epochs=6,
        batch_size=4,
        learning_rate=1e-2,
    )
    assert result.steps == 6 * 6
    assert result.before is not None
    assert result.after is not None
    assert losses_of(result)[-1] < 0.8 * losses_of(result)[0]
    assert result.after.kl < 0.9 * result.before.kl
    assert lc.evaluate(held_out, tmp_path / "out") == result.after
    assert lc.evaluate(held_out.root, student_dir) == result.before
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.get_vocab() == cache.load_tokenizer().get_vocab()
    saved = yaml.safe_load((tmp_path / "out" / "train_config.yaml").read_text())
    assert saved["loss"] == "bild=1.0,forward_kl=1.0"
    assert saved["warmup"] == 0.05


def test_the_same_run_twice_gives_the_same_bits(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        lc.train(cache=cache.root, student=student_dir, out=tmp_path / name, batch_size=4, learning_rate=1e-3)
    assert_equal(weights(tmp_path / "one"), weights(tmp_path / "two"))


@pytest.mark.parametrize("loss", ["bild", "cross_entropy"])
def test_the_loss_is_the_mean_over_the_targets_of_the_step_however_it_is_divided(
    cache: Cache, student_dir: Path, tmp_path: Path, loss: str
) -> None:
    """Sequences are of different lengths: a mean of means would differ."""
    runs = {}
    for micro in (1, 3, 6):
        runs[micro] = lc.train(
            cache=cache.root,
            student=student_dir,
            out=tmp_path / f"{micro}",
            loss=loss,
            batch_size=6,
            micro_batch_size=micro,
            learning_rate=1e-3,
            checkpoint_every=0,
            trainer={"adam_epsilon": 1e-4},
        )
    # One forward pass and loss.mean() over all of the first step's targets is what all of them must have seen.
    first = next(iter(lc.stream(cache, batch_size=6)))
    model = AutoModelForCausalLM.from_pretrained(student_dir)
    with torch.no_grad():
        logits = model(input_ids=first.input_ids, position_ids=first.position_ids).logits
    direct = float(lc.losses.get(loss)(logits.flatten(0, 1)[first.target_index], first.targets, first.labels).mean())
    for run in runs.values():
        assert losses_of(run)[0] == pytest.approx(direct, abs=1e-5)
        assert losses_of(run) == pytest.approx(losses_of(runs[6]), abs=1e-5)
    whole = weights(tmp_path / "6")
    for micro in (1, 3):
        parts = weights(tmp_path / f"{micro}")
        assert all(torch.allclose(parts[name], whole[name], atol=1e-5) for name in whole)


def test_neither_the_teacher_nor_a_second_model_is_needed(
    cache: Cache, teacher_dir: Path, student_dir: Path, tmp_path: Path
) -> None:
    """The teacher is dumped, then moved away; every file that training opens is watched, and every live parameter."""
    teacher = tmp_path / "the-teacher"
    shutil.copytree(teacher_dir, teacher)
    text = tmp_path / "text.txt"
    text.write_text(" ".join((TEXT).read_text().split()[:300]))
    lc.dump(teacher=str(teacher), data=[str(text)], out=tmp_path / "dumped", top_k=16, max_length=32)
    teacher.rename(tmp_path / "gone")
    script = textwrap.dedent(
        """
        import gc, json, sys
        opened = []
        sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
        import torch
        import logitcache as lc
        from transformers import TrainerCallback, Trainer

        counts = []
        class Count(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                modules = [thing for thing in gc.get_objects() if isinstance(thing, torch.nn.Module)]
                live = {id(p): p.numel() for module in modules for p in module.parameters()}
                counts.append(sum(live.values()))

        started = Trainer.__init__
        def watched(self, *args, **kwargs):
            started(self, *args, **kwargs)
            self.add_callback(Count())
        Trainer.__init__ = watched
        cache, student, out = sys.argv[1:4]
        lc.train(cache=cache, student=student, out=out, eval_cache=cache, batch_size=4, max_steps=3)
        lc.evaluate(cache, out)
        print("RESULT" + json.dumps({"opened": opened, "parameters": max(counts)}))
        """
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "dumped"), str(student_dir), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    seen = json.loads(ran.stdout.split("RESULT")[1])
    assert len(seen["opened"]) > 50
    assert any(str(tmp_path / "dumped") in path for path in seen["opened"])
    for place in (teacher, tmp_path / "gone", teacher_dir):
        assert not [path for path in seen["opened"] if path.startswith(str(place))]
    parameters = sum(value.numel() for value in AutoModelForCausalLM.from_pretrained(student_dir).parameters())
    assert seen["parameters"] == parameters


def test_trainer_arguments_pass_through(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    plain = lc.train(cache=cache.root, student=student_dir, out=tmp_path / "a", batch_size=4, checkpoint_every=0)
    saving = lc.train(
        cache=cache.root,
        student=student_dir,
        out=tmp_path / "b",
        batch_size=4,
        checkpoint_every=0,
        trainer={"activation_checkpointing": True, "optim": "adamw_torch"},
    )
    assert losses_of(plain) == pytest.approx(losses_of(saving), abs=1e-6)
    with pytest.raises(lc.LogitCacheError, match="learning_rate can't be set here"):
        lc.train(cache=cache.root, student=student_dir, out=tmp_path / "c", trainer={"learning_rate": 1.0})
    with pytest.raises(lc.LogitCacheError, match="no_such is not a field"):
        lc.train(cache=cache.root, student=student_dir, out=tmp_path / "c", trainer={"no_such": 1.0})
    assert not (tmp_path / "c").exists()


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


def test_steps_without_targets_change_nothing(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    """Conditions that no position meets: the loss is 0, and not 0/0."""
    result = lc.train(
        cache=cache.root,
        student=student_dir,
        out=tmp_path / "out",
        min_confidence=1.0,
        weight_decay=0.0,
        max_steps=2,
        batch_size=4,
        write_report=False,
    )
    assert losses_of(result) == [0, 0]
    assert_equal(weights(tmp_path / "out"), weights(student_dir))


def test_a_plan_writes_nothing(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    planned: dict[str, Any] = plan(
        lc.TrainConfig(cache=str(cache.root), student=str(student_dir), out=tmp_path / "out", batch_size=4, epochs=2)
    )
    assert planned["optimizer_steps"] == 12
    assert planned["sequences"] == 22
    assert not (tmp_path / "out").exists()


def test_resuming_goes_on_where_it_stopped(cache: Cache, student_dir: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "cache": cache.root,
        "student": student_dir,
        "batch_size": 4,
        "micro_batch_size": 2,
        "epochs": 2,
        "learning_rate": 1e-3,
        "checkpoint_every": 4,
    }
    lc.train(out=tmp_path / "whole", **settings)
    whole = weights(tmp_path / "whole")
    # As if killed after step 8, in the middle of the second epoch.
    out = tmp_path / "killed"
    (out / "checkpoints").mkdir(parents=True)
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "checkpoint-8", out / "checkpoints" / "checkpoint-8")
    result = lc.train(out=out, resume=True, **settings)
    assert_equal(weights(out), whole)
    assert [entry["step"] for entry in result.history if "loss" in entry] == list(range(1, 13))
    with pytest.raises(lc.LogitCacheError, match="finished run"):
        lc.train(out=out, resume=True, **settings)
