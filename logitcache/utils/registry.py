"""Find a value by name: those of logitcache, those that a program registers, and those of installed packages.

A package offers a value by an entry point. It is imported only when the value is asked for by name.
"""

from __future__ import annotations

import difflib
import warnings
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from logitcache.errors import ConfigError, LogitCacheWarning
from logitcache.utils.reasons import reason

T = TypeVar("T")


class Registry(Generic[T]):
    """Names, each with its value.

    Args:
        kind: what is registered, for messages: loss, engine.
        group: the group of entry points that packages use.
        check: returns the value if it may be registered under the name; raises ConfigError if not.
    """

    def __init__(self, kind: str, group: str, check: Callable[[str, Any], T]) -> None:
        self._kind = kind
        self._group = group
        self._check = check
        self._known: dict[str, T] = {}
        self._offers: dict[str, list[EntryPoint]] | None = None

    def register(self, name: str, value: T) -> None:
        """Register a value under a name.

        Raises:
            ConfigError: the name is taken, or the value isn't one of this kind.
        """
        if name in self._known or name in (self._offers or {}):
            raise ConfigError(f"there is another {self._kind} {name!r} already: choose another name")
        self._known[name] = self._check(name, value)

    def names(self) -> list[str]:
        """The registered names in order, then the names that packages offer."""
        return list(dict.fromkeys([*self._known, *sorted(self._offered())]))

    def get(self, name: str) -> T:
        """The value of a name.

        Raises:
            ConfigError: there is no such name; several packages offer it; or the package can't be imported.
        """
        offered = self._offered()
        if name in self._known:
            return self._known[name]
        if name not in offered:
            close = difflib.get_close_matches(name, self.names(), 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"there is no {self._kind} {name!r}; {hint}choose from {', '.join(self.names())}")
        if len(offered[name]) > 1:
            packages = " and ".join(sorted(map(_package, offered[name])))
            raise ConfigError(f"the packages {packages} both offer the {self._kind} {name!r}: uninstall one of them")
        self._known[name] = self._load(offered[name][0])
        return self._known[name]

    def _offered(self) -> dict[str, list[EntryPoint]]:
        """Names that packages offer and that are not registered, with their entry points; found once."""
        if self._offers is None:
            found: dict[str, list[EntryPoint]] = defaultdict(list)
            for entry in entry_points(group=self._group):
                found[entry.name].append(entry)
            for name in found.keys() & self._known.keys():
                for entry in found.pop(name):
                    warnings.warn(
                        f"the package {_package(entry)} offers the {self._kind} {name!r}, a name that is taken: it is "
                        "not used",
                        LogitCacheWarning,
                        stacklevel=3,
                    )
            self._offers = dict(found)
        return self._offers

    def _load(self, entry: EntryPoint) -> T:
        which = f"the {self._kind} {entry.name!r} of the package {_package(entry)}"
        try:
            value = entry.load()
        except Exception as error:
            raise ConfigError(f"{which} can't be imported: {reason(error)}") from error
        try:
            return self._check(entry.name, value)
        except ConfigError as error:
            raise ConfigError(f"{which} can't be used: {error}") from error


def _package(entry: EntryPoint) -> str:
    return "(without a name)" if entry.dist is None else entry.dist.name
