"""Signatures: whoever holds a private key vouches for a cache's digest, and so for every byte of the cache.

Ed25519 from the package ``cryptography``. Keys and signatures are text files: a private key is PEM, a public key one
line ``logitcache-ed25519 <base64> <comment>``, a signature one line of base64 in ``signatures/``, named by its key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.errors import ConfigError, MissingDependencyError, OutputExistsError, SignatureError
from logitcache.utils.files import storage_error

SIGNATURES_DIR = "signatures"
TRUSTED_KEYS_VARIABLE = "LOGITCACHE_TRUSTED_KEYS"
_KIND = "logitcache-ed25519"
_PURPOSE = b"logitcache cache v1\n"


@dataclass(frozen=True)
class PublicKey:
    """One line of a file of trusted keys; ``name`` tells keys apart in file names and messages."""

    raw: bytes
    comment: str = ""

    @property
    def name(self) -> str:
        """16 hex digits."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def line(self) -> str:
        """The line."""
        return f"{_KIND} {base64.b64encode(self.raw).decode()} {self.comment}".rstrip()


def make_key(path: Path, comment: str = "") -> PublicKey:
    """Write a new private key to ``path``, readable by its owner only, and the public one to ``path`` + ``.pub``.

    Raises:
        OutputExistsError: a file is there.
        StorageError: the system refused.
    """
    serialization, ed25519 = _library()
    private = ed25519.Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = PublicKey(private.public_key().public_bytes_raw(), " ".join(comment.split()))
    for target, content, mode in ((path, pem, 0o600), (_public_path(path), f"{public.line()}\n".encode(), 0o644)):
        try:
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
        except FileExistsError:
            raise OutputExistsError(f"{target} is there already: keys are never overwritten") from None
        except OSError as error:
            raise storage_error("write", target, error) from error
    return public


def sign_digest(digest: str, key_file: Path) -> tuple[PublicKey, bytes]:
    """Sign a cache's digest.

    Returns:
        The public key, and the signature's line.

    Raises:
        ConfigError: the file holds no private Ed25519 key.
        StorageError: the system refused.
    """
    private = _read_private(key_file)
    signature = private.sign(_PURPOSE + digest.encode("ascii"))
    return PublicKey(private.public_key().public_bytes_raw()), base64.b64encode(signature) + b"\n"


def read_trusted(path: Path) -> list[PublicKey]:
    """The keys of a file, one a line; empty lines and lines from ``#`` on don't count.

    Raises:
        ConfigError: there is none, or a line isn't one.
        StorageError: the system refused.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a file of public keys") from error
    except OSError as error:
        raise storage_error("read", path, error) from error
    keys = [_parse_key(line, path) for text in lines if (line := text.partition("#")[0].strip())]
    if not keys:
        raise ConfigError(f"{path} holds no public key")
    return keys


def signature_path(digest: str, key: PublicKey) -> str:
    """Where a store keeps a signature."""
    return f"{SIGNATURES_DIR}/{digest.removeprefix('sha256:')}/{key.name}.sig"


def is_signed(digest: str, key: PublicKey, line: bytes) -> bool:
    """True if ``line`` is a signature of the digest by this key."""
    from cryptography.exceptions import InvalidSignature

    _, ed25519 = _library()
    try:
        signature = base64.b64decode(line.strip(), validate=True)
        ed25519.Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, _PURPOSE + digest.encode("ascii"))
    except (binascii.Error, ValueError, InvalidSignature):
        return False
    return True


def require_signed(
    digest: str, keys: Iterable[PublicKey], lines: Iterable[tuple[PublicKey, bytes]], where: str
) -> None:
    """Raise SignatureError unless one of the trusted keys signed a digest; ``lines`` holds what was found."""
    _library()
    found = list(lines)
    if any(is_signed(digest, key, line) for key, line in found):
        return
    names = ", ".join(key.comment or key.name for key in keys)
    state = "a signature that doesn't fit" if found else "no signature"
    raise SignatureError(f"{where} ({digest}) has {state} by a trusted key ({names}): don't use it unless you trust it")


def _public_path(path: Path) -> Path:
    return path.with_name(path.name + ".pub")


def _parse_key(line: str, path: Path) -> PublicKey:
    kind, _, rest = line.partition(" ")
    encoded, _, comment = rest.strip().partition(" ")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raw = b""
    if kind != _KIND or len(raw) != 32:
        raise ConfigError(f"{path}: {line[:60]!r} is not a public key; a line is `{_KIND} <base64> <comment>`")
    return PublicKey(raw, comment.strip())


def _read_private(path: Path) -> Any:
    serialization, ed25519 = _library()
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise storage_error("read", path, error) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} holds no private key in PEM form without a password") from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{path} holds another kind of key; `logitcache keygen` makes an Ed25519 key")
    return private


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise MissingDependencyError("signatures need cryptography: pip install 'logitcache[sign]'") from error
    return serialization, ed25519
