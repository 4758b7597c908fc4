"""Names of caches: a URL, and after an ``@`` a tag or a digest that selects one of the caches there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from logitcache.errors import ConfigError

SCHEMES = ("s3", "gs", "az", "http", "https", "hf", "file")
_URL = re.compile(r"^([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_ONE_SLASH = re.compile(rf"^({'|'.join(SCHEMES)}):/(?=[^/])")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Reference:
    """A URL, and which of the caches there; at most one of ``tag`` and ``digest`` is set.

    Attributes:
        url: without the part from ``@`` on, without a slash at its end.
        tag: a name that may move, such as ``latest``.
        digest: ``sha256:…``, which never moves.
    """

    url: str
    tag: str | None = None
    digest: str | None = None

    @property
    def scheme(self) -> str:
        """``s3``, ``gs``, ``az``, ``http``, ``https``, ``hf`` or ``file``."""
        return self.url.partition("://")[0]

    def __str__(self) -> str:
        picked = self.tag or self.digest
        return public_url(self.url) + (f"@{picked}" if picked else "")


def as_url(path: str | os.PathLike[str]) -> str | None:
    """A path that is a URL, as text; None for a place in the file system.

    ``pathlib`` turns ``//`` into ``/``. A URL that was made a Path gets its ``//`` back.
    """
    text = os.fspath(path)
    if _URL.match(text):
        return text
    folded = _ONE_SLASH.match(text)
    if isinstance(path, str) or folded is None:
        return None
    # The URL of a file has an empty host, and so a third slash.
    return f"{folded[1]}://{'/' if folded[1] == 'file' else ''}{text[folded.end() :]}"


def parse_reference(text: str) -> Reference:
    """Split a URL at its ``@``.

    Raises:
        ConfigError: it isn't a URL of a known kind, or the part after the ``@`` is neither a tag nor a digest.
    """
    match = _URL.match(text)
    scheme = match[1].lower() if match else ""
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigError(
            f"{public_url(text)!r} is not a URL that logitcache knows: it must begin with one of {known}. "
            "A directory as a store is file:///its/whole/path"
        )
    url, name = _split_at(scheme + text[len(scheme) :])
    if urlsplit(url).query or urlsplit(url).fragment:
        raise ConfigError(f"{public_url(url)}: a URL of a cache has no ? or # part; give credentials by environment")
    if scheme == "file" and urlsplit(url).netloc:
        raise ConfigError(f"{public_url(text)!r} names a host: the URL of a directory is file:///its/whole/path")
    url = url.rstrip("/")
    if not name:
        return Reference(url)
    if DIGEST.fullmatch(name):
        return Reference(url, digest=name)
    if _TAG.fullmatch(name):
        return Reference(url, tag=name)
    raise ConfigError(f"{name!r} after the @ is neither a tag (letters, digits, . _ -) nor sha256: and 64 hex digits")


def local_path(path: str | os.PathLike[str], advice: str) -> Path:
    """A place in the file system.

    Raises:
        ConfigError: it is a URL; the message ends with the advice.
    """
    if (url := as_url(path)) is not None:
        raise ConfigError(f"{public_url(url)} is a URL: {advice}")
    return Path(path)


def public_name(place: str | os.PathLike[str]) -> str:
    """A path, or a URL without user and password, for messages. Raises what :func:`parse_reference` raises."""
    url = as_url(place)
    return os.fspath(place) if url is None else str(parse_reference(url))


def public_url(url: str) -> str:
    """A URL without user, password and query, for messages, logs and files."""
    if not _URL.match(url):
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _split_at(url: str) -> tuple[str, str]:
    """Split at the @ that names a cache, which is in the path's last part. An @ before the host ends the password."""
    head, at, name = url.rpartition("@")
    if not at or "/" in name:
        return url, ""
    inside_host = "/" not in head.partition("://")[2]
    if inside_host and head.startswith(("http:", "https:")):
        return url, ""
    return head, name
