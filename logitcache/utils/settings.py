"""The settings of a configuration class, read from its fields.

Type, default, help and checks are written at the pydantic field. A :class:`Flag` beside them says how the command line
shows the setting, and whether it may change when an unfinished run is resumed::

    top_k: Annotated[int, Field(ge=1, description="Entries kept for each position."), Flag("Targets")] = 64
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from logitcache.errors import ConfigError
from logitcache.utils.validation import first_fault

#: May a setting change when an unfinished run is resumed? ``same``: no; its value is recorded under its name.
#: ``content``: its value may change, but what it names may not, such as a model's weights; that is recorded instead.
#: ``free``: yes.
Resume = Literal["same", "content", "free"]


class Config(BaseModel):
    """The base of configuration classes: settings are checked once, and don't change after that."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The command that lists the settings.
    listed_by: ClassVar[str] = ""

    @classmethod
    def parse(cls, settings: dict[str, Any]) -> Self:
        """Check settings.

        Raises:
            ConfigError: names the first field that is wrong, its value, and what is allowed.
        """
        try:
            return cls(**settings)
        except ValidationError as error:
            raise ConfigError(
                first_fault(error, show_value=True, listed_by=cls.listed_by, known=cls.model_fields)
            ) from error


@dataclass(frozen=True)
class Flag:
    """How the command line shows a setting, and whether the setting may change when a run is resumed.

    Attributes:
        group: heading in ``--help`` and in the reference. A nested field without one uses its parent's.
        name: the flag, if it isn't the field's name; for a bool that is on by default, the flag that turns it off.
        default: the default in words, if the field's default is None or not clear.
        metavar: placeholder of the value in ``--help``, if the type is not clear.
        as_text: the command line passes the text as it is, and the field's own check parses it.
        prefix: for a field whose type is a model: a prefix for the names of that model's fields.
        no_flag: why the setting has no flag.
        resume: see :data:`Resume`.
    """

    group: str = ""
    name: str = ""
    default: str = ""
    metavar: str = ""
    as_text: bool = False
    prefix: str = ""
    no_flag: str = ""
    resume: Resume = "same"


@dataclass(frozen=True)
class Setting:
    """One setting of a configuration class, or of a model nested in it.

    Attributes:
        name: its name in a flat list of settings, such as a YAML file: ``top_k``, ``card_notes``.
        path: where its value goes: ``("top_k",)``, ``("card", "notes")``.
        field: type, default, help and checks.
        shown: how the command line shows it.
    """

    name: str
    path: tuple[str, ...]
    field: FieldInfo
    shown: Flag

    @property
    def flag(self) -> str:
        """The flag, such as ``--top-k``; empty if there is none."""
        return "" if self.shown.no_flag else self.shown.name or f"--{self.name.replace('_', '-')}"

    @property
    def turns_off(self) -> bool:
        """True if the setting is on by default, and the flag turns it off."""
        return self.type is bool and self.field.default is True

    @property
    def names(self) -> set[str]:
        """All names that a YAML file may use for it: the field's name, and the flag's if that differs."""
        return {self.name} if self.turns_off or not self.flag else {self.name, self.flag[2:].replace("-", "_")}

    @property
    def help(self) -> str:
        """What the setting does, in one sentence."""
        return self.field.description or ""

    @property
    def flag_help(self) -> str:
        """The help of the flag, which may turn the setting off."""
        return f"Turn this off: {self.help[:1].lower()}{self.help[1:]}" if self.turns_off else self.help

    @property
    def type(self) -> Any:
        """The field's type without None and without checks: ``int``, ``Literal[...]``, ``tuple[str, ...]`` …"""
        return plain(self.field.annotation)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that are allowed, if they are a list of names; else empty."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def default(self) -> str:
        """The default in words; empty for one that is required, switched off or absent."""
        if self.shown.default:
            return self.shown.default
        value = self.field.get_default(call_default_factory=True)
        if self.field.is_required() or value is None or isinstance(value, bool | dict | BaseModel):
            return ""
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def settings_of_class(config: type[BaseModel]) -> Iterator[Setting]:
    """Every setting of a class, in the fields' order; a nested model's fields follow the field that holds it."""
    for name, field in config.model_fields.items():
        setting = Setting(name, (name,), field, flag_of(field))
        yield setting
        if is_model(setting.type):
            for inner in settings_of_class(setting.type):
                flag = inner.shown
                own_name = flag.name[2:].replace("-", "_") or f"{setting.shown.prefix}{inner.name}"
                shown = replace(flag, group=flag.group or setting.shown.group, resume=setting.shown.resume)
                yield Setting(own_name, (name, *inner.path), inner.field, shown)


def flag_of(field: FieldInfo) -> Flag:
    """The field's ``Flag``, or one without content."""
    return next((mark for mark in field.metadata if isinstance(mark, Flag)), Flag())


def resumed_as(config: type[BaseModel], resume: Resume) -> set[str]:
    """The fields of a class that have this ``resume``."""
    return {name for name, field in config.model_fields.items() if flag_of(field).resume == resume}


def plain(annotation: Any) -> Any:
    """A type without None and without what ``Annotated`` adds."""
    if get_origin(annotation) is Annotated:
        return plain(get_args(annotation)[0])
    if get_origin(annotation) in (types.UnionType, Union):
        parts = [plain(part) for part in get_args(annotation) if part is not type(None)]
        return parts[0] if len(parts) == 1 else Union[tuple(parts)]  # noqa: UP007 - the parts are values here
    return annotation


def is_model(kind: Any) -> bool:
    """True for a model whose fields are settings of their own."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)
