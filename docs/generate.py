"""Write docs/reference/cli.md from the program itself, so that help and docs can't drift apart.

python docs/generate.py          # write it
python docs/generate.py --check  # exit 1 if the committed page is stale
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from typer.models import ArgumentInfo

from logitcache.cli.main import app

PAGE = Path(__file__).parent / "reference" / "cli.md"
HEADER = """# Command line reference

Generated from the program by `python docs/generate.py`. Each command has a guide with worked examples. Exit status: 0
done, 1 an error that is explained in a line or two, 2 wrong usage (an option that there isn't, a value of the wrong
kind), 130 ended by Ctrl-C (a dump ends after the shard at hand, with 1). `--debug`, anywhere on the line, shows the
traceback of an error.
"""


def commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Each command's name and function, by name."""
    for command in sorted(app.registered_commands, key=lambda command: command.name or ""):
        assert command.name is not None
        assert command.callback is not None
        yield command.name, command.callback


def options(function: Callable[..., Any]) -> Iterator[tuple[str, str, str, str]]:
    """Name on the command line, kind, default and help of each option of a command."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = typing.get_args(hints[name])
        # Inside Annotated, typer keeps the first name in the place of the default.
        names = [text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str)]
        flag = ", ".join(names) or f"--{name.replace('_', '-')}"
        if isinstance(info, ArgumentInfo):
            flag = info.metavar or name.upper()
        yield flag, _kind(kind), _default(parameter.default, info), " ".join((info.help or "").split())


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(_kind(part) for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is list:
        return f"{_kind(typing.get_args(hint)[0])}, may be repeated"
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(map(str, typing.get_args(hint)))
    return {bool: "flag", str: "text", int: "whole number", float: "number", Path: "path"}.get(hint, str(hint))


def _default(value: Any, info: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if isinstance(info.show_default, str):
        return f"`{info.show_default}`"
    return "" if value in (None, False, []) else f"`{value}`"


def page() -> str:
    """The whole reference as Markdown."""
    parts = [HEADER]
    for name, function in commands():
        what = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0]
        parts.append(f"\n## logitcache {name}\n\n{' '.join(what.split())}\n")
        parts.append("| option | kind | default | what it does |\n|---|---|---|---|")
        parts.extend(f"| `{flag}` | {kind} | {default} | {text} |" for flag, kind, default, text in options(function))
    return "\n".join(parts) + "\n"


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            print(f"{PAGE} is stale: run `python docs/generate.py`", file=sys.stderr)
            return 1
        return 0
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
