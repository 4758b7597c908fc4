"""Write docs/reference/cli.md and docs/reference/settings.md from the program, so that pages and program always agree.

python docs/generate.py          # write them
python docs/generate.py --check  # exit 1 if a committed page is stale
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from typer.models import ArgumentInfo

from logitcache import DumpConfig, TrainConfig
from logitcache.cli.main import app
from logitcache.cli.options import value_type
from logitcache.utils.settings import Config, Setting, is_model, settings_of_class

REFERENCE = Path(__file__).parent / "reference"
CLI_HEADER = """# Command line reference

Generated from the program by `python docs/generate.py`. Each command has a [guide](../how-to/index.md) with examples.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | an error, explained in one or two lines; also a dump that was stopped by Ctrl-C, after its current shard |
| 2 | wrong usage: an unknown option, or a value of the wrong kind |
| 130 | stopped by Ctrl-C |

`--debug` shows the traceback of an error. It may be anywhere on the command line.
"""


SETTINGS_HEADER = """# Settings of dump and train

Generated from the program by `python docs/generate.py`. A setting has the same name in Python (`lc.dump`, `lc.train`)
and in a YAML file (`--config`, written with `-` or `_`), and a flag on the command line. A flag overrides the file. In
Python the settings of generated answers and of the card are given as mappings:
`generate={"max_new_tokens": 64}`, `card={"licence": "CC0-1.0", "notes": "a trial"}`. A YAML file takes both forms.

The last column says what happens when an unfinished run is resumed. *same*: the value must be the same, and is
recorded. *content*: the value may change, but its content must be the same, such as a model's weights. *free*: it may
change.
"""
LIMITS = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))


def commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Each command's name and function, by name."""
    for command in sorted(app.registered_commands, key=lambda command: command.name or ""):
        assert command.name is not None
        assert command.callback is not None
        yield command.name, command.callback


def options(function: Callable[..., Any]) -> Iterator[tuple[str, str, str, str]]:
    """Name on the command line, kind, default and help of each option of a command."""
    config = getattr(function, "config", None)
    settings = {setting.name: setting for setting in settings_of_class(config) if setting.flag} if config else {}
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in settings:
            setting = settings[name]
            kind = ", ".join(setting.choices) or _kind(value_type(setting))
            yield setting.flag, kind, _words(setting), setting.flag_help
            continue
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


def _words(setting: Setting) -> str:
    """A setting's default in words."""
    if setting.field.is_required():
        return "required"
    if value_type(setting) is bool and setting.flag:
        return "on" if setting.turns_off else "off"
    return f"`{setting.default}`" if setting.default and not setting.shown.default else setting.default


def _type(setting: Setting) -> str:
    """A setting's type and its limits."""
    kind = setting.type
    if typing.get_origin(kind) is tuple:
        words = f"list of {_kind(typing.get_args(kind)[0])}s"
    elif typing.get_origin(kind) is dict:
        words = "mapping"
    elif typing.get_origin(kind) in (types.UnionType, typing.Union):
        words = "text, or a list of texts"
    elif is_model(kind):
        words = "on, or a mapping of the settings below" if setting.flag else "mapping of the settings below"
    else:
        words = "on or off" if kind is bool else _kind(kind)
    limits = [
        f"{text} {getattr(mark, attribute):,}"
        for mark in setting.field.metadata
        for limit, attribute, text in LIMITS
        if isinstance(mark, limit)
    ]
    return ", ".join([words, *limits])


def cli_page() -> str:
    """The reference of the command line as Markdown."""
    parts = [CLI_HEADER]
    for name, function in commands():
        what = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0]
        parts.append(f"\n## logitcache {name}\n\n{' '.join(what.split())}\n")
        parts.append("| option | kind | default | what it does |\n|---|---|---|---|")
        parts.extend(f"| `{flag}` | {kind} | {default} | {text} |" for flag, kind, default, text in options(function))
    return "\n".join(parts) + "\n"


def settings_page() -> str:
    """The reference of settings as Markdown, by the groups of ``--help``."""
    parts = [SETTINGS_HEADER]
    for title, config in (("dump", DumpConfig), ("train", TrainConfig)):
        parts.append(f"\n## {title}")
        for group, settings in _groups(config).items():
            parts.append(f"\n### {title}: {group[0].lower()}{group[1:]}\n")
            parts.append("| setting | flag | type | default | what it does | resuming |\n|---|---|---|---|---|---|")
            parts.extend(map(_row, settings))
    return "\n".join(parts) + "\n"


def _groups(config: type[Config]) -> dict[str, list[Setting]]:
    found: dict[str, list[Setting]] = {}
    for setting in settings_of_class(config):
        found.setdefault(setting.shown.group, []).append(setting)
    return found


def _row(setting: Setting) -> str:
    flag = f"`{setting.flag}`" if setting.flag else f"none: {setting.shown.no_flag}"
    cells = (f"`{setting.name}`", flag, _type(setting), _words(setting), setting.help, setting.shown.resume)
    return f"| {' | '.join(cells)} |"


def main() -> int:
    pages = {REFERENCE / "cli.md": cli_page(), REFERENCE / "settings.md": settings_page()}
    if "--check" in sys.argv:
        stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        for path in stale:
            print(f"{path} is stale: run `python docs/generate.py`", file=sys.stderr)
        return 1 if stale else 0
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
