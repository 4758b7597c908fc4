"""Caches at a distance: stores by URL, and moving, joining, finding and signing caches.

What is here builds on the cache package and on obstore, so it is imported when it is first used.
Modules are called otherwise than the functions they hold, because both would be attributes of this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logitcache.share.cataloguing import Listed, catalogue
    from logitcache.share.comparing import Difference, diff
    from logitcache.share.dumping import dump_to, find_dump
    from logitcache.share.exporting import export_parquet
    from logitcache.share.importing import Imported, import_logprobs
    from logitcache.share.merging import Merged, merge
    from logitcache.share.opening import open_place, verify
    from logitcache.share.pulling import pull
    from logitcache.share.pushing import Transfer, push, tag
    from logitcache.share.remote import RemoteCache, open_remote
    from logitcache.share.selection import Selection, parse_range, parse_spans
    from logitcache.share.signatures import check_trusted
    from logitcache.share.signing import make_key
    from logitcache.share.trust import sign

_HOMES = {
    "cataloguing": ("Listed", "catalogue"),
    "comparing": ("Difference", "diff"),
    "dumping": ("dump_to", "find_dump"),
    "exporting": ("export_parquet",),
    "importing": ("Imported", "import_logprobs"),
    "merging": ("Merged", "merge"),
    "opening": ("open_place", "verify"),
    "pulling": ("pull",),
    "pushing": ("Transfer", "push", "tag"),
    "remote": ("RemoteCache", "open_remote"),
    "selection": ("Selection", "parse_range", "parse_spans"),
    "signatures": ("check_trusted",),
    "signing": ("make_key",),
    "trust": ("sign",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Difference",
    "Imported",
    "Listed",
    "Merged",
    "RemoteCache",
    "Selection",
    "Transfer",
    "catalogue",
    "check_trusted",
    "diff",
    "dump_to",
    "export_parquet",
    "find_dump",
    "import_logprobs",
    "make_key",
    "merge",
    "open_place",
    "open_remote",
    "parse_range",
    "parse_spans",
    "pull",
    "push",
    "sign",
    "tag",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
