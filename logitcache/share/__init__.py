"""Caches at a distance: stores by URL, and moving, joining, finding and signing caches.

The cache package asks ``share.url`` what a URL is, so what needs that package is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logitcache.share.remote import RemoteCache, open_remote

_HOMES = {"RemoteCache": "remote", "open_remote": "remote"}

__all__ = ["RemoteCache", "open_remote"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
