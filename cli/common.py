"""What every command shares: one console, one way to fail, one way to print JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from logitcache.errors import ConfigError

console = Console()
# Progress and notes go to stderr, so that stdout holds nothing but the answer.
messages = Console(stderr=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print a result as JSON on stdout, for programs."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def read_config(path: Path | None) -> dict[str, Any]:
    """Read a YAML file of settings; keys are the flags' names with - or _.

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
        first_line = str(error).splitlines()[0]
        raise ConfigError(f"the config file {path} is not valid YAML: {first_line}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f"the config file {path} must hold `name: value` lines at its top level")
    return {key.replace("-", "_"): value for key, value in settings.items()}
