"""What every command shares: the consoles, JSON output, config files, and warnings."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from logitcache.errors import ConfigError, LogitCacheWarning
from logitcache.utils.reasons import reason

from .text import printable

console = Console()
# Progress and notes go to stderr, so that stdout holds only the result.
messages = Console(stderr=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print a result as JSON on stdout, for programs."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def read_config(path: Path | None) -> dict[str, Any]:
    """Read a YAML file of settings. Keys are the names of the flags, with - or _.

    Raises:
        ConfigError: the file is missing, isn't YAML, or isn't a mapping.
    """
    if path is None:
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read the config file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file {path} is not valid YAML: {reason(error)}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f"the config file {path} must hold `name: value` lines at its top level")
    return {key.replace("-", "_"): value for key, value in settings.items()}


@contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Print warnings of logitcache once each, without Python's file and line. Other warnings are shown as usual."""
    with warnings.catch_warnings():
        usual, said = warnings.showwarning, set[str]()

        def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, LogitCacheWarning):
                if str(message) in said:
                    return
                said.add(str(message))
                messages.print(
                    f"[bold yellow]warning:[/] {escape(printable(str(message)))}", soft_wrap=True, highlight=False
                )
            else:
                usual(message, category, *rest, **more)

        warnings.showwarning = show
        yield


def read_assignments(flag: str, assignments: list[str] | None) -> dict[str, Any]:
    """The values of a repeated ``name=value``. Each value is read as YAML, so false becomes a bool.

    Raises:
        ConfigError: one has no name, or its value isn't YAML.
    """
    found: dict[str, Any] = {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"{flag} {assignment!r} is not allowed; write name=value, such as enable_thinking=false")
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"{flag} {assignment!r}: the value can't be read: {reason(error)}") from error
        # A date or a time stays text.
        found[name.strip()] = parsed if isinstance(parsed, str | bool | int | float | list | dict) else value
    return found
