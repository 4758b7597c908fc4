"""`logitcache train`: flags over files, plans, JSON, the report, and several losses at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from make_caches import TEXT, cache_of_model, save_llama, save_tokenizer, text_sequences
from transformers import AutoModelForCausalLM, TrainingArguments
from typer.testing import CliRunner

import logitcache as lc
from logitcache.cli.main import app
from logitcache.errors import ConfigError, MissingDependencyError
from logitcache.evaluate import report
from logitcache.train import arguments, split_losses
from logitcache.train.run import Run
from logitcache.utils.progress import silent

pytestmark = pytest.mark.integration
DATA = Path(__file__).resolve().parents[2] / "examples" / "data"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache, a held-out cache and a student."""
    place = tmp_path_factory.mktemp("command")
    tokenizer = save_tokenizer(place / "tokenizer", TEXT)
    teacher_dir = save_llama(place / "teacher", tokenizer, seed=0, sharpness=20)
    save_llama(place / "student", tokenizer, seed=1)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_dir).eval()
    for name, source in (("cache", TEXT), ("held-out", DATA / "heldout" / "1964_lyndon_b_johnson.txt")):
        cache_of_model(place / name, teacher, text_sequences(tokenizer, source, 32, 8), tokenizer, k=32)
    return place


def run(place: Path, out: Path, *more: str) -> str:
    arguments = ["train", "--cache", str(place / "cache"), "--student", str(place / "student"), "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def test_flags_win_over_the_file_and_the_result_is_kept(place: Path, tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("loss: forward_kl\nbatch-size: 2\nlearning_rate: 0.01\ntrainer:\n  adam_epsilon: 1.0e-6\n")
    printed = json.loads(run(place, tmp_path / "out", "--config", str(config), "--batch-size", "4", "--json"))
    assert printed["steps"] == 2
    saved = yaml.safe_load((tmp_path / "out" / "train_config.yaml").read_text())
    assert (saved["loss"], saved["batch_size"], saved["learning_rate"]) == ("forward_kl", 4, 0.01)
    assert saved["trainer"] == {"adam_epsilon": 1e-6}
    # What was saved is a configuration itself: the same run again from that file alone.
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump({**saved, "out": str(tmp_path / "again")}))
    result = CliRunner().invoke(app, ["train", "--config", str(again), "--json"])
    assert result.exit_code == 0, result.output
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("out", "again"))
    assert all(one[name].equal(two[name]) for name in one)


def test_a_warning_is_one_line_said_once(place: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "logitcache"), "train", "--cache", str(place / "cache")]
    command += ["--student", str(place / "student"), "--out", str(tmp_path / "out"), "--max-steps", "1", "--json"]
    done = subprocess.run([*command, "--loss", "forward_kl(temperature=2)"], capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stderr.splitlines() if "shape of the teacher's tail" in line]
    assert line.startswith("warning: forward_kl at temperature 2")
    assert "UserWarning" not in done.stderr


def test_dry_run(place: Path, tmp_path: Path) -> None:
    printed = json.loads(run(place, tmp_path / "out", "--batch-size", "3", "--epochs", "2", "--dry-run", "--json"))
    assert printed["optimizer_steps"] == 6
    assert printed["parameters"] == printed["trained_parameters"] > 0
    assert " arithmetic, fp32 weights" in printed["precision"]
    assert "optimizer steps: 6" in run(place, tmp_path / "out", "--batch-size", "3", "--epochs", "2", "--dry-run")
    assert not (tmp_path / "out").exists()


def test_the_report_stands_alone(place: Path, tmp_path: Path) -> None:
    printed = run(place, tmp_path / "out", "--eval-cache", str(place / "held-out"), "--batch-size", "2")
    assert "before" in printed
    assert "overlap@8" in printed
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=[\"'](?!#)", page)
    assert "<svg" in page
    assert "overlap@8" in page
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["summary"]["steps"] == 4
    assert content["summary"]["cache"] == lc.open(place / "cache").digest
    assert " arithmetic, fp32 weights" in content["summary"]["precision"]
    assert content["before"]["kl"] != content["after"]["kl"]
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_a_report_and_a_word_about_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    result = lc.train(cache=place / "cache", student=place / "student", out=tmp_path / "out", max_steps=1)
    assert [path.name for path in result.files] == ["report.json", "report.html"]
    assert any("logitcache[plot]" in note for note in result.notes)
    assert "logitcache[plot]" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_report_escapes_what_it_is_given(tmp_path: Path) -> None:
    report.write_report(
        tmp_path, title="<script>", history=[], before=None, after=None, settings={"a": "<b>"}, facts={"cache": "<i>"}
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "<b>" not in page.split("<details>")[1]
    assert "<i>" not in page


def test_a_deepspeed_configuration_reaches_the_trainer(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed itself isn't installed here: what is tested is that its configuration arrives, whole and with ours."""
    own = {"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": "auto"}
    config = lc.TrainConfig(
        cache=str(place / "cache"), student=str(place / "student"), out=tmp_path / "out", batch_size=8,
        micro_batch_size=2, trainer={"deepspeed": own},
    )  # fmt: skip
    run = Run(config, silent)
    monkeypatch.setattr(arguments, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install deepspeed"):
        run.arguments()
    monkeypatch.setattr(arguments, "find_spec", lambda name: name)
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)
    passed = run.arguments()
    assert passed.deepspeed == own
    assert (passed.per_device_train_batch_size, passed.gradient_accumulation_steps) == (2, 4)
    assert not (tmp_path / "out").exists()


def test_several_losses_in_one_command(place: Path, tmp_path: Path) -> None:
    printed = json.loads(
        run(
            place,
            tmp_path / "out",
            "--losses",
            "bild,forward_kl,bild=1+top_kl=0.5",
            "--eval-cache",
            str(place / "held-out"),
            "--batch-size",
            "4",
            "--learning-rate",
            "0.01",
            "--json",
        )
    )
    assert list(printed) == ["before", "bild", "forward_kl", "bild=1,top_kl=0.5"]
    assert len({entry["kl"] for entry in printed.values()}) == 4
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == printed
    assert (tmp_path / "out" / "comparison.png").exists()
    single = lc.train(
        cache=place / "cache", student=place / "student", out=tmp_path / "single", loss="forward_kl", batch_size=4,
        learning_rate=0.01, eval_cache=place / "held-out",
    )  # fmt: skip
    assert single.after is not None
    assert single.after.kl == printed["forward_kl"]["kl"]


def test_names_of_several_losses() -> None:
    assert split_losses("bild, top_kl(k=8,temperature=2),bild=1+kl=2") == [
        "bild",
        "top_kl(k=8,temperature=2)",
        "bild=1,kl=2",
    ]
    for text in ("", "bild,,top_kl", "bild,bild"):
        with pytest.raises(ConfigError, match="losses"):
            split_losses(text)
