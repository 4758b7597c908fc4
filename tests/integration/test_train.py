"""Training from a cache: what comes out, that nothing but cache and student is needed, and that the loss is right."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from make_caches import TEXT
from train_tools import assert_equal, losses_of, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

import logitcache as lc
from logitcache.cache.reader import Cache
from logitcache.train.run import plan

pytestmark = pytest.mark.integration


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
    text.write_text(" ".join(TEXT.read_text().split()[:300]))
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
    assert "no position met the conditions, so the student is what it was" in result.notes


@pytest.mark.parametrize("loss", ["forward_kl", "reverse_kl", "bild"])
def test_a_student_that_comes_apart_stops_the_run(cache: Cache, student_dir: Path, tmp_path: Path, loss: str) -> None:
    """A weight that became NaN: whatever the loss, it isn't 0."""
    shutil.copytree(student_dir, tmp_path / "broken")
    model = AutoModelForCausalLM.from_pretrained(student_dir)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(lc.LogitCacheError, match="the loss is nan at step 1: lower the learning rate"):
        lc.train(
            cache=cache.root, student=tmp_path / "broken", out=tmp_path / "out", loss=loss, batch_size=4, max_steps=2,
            write_report=False,
        )  # fmt: skip


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
