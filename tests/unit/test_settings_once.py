"""Each setting of `dump` and `train` is written once, at its field; flags, `--help` and the reference use it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from logitcache import DumpConfig, LogitCacheError, TrainConfig
from logitcache.cli.main import app
from logitcache.cli.options import gather
from logitcache.utils.settings import Config, Setting, resumed_as, settings_of_class

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {"dump": DumpConfig, "train": TrainConfig}
#: Options that say what the command does, and are no settings of a dump or a training run.
OWN = {
    "dump": {"--reuse", "--config", "--dry-run", "--hardware", "--preview", "--json", "--help"},
    "train": {"--losses", "--config", "--dry-run", "--hardware", "--json", "--help"},
}
EVERY = [(command, setting) for command, config in CONFIGS.items() for setting in settings_of_class(config)]
FLAGGED = [(command, setting) for command, setting in EVERY if setting.flag]


def label(value: Any) -> str:
    return value.name if isinstance(value, Setting) else str(value)


@pytest.fixture(scope="module")
def helps() -> dict[str, dict[str, str]]:
    """The rows of `--help` by flag, with one space between words and no borders."""
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
    found = {}
    for command in CONFIGS:
        rows = re.split(r"│ (?=--)", runner.invoke(app, [command, "--help"]).output)[1:]
        found[command] = {row.split()[0]: re.sub(r"[\s│]+", " ", row.split("╰")[0]) for row in rows}
    return found


def options(command: str) -> dict[str, Any]:
    """A command's options by flag."""
    return {flag: option for option in get_command(app).commands[command].params for flag in option.opts}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("command", "setting"), EVERY, ids=label)
def test_a_field_has_help_a_group_and_a_flag_or_a_reason(command: str, setting: Setting) -> None:
    assert re.fullmatch(r"[A-Z].*[^.]\.", setting.help), setting.help
    assert ". " not in setting.help, "one sentence"
    assert setting.shown.group
    assert bool(setting.flag) != bool(setting.shown.no_flag)
    if setting.flag:
        assert setting.flag in options(command)


@pytest.mark.parametrize("command", CONFIGS)
def test_a_flag_is_a_field_or_on_the_list(command: str) -> None:
    fields = {setting.flag for name, setting in FLAGGED if name == command}
    assert set(options(command)) | {"--help"} == fields | OWN[command]
    names = [name for setting in settings_of_class(CONFIGS[command]) for name in setting.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("command", "setting"), FLAGGED, ids=label)
def test_help_shows_the_default_and_what_is_required(
    helps: dict[str, dict[str, str]], command: str, setting: Setting
) -> None:
    row = helps[command][setting.flag]
    assert setting.flag_help in row
    assert ("[required]" in row) == setting.field.is_required()
    if setting.default:
        assert f"[default: ({setting.default})]" in row
    else:
        assert setting.field.is_required() or setting.field.get_default(call_default_factory=True) in (
            None,
            True,
            False,
            {},
        )
    assert options(command)[setting.flag].rich_help_panel == setting.shown.group


@pytest.mark.parametrize(("command", "setting"), EVERY, ids=label)
def test_the_reference_lists_it(command: str, setting: Setting) -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    part = page.split(f"\n## {command}\n")[1].split("\n## ")[0]
    (row,) = [line for line in part.splitlines() if line.startswith(f"| `{setting.name}` |")]
    assert setting.help in row
    assert setting.default in row
    assert setting.flag in row
    commands = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert f"| `{setting.flag}` |" in commands.split(f"\n## logitcache {command}\n")[1] or not setting.flag


def test_the_reference_is_fresh() -> None:
    subprocess.run([sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], check=True)


def test_help_is_written_nowhere_else() -> None:
    for name in ("dump", "dump_output", "train", "options", "common", "main"):
        code = (ROOT / "cli" / f"{name}.py").read_text(encoding="utf-8")
        assert [setting.name for _, setting in EVERY if setting.help in code] == []


@pytest.mark.parametrize("config", CONFIGS.values())
def test_docstrings_list_no_settings(config: type[Config]) -> None:
    assert "Attributes:" not in (config.__doc__ or "")


def test_what_a_dump_records_under_its_name() -> None:
    """The record decides the digest of a cache: a field that is added here changes the digest of every dump."""
    assert resumed_as(DumpConfig, "same") == {
        "attention", "bad_rows", "batch_tokens", "candidates", "data_kind", "device_map", "dtype", "end_of_text",
        "engine", "every", "head_dtype", "long_rows", "max_length", "overlap", "positions", "shard_format",
        "shard_tokens", "skip_non_finite", "split", "statistics", "tail_samples", "template_args", "text_column",
        "top_k", "turns",
    }  # fmt: skip


def test_values_of_flags_are_read_by_the_fields(tmp_path: Path) -> None:
    config = TrainConfig.parse(
        gather(TrainConfig, {"betas": "0.8,0.9", "weights": "2,1", "cache": ["a", "b"], "student": "s", "out": "o"})
    )
    assert (config.betas, config.weights, config.caches) == ((0.8, 0.9), (2.0, 1.0), ("a", "b"))
    arguments = ["train", "--cache", "none", "--student", "s", "--out", str(tmp_path / "o"), "--betas", "0.9,x"]
    refused = CliRunner().invoke(app, arguments).exception
    assert str(refused).startswith("betas = '0.9,x' is not allowed: give a number for each beta")
    refused = CliRunner().invoke(app, [*arguments[:-2], "--trainer", "seed=3"]).exception
    assert "the setting for it is seed" in str(refused)


def test_sources_are_joined_and_the_later_wins() -> None:
    file = {"format": "arrow", "card": {"licence": "CC0", "notes": "n"}, "template_args": {"a": 1, "b": 1}}
    flags = {"shard_format": "zarr", "licence": "MIT", "template_args": {"b": 2}}
    assert gather(DumpConfig, file, flags) == {
        "shard_format": "zarr",
        "card": {"licence": "MIT", "notes": "n"},
        "template_args": {"a": 1, "b": 2},
    }
    assert gather(DumpConfig, {"generate": False, "card": None}) == {}
    assert gather(DumpConfig, {"card": "text", "licence": "MIT"}) == {"card": "text"}
    assert gather(TrainConfig, {"write_report": True}, {"write_report": False}) == {"write_report": False}


@pytest.mark.parametrize(
    ("config", "name", "close"),
    [(DumpConfig, "license", "licence"), (DumpConfig, "topk", "top_k"), (TrainConfig, "learning_rat", "learning_rate")],
)
def test_an_unknown_name_is_refused_with_the_nearest(config: type[Config], name: str, close: str) -> None:
    with pytest.raises(LogitCacheError, match=f"^{name} is not a setting; did you mean {close}\\? `logitcache "):
        gather(config, {name: 1})


def test_a_missing_setting_names_its_flag() -> None:
    with pytest.raises(LogitCacheError, match=r"^the setting cache is missing \(on the command line: --cache\)$"):
        TrainConfig.parse({"student": "s", "out": "o"})


def test_python_suggests_names_too() -> None:
    with pytest.raises(LogitCacheError, match=r"^max_lenght is not a setting; did you mean max_length\?"):
        TrainConfig.parse({"cache": "c", "student": "s", "out": "o", "max_lenght": 5})
