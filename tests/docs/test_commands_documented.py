"""A command without a guide and a worked example is a failing test."""

from __future__ import annotations

from pathlib import Path

import pytest

from logitcache.cli.main import app

COMMANDS = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "commands"
NAMES = sorted(str(command.name) for command in app.registered_commands)


@pytest.mark.parametrize("name", NAMES)
def test_command_has_a_guide_with_a_worked_example(name: str) -> None:
    page = COMMANDS / f"{name}.md"
    assert page.exists(), f"write docs/how-to/commands/{name}.md"
    assert f"logitcache {name} " in page.read_text(encoding="utf-8")


def test_every_guide_has_a_command() -> None:
    assert sorted(page.stem for page in COMMANDS.glob("*.md")) == NAMES
