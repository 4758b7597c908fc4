"""Training from two caches at once: shares, records of them, and the same bits after a stop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from make_caches import TEXT, cache_of_model, save_llama, save_tokenizer, text_sequences
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import logitcache as lc
from logitcache.cli.main import app

pytestmark = pytest.mark.integration
DATA = Path(__file__).resolve().parents[2] / "examples" / "data"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two caches of different teachers, texts, K and sizes, a held-out one, and a student."""
    place = tmp_path_factory.mktemp("mixture")
    tokenizer = save_tokenizer(place / "tokenizer", TEXT)
    save_llama(place / "student", tokenizer, seed=1)
    heldout = DATA / "heldout" / "1964_lyndon_b_johnson.txt"
    for name, seed, text, count, k in (
        ("one", 0, TEXT, 22, 32),
        ("two", 2, heldout, 12, 16),
        ("held", 0, heldout, 8, 32),
    ):
        teacher_dir = save_llama(place / f"teacher-{name}", tokenizer, seed=seed, sharpness=20)
        teacher = AutoModelForCausalLM.from_pretrained(teacher_dir).eval()
        cache_of_model(place / name, teacher, text_sequences(tokenizer, text, 40, count), tokenizer, k=k)
    return place


def settings(place: Path, **more: Any) -> dict[str, Any]:
    return {
        "cache": [place / "one", place / "two"],
        "weights": (1, 3),
        "student": place / "student",
        "batch_size": 4,
        "epochs": 3,
        "learning_rate": 1e-2,
        "loss": "bild=1.0,forward_kl=1.0",
        **more,
    }


def losses_of(result: lc.TrainResult) -> list[float]:
    return [entry["loss"] for entry in result.history if "loss" in entry]


def test_a_student_learns_from_two_caches_and_what_it_learned_from_is_kept(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = lc.train(**settings(place, out=out, eval_cache=place / "two", checkpoint_every=3))
    assert losses_of(result)[-1] < 0.8 * losses_of(result)[0]
    assert result.before is not None
    assert result.after is not None
    assert result.after.kl < 0.9 * result.before.kl  # most of the tokens came from there
    assert any("first 16 are used" in note for note in result.notes)
    caches = [lc.open(place / name) for name in ("one", "two")]
    report = json.loads((out / "report.json").read_text())
    marker = json.loads(max((out / "checkpoints").glob("*/logitcache.json")).read_text())
    for recorded in (report["summary"]["caches"], marker["caches"]):
        assert [one["digest"] for one in recorded] == [cache.digest for cache in caches]
        assert [one["share"] for one in recorded] == [0.25, 0.75]
        total = sum(cache.manifest.totals.tokens for cache in caches)
        assert recorded[1]["tokens_per_epoch"] == round(0.75 * total)
    assert marker["state"]["manifest_digest"] == report["summary"]["cache"] not in [cache.digest for cache in caches]
    saved = yaml.safe_load((out / "train_config.yaml").read_text())
    assert (saved["cache"], saved["weights"]) == ([str(place / "one"), str(place / "two")], [1.0, 3.0])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "75.0%" in page
    assert caches[1].digest[:19] in page


def test_a_mixture_stopped_in_an_epoch_ends_with_the_same_bits(place: Path, tmp_path: Path) -> None:
    kept = settings(place, checkpoint_every=4, keep_checkpoints=9, min_length=20, pack_tokens=80)
    whole = lc.train(out=tmp_path / "whole", **kept)
    stopped = sorted((tmp_path / "whole" / "checkpoints").iterdir(), key=lambda path: int(path.name[11:]))[1]
    out = tmp_path / "stopped"
    shutil.copytree(stopped, out / "checkpoints" / stopped.name)
    resumed = lc.train(out=out, resume=True, **kept)
    assert losses_of(resumed) == losses_of(whole)
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "stopped"))
    assert all(one[name].equal(two[name]) for name in one)
    shutil.rmtree(out)
    shutil.copytree(stopped, out / "checkpoints" / stopped.name)
    with pytest.raises(lc.LogitCacheError, match="weights was"):
        lc.train(**{**kept, "out": out, "weights": (1, 1), "resume": True})
    with pytest.raises(lc.LogitCacheError, match="cache has changed"):
        lc.train(**{**kept, "out": out, "cache": [place / "two", place / "one"], "resume": True})
    with pytest.raises(lc.LogitCacheError, match="min_length was 20"):
        lc.train(**{**kept, "out": out, "min_length": 21, "resume": True})


def test_the_command_plans_a_mixture(place: Path, tmp_path: Path) -> None:
    arguments = ["train", "--cache", str(place / "one"), "--cache", str(place / "two"), "--weights", "0.25,0.75"]
    arguments += ["--student", str(place / "student"), "--out", str(tmp_path / "out"), "--dry-run"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "75.0% = " in shown.stdout
    planned = json.loads(CliRunner().invoke(app, [*arguments, "--json", "--min-length", "30"]).stdout)
    assert [one["share"] for one in planned["caches"]] == [0.25, 0.75]
    assert planned["tokens"] == sum(one["tokens_per_epoch"] for one in planned["caches"])
    assert any("min_length 30: " in note and "sequences are left out" in note for note in planned["notes"])
    assert not (tmp_path / "out").exists()
    for more, message in (
        (["--weights", "1"], "give one for each cache, 2 in all"),
        (["--weights", "a,b"], "give a number for each cache"),
        (["--min-length", "5000"], "leaves no sequence"),
        (["--min-length", "9", "--max-length", "3"], "min_length = 9 is above max_length = 3"),
    ):
        result = CliRunner().invoke(app, [*arguments, *more])
        assert isinstance(result.exception, lc.LogitCacheError), result.output
        assert message in str(result.exception)


def test_caches_of_other_tokenizers_are_refused(place: Path, tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path / "tokenizer", TEXT, words=500)
    teacher = AutoModelForCausalLM.from_pretrained(save_llama(tmp_path / "teacher", tokenizer, seed=0)).eval()
    other = cache_of_model(tmp_path / "other", teacher, text_sequences(tokenizer, TEXT, 40, 4), tokenizer, k=16)
    with pytest.raises(lc.LogitCacheError, match="don't go together"):
        lc.train(**settings(place, cache=[place / "one", other.root], out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
