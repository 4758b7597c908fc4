"""Wrong pairs and bad settings: one clear error each, exit status 1, and nothing that looks finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from make_caches import random_targets, shard_of, write_cache
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import logitcache as lc
from logitcache.cache.reader import Cache
from logitcache.cli.main import app
from logitcache.errors import (
    CacheNotFoundError,
    ConfigError,
    CorruptCacheError,
    LogitCacheError,
    ModelError,
    OutputExistsError,
    ResumeMismatchError,
    TargetsError,
    TokenizerMismatchError,
)
from logitcache.format.arrays import ShardArrays
from logitcache.stream.prepared import keep_targets
from logitcache.students.cut import make_student
from logitcache.train.run import plan

pytestmark = pytest.mark.hostile
Change = Callable[[dict[str, Any]], None]


def save_model(path: Path, tokenizer_dir: Path, rows: int | None = None) -> Path:
    """A tiny Llama with the tokenizer at ``tokenizer_dir``."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    config = LlamaConfig(
        vocab_size=rows or len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=1, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def student_dir(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "student", tiny_llama_dir)


def tiny_shards(vocab_size: int) -> list[ShardArrays]:
    generator = torch.Generator().manual_seed(0)
    sequences = [[11, 12, 13, 14, 15, 16 + number] for number in range(6)]
    return [
        shard_of(part, [random_targets(ids, 4, vocab_size, generator) for ids in part])
        for part in (sequences[:3], sequences[3:])
    ]


@pytest.fixture(scope="module")
def cache(student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    words = len(AutoTokenizer.from_pretrained(student_dir))
    return write_cache(tmp_path_factory.mktemp("cache") / "cache", tiny_shards(words), student_dir)


@pytest.fixture
def settings(cache: Cache, student_dir: Path, tmp_path: Path) -> dict[str, Any]:
    return {"cache": cache.root, "student": student_dir, "out": tmp_path / "out"}


def edit_tokenizer(path: Path, edit: Change) -> None:
    file = path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def swap_two_words(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    vocab["the"], vocab["and"] = vocab["and"], vocab["the"]


def add_a_word(content: dict[str, Any]) -> None:
    """One that text yields: a token of its own and the merge that makes it."""
    vocab = content["model"]["vocab"]
    vocab["thethe"] = len(vocab)
    content["model"]["merges"].append(["the", "the"])


def forget_merges(content: dict[str, Any]) -> None:
    content["model"]["merges"] = content["model"]["merges"][:200]


@pytest.mark.parametrize("edit", [swap_two_words, add_a_word, forget_merges])
def test_another_tokenizer(settings: dict[str, Any], student_dir: Path, tmp_path: Path, edit: Change) -> None:
    other = tmp_path / "other"
    shutil.copytree(student_dir, other)
    edit_tokenizer(other, edit)
    with pytest.raises(TokenizerMismatchError, match="student's tokenizer"):
        lc.train(**{**settings, "student": other})
    with pytest.raises(TokenizerMismatchError):
        lc.evaluate(settings["cache"], other)
    assert not settings["out"].exists()


def test_a_vocabulary_that_is_too_small(settings: dict[str, Any], student_dir: Path, tmp_path: Path) -> None:
    small = save_model(tmp_path / "small", student_dir, rows=40_000)
    with pytest.raises(ModelError, match="vocabulary has 40,000 entries, the cache's tokenizer"):
        lc.train(**{**settings, "student": small})
    assert not settings["out"].exists()


def test_a_student_without_a_tokenizer_is_taken_on_trust_and_said_so(
    settings: dict[str, Any], student_dir: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    LlamaForCausalLM.from_pretrained(student_dir).save_pretrained(bare)
    result = lc.train(**{**settings, "student": bare})
    assert "no tokenizer to compare" in result.notes[0]


def test_a_cache_without_targets(settings: dict[str, Any], student_dir: Path, tmp_path: Path) -> None:
    words = len(AutoTokenizer.from_pretrained(student_dir))
    none = [keep_targets(shard, torch.zeros(shard.targets).bool().numpy()) for shard in tiny_shards(words)]
    empty = write_cache(tmp_path / "empty", none, student_dir)
    with pytest.raises(TargetsError, match="holds no targets"):
        lc.train(**{**settings, "cache": empty.root})
    with pytest.raises(TargetsError, match="holds no targets"):
        lc.train(**settings, eval_cache=empty.root)
    assert not settings["out"].exists()


def test_places_that_hold_no_student(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for name, message in (
        ("nothing", "does not exist"),
        ("folder", "not a model"),
        ("file", "is a file"),
        ("broken", "can't be loaded"),
    ):
        with pytest.raises(ModelError, match=message):
            lc.train(**{**settings, "student": tmp_path / name})
    assert not settings["out"].exists()


def test_a_name_that_neither_disk_nor_hub_knows(settings: dict[str, Any]) -> None:
    """Refused in one line, without asking a hub that doesn't answer again and again."""
    with pytest.raises(ModelError, match="student nobody/nothing is neither a directory here nor a model") as error:
        lc.train(**{**settings, "student": "nobody/nothing"})
    assert len(str(error.value).splitlines()) == 1
    assert not settings["out"].exists()


def test_a_held_out_cache_of_another_teacher_is_told_of(
    settings: dict[str, Any], student_dir: Path, tmp_path: Path
) -> None:
    """Its KL would look like training that went wrong."""
    words = len(AutoTokenizer.from_pretrained(student_dir))
    other = write_cache(tmp_path / "other", tiny_shards(words), student_dir, teacher="somebody else")

    def notes(held_out: Path) -> list[str]:
        return list(plan(lc.TrainConfig.parse({**settings, "eval_cache": held_out}))["notes"])

    assert notes(settings["cache"]) == []
    assert notes(other.root) == [
        "the student is measured against another teacher (somebody else) than it learns from (test)"
    ]


def test_an_existing_output_is_never_touched(settings: dict[str, Any]) -> None:
    settings["out"].mkdir()
    (settings["out"] / "mine").write_text("keep")
    with pytest.raises(OutputExistsError, match="exists"):
        lc.train(**settings)
    assert [path.name for path in settings["out"].iterdir()] == ["mine"]


def test_another_cache_or_other_settings_on_resume(settings: dict[str, Any], student_dir: Path, tmp_path: Path) -> None:
    kept = {**settings, "batch_size": 2, "epochs": 2, "checkpoint_every": 2}
    lc.train(**kept)
    (settings["out"] / "config.json").unlink()  # as if it had been killed before the end
    words = len(AutoTokenizer.from_pretrained(student_dir))
    other = write_cache(tmp_path / "other", tiny_shards(words)[:1], student_dir)
    with pytest.raises(ResumeMismatchError, match="cache has changed"):
        lc.train(**{**kept, "cache": other.root, "resume": True})
    with pytest.raises(ResumeMismatchError, match="learning_rate was"):
        lc.train(**kept, learning_rate=3e-3, resume=True)
    with pytest.raises(ResumeMismatchError, match="seed was 0"):
        lc.train(**kept, seed=4, resume=True)
    with pytest.raises(ResumeMismatchError, match="epochs was 2"):
        plan(lc.TrainConfig.parse({**kept, "epochs": 3, "resume": True}))


def test_a_damaged_shard_stops_training(settings: dict[str, Any], cache: Cache, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(cache.root, copy)
    shard = copy / cache.shards[1].path
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptCacheError, match=shard.name):
        lc.train(**{**settings, "cache": copy})
    assert not (settings["out"] / "config.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs = 0 is not allowed"),
        ({"learning_rate": -1}, "learning_rate = -1 is not allowed"),
        ({"loss": "bilt"}, "did you mean bild"),
        ({"loss": "bild=x"}, "must be a number"),
        ({"loss": "bild=0,tvd=0"}, "weighs nothing"),
        ({"loss_options": {"kk": 1}}, "no setting 'kk'"),
        ({"dtype": "int8"}, "dtype = 'int8' is not allowed"),
        ({"no_such": 1}, "no_such is not a setting"),
        ({"schedule": "zigzag"}, "transformers refuses"),
        ({"pack_tokens": 3}, "holds a sequence of 6 tokens"),
        ({"cache": "nowhere"}, "nowhere"),
        ({"loss": "dkd"}, "standard deviation"),
    ],
)
def test_settings_that_are_not_allowed(settings: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(LogitCacheError, match=message):
        lc.train(**{**settings, **change})
    assert not (settings["out"] / "config.json").exists()


def test_a_cache_that_is_not_there(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CacheNotFoundError):
        lc.train(**{**settings, "cache": tmp_path})


def test_layers_that_are_not_there(student_dir: Path, tmp_path: Path) -> None:
    for layers in (0, 3, [0, 2], [1, 0], [0, 0], []):
        with pytest.raises(ConfigError, match="layers"):
            make_student(student_dir, tmp_path / "out", layers=layers)
    with pytest.raises(ConfigError, match="give a number of layers, not a list"):
        make_student(student_dir, tmp_path / "out", layers=[0, 1], importance_cache=tmp_path / "cache")
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputExistsError):
        make_student(student_dir, tmp_path / "there", layers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_command_line_says_it_in_a_line(settings: dict[str, Any], cache: Cache, tmp_path: Path) -> None:
    """The commands raise what the library raises; `run` turns it into one line and status 1 (tested with main)."""
    runner = CliRunner()
    for command in (
        ["train", "--cache", str(tmp_path / "none"), "--student", "s", "--out", "o"],
        ["train", "--cache", str(cache.root), "--student", str(tmp_path / "none"), "--out", str(tmp_path / "o")],
        ["train", "--student", "s", "--out", "o"],
        ["eval", "--cache", str(cache.root), "--student", str(tmp_path / "none")],
        ["eval", "--cache", str(cache.root)],
        ["student", "--teacher", str(tmp_path / "none"), "--layers", "2", "--out", str(tmp_path / "o")],
        ["student", "--teacher", str(settings["student"]), "--layers", "two", "--out", str(tmp_path / "o")],
    ):
        result = runner.invoke(app, command)
        assert isinstance(result.exception, LogitCacheError), (command, result.exception)
        assert len(str(result.exception).splitlines()) <= 2
    assert not (tmp_path / "o").exists()
