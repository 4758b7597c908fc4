"""Ed25519 keys in OpenSSH's file formats: private keys, public keys, and files of trusted keys."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from logitcache.errors import ConfigError, OutputExistsError
from logitcache.signing.sshsig import KEY_TYPE, NAMESPACE, key_blob, key_from_blob, load_library
from logitcache.utils.files import storage_error

TRUSTED_KEYS_VARIABLE = "LOGITCACHE_TRUSTED_KEYS"
#: A field of a line; text in double quotes may hold spaces.
_FIELD = re.compile(r'(?:[^\s"]|"[^"]*")+')
_OPTION = re.compile(r'(?:[^,"]|"[^"]*")+')


@dataclass(frozen=True)
class PublicKey:
    """One line of a file of trusted keys.

    Attributes:
        raw: the 32 bytes of an Ed25519 key.
        comment: whose key it is, for people.
    """

    raw: bytes
    comment: str = ""

    @property
    def name(self) -> str:
        """16 hex digits of the key's SHA-256, for file names."""
        return self._digest.hex()[:16]

    @property
    def fingerprint(self) -> str:
        """``SHA256:…``, as ``ssh-keygen -l`` shows it."""
        return f"SHA256:{base64.b64encode(self._digest).decode().rstrip('=')}"

    @property
    def _digest(self) -> bytes:
        return hashlib.sha256(key_blob(self.raw)).digest()

    def line(self) -> str:
        """``ssh-ed25519 <base64> <comment>``."""
        return f"{KEY_TYPE} {base64.b64encode(key_blob(self.raw)).decode()} {self.comment}".rstrip()


def make_key(path: Path, comment: str = "") -> PublicKey:
    """Write a new private key to ``path``, readable by its owner only, and the public key to ``path`` + ``.pub``.

    Raises:
        OutputExistsError: a file is there already.
        StorageError: the system refused.
    """
    serialization, ed25519 = load_library()
    private = ed25519.Ed25519PrivateKey.generate()
    content = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = PublicKey(private.public_key().public_bytes_raw(), " ".join(comment.split()))
    public_path = path.with_name(path.name + ".pub")
    for target, text, mode in ((path, content, 0o600), (public_path, f"{public.line()}\n".encode(), 0o644)):
        try:
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(text)
        except FileExistsError:
            raise OutputExistsError(f"{target} is there already: keys are never overwritten") from None
        except OSError as error:
            raise storage_error("write", target, error) from error
    return public


def read_private(path: Path) -> Any:
    """The ``Ed25519PrivateKey`` of a file.

    Raises:
        ConfigError: the file holds no private Ed25519 key in OpenSSH's form, or one with a password.
        StorageError: the system refused.
    """
    serialization, ed25519 = load_library()
    from cryptography.exceptions import UnsupportedAlgorithm

    advice = "`logitcache keygen` makes an Ed25519 key without a password"
    try:
        private = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise storage_error("read", path, error) from error
    except TypeError as error:
        raise ConfigError(f"the key in {path} has a password, which can't be asked for here: {advice}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} holds no private key in OpenSSH's form: {advice}") from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{path} holds another kind of key: {advice}")
    return private


def read_trusted(path: Path) -> list[PublicKey]:
    """The keys of a file, one per line, as in ``.pub`` files, ``allowed_signers`` or ``authorized_keys``.

    Empty lines, lines that begin with ``#``, and keys whose option ``namespaces`` lacks logitcache are ignored.

    Raises:
        ConfigError: the file has no key, or a line isn't a key.
        StorageError: the system refused.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a file of public keys") from error
    except OSError as error:
        raise storage_error("read", path, error) from error
    lines = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    keys = [key for line in lines if (key := _parse_key(line, path)) is not None]
    if not keys:
        raise ConfigError(f"{path} holds no public key")
    return keys


def _parse_key(line: str, path: Path) -> PublicKey | None:
    """The key of a line; None if the line doesn't allow it to sign caches."""
    fields = _FIELD.findall(line)
    at = fields.index(KEY_TYPE) if KEY_TYPE in fields[:3] else len(fields)
    try:
        raw = key_from_blob(base64.b64decode(fields[at + 1], validate=True))
    except (IndexError, binascii.Error, ValueError) as error:
        raise ConfigError(
            f"{path}: {line[:60]!r} is not an Ed25519 public key; a line is `{KEY_TYPE} <base64> <comment>`"
        ) from error
    who = fields[0] if at else ""
    key = PublicKey(raw, " ".join(fields[at + 2 :]) or who)
    allowed = True
    for option in (option for field in fields[:at] for option in _OPTION.findall(field)):
        name, _, value = option.partition("=")
        if name.lower() == "namespaces":
            allowed = _allows(value.strip('"'))
        elif value or name.lower() == "cert-authority":
            raise ConfigError(f"{path}: the option {name} of key {key.comment!r} is not understood: leave it out")
    return key if allowed else None


def _allows(namespaces: str) -> bool:
    """True if a list of patterns, as OpenSSH reads them, holds logitcache."""
    patterns = namespaces.split(",")
    refused = any(pattern.startswith("!") and fnmatchcase(NAMESPACE, pattern[1:]) for pattern in patterns)
    return not refused and any(fnmatchcase(NAMESPACE, pattern) for pattern in patterns)
