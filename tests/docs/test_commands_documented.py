"""A command without a guide and a worked example is a failing test."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import typer

from logitcache.cli.main import app

COMMANDS = Path(__file__).resolve().parents[2] / "docs" / "commands"


def command_names() -> list[str]:
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group)
    return sorted(root.commands)


@pytest.mark.parametrize("name", command_names())
def test_command_has_a_guide_with_a_worked_example(name: str) -> None:
    page = COMMANDS / f"{name}.md"
    assert page.exists(), f"write docs/commands/{name}.md"
    assert f"logitcache {name} " in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", command_names())
def test_every_option_has_help(name: str) -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, click.Group)
    bare = [option.name for option in root.commands[name].params if not getattr(option, "help", "help")]
    assert not bare
