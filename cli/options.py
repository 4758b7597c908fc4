"""Options of a command from a configuration class, where each setting is defined once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import typer
from rich.markup import escape

from logitcache.errors import ConfigError
from logitcache.utils.settings import Config, Setting, is_model, settings_of_class
from logitcache.utils.validation import unknown_setting

from .common import read_assignments

Command = Callable[..., None]
#: Longest placeholder of a value in `--help`; longer lists of choices are added to the help text.
_PLACE = 24


def options_of(config: type[Config]) -> Callable[[Command], Command]:
    """Give a typer command an option for each setting of ``config``, before the options that it defines itself.

    The command's first parameter gets the settings that are on the command line, by name, as :func:`gather` takes
    them. The default of each option is None, so a setting that isn't given is different from one with its default.
    """
    shown = {setting.name: setting for setting in settings_of_class(config) if setting.flag}

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            own = {name: value for name, value in values.items() if name not in shown}
            given = {name: values[name] for name in shown if values.get(name) not in (None, [])}
            command({name: _read(shown[name], value) for name, value in given.items()}, **own)

        _, *own = inspect.signature(command).parameters.values()
        hints = get_type_hints(command, include_extras=True)
        options = [_option(setting) for setting in shown.values()]
        options += [parameter.replace(annotation=hints[parameter.name]) for parameter in own]
        run.__signature__ = inspect.Signature(options, return_annotation=None)  # type: ignore[attr-defined]
        run.__annotations__ = {option.name: option.annotation for option in options} | {"return": None}
        run.config = config  # type: ignore[attr-defined]
        return run

    return decorate


def _option(setting: Setting) -> inspect.Parameter:
    """The parameter of a command function that typer makes the option of."""
    info = typer.Option(
        setting.flag,
        help=_help(setting),
        show_default=setting.default or False,
        metavar=_metavar(setting),
        rich_help_panel=setting.shown.group,
    )
    annotation: Any = Annotated[value_type(setting) | None, info]
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def value_type(setting: Setting) -> Any:
    """The type that typer reads for a setting. The field makes all further checks."""
    kind = setting.type
    if kind is bool or is_model(kind):
        return bool
    if setting.shown.as_text or setting.choices:
        return str
    return kind if kind in (int, float, str, Path) else list[str]


def _help(setting: Setting) -> str:
    """The field's help, with its choices and whether it is required."""
    text = escape(setting.flag_help)
    if len("|".join(setting.choices)) > _PLACE:
        text += f" One of {', '.join(setting.choices)}."
    return text + (" [red]" + escape("[required]") + "[/]" if setting.field.is_required() else "")


def _metavar(setting: Setting) -> str | None:
    choices = "|".join(setting.choices)
    if setting.shown.metavar or get_origin(setting.type) is dict:
        return setting.shown.metavar or "NAME=VALUE"
    return choices if 0 < len(choices) <= _PLACE else None


def _read(setting: Setting, value: Any) -> Any:
    """An option's value as the field takes it."""
    if setting.turns_off:
        return not value
    if get_origin(setting.type) is dict:
        return read_assignments(setting.flag, value)
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def gather(config: type[Config], *sources: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of several sources, such as a file and flags, as ``config`` takes them. Later sources override.

    The settings of a nested model may be given like the others (``licence``, ``max_new_tokens``) or as a mapping.
    Mappings are joined name by name.

    Raises:
        ConfigError: a name is unknown, or a setting needs another one that isn't given.
    """
    known = {name: setting for setting in settings_of_class(config) for name in setting.names}
    merged: dict[str, Any] = {}
    for source in sources:
        for name, value in source.items():
            if name not in known:
                raise ConfigError(unknown_setting(name, known, config.listed_by))
            name = known[name].name
            before = merged.get(name)
            merged[name] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    fields = {name: value for name, value in merged.items() if len(known[name].path) == 1}
    for container in filter(lambda setting: is_model(setting.type), settings_of_class(config)):
        inner = [(known[name], value) for name, value in merged.items() if known[name].path[:-1] == container.path]
        _nest(container, fields, inner)
    return fields


def _nest(container: Setting, fields: dict[str, Any], inner: list[tuple[Setting, Any]]) -> None:
    """Put the settings of a nested model, which are in ``inner``, into its mapping in ``fields``."""
    value = fields.pop(container.name, None)
    optional = container.field.default is None
    if inner and optional and not value:
        raise ConfigError(f"{inner[0][0].flag} needs {container.flag}")
    if optional and value is True:
        value = {}
    elif not value and not inner:
        return
    # A value that isn't a mapping stays unchanged: the field's own check refuses it.
    own = {setting.path[-1]: one for setting, one in inner}
    fields[container.name] = value if value and not isinstance(value, dict) else {**(value or {}), **own}
