"""SSH signatures: what ``ssh-keygen -Y sign`` writes and ``ssh-keygen -Y verify`` reads, with Ed25519 keys.

The layout is OpenSSH's PROTOCOL.sshsig. A string is its length as a 32-bit big-endian number, then its bytes:

    envelope: "SSHSIG", version 1 (32 bits), strings: public key, namespace, reserved, name of the hash, signature
    signed:   "SSHSIG", strings: namespace, reserved, name of the hash, hash of the message
"""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Any

from logitcache.errors import MissingDependencyError

KEY_TYPE = "ssh-ed25519"
#: So that a signature made for another purpose, such as a Git commit, isn't valid here.
NAMESPACE = "logitcache"
_MAGIC = b"SSHSIG"
_VERSION = 1
_HASHES = {b"sha256": hashlib.sha256, b"sha512": hashlib.sha512}
_BEGIN, _END = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----"
_COLUMNS = 70


def load_library() -> tuple[Any, Any]:
    """The modules ``serialization`` and ``ed25519`` of the package ``cryptography``.

    Raises:
        MissingDependencyError: it isn't installed.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise MissingDependencyError("signatures need cryptography: pip install 'logitcache[sign]'") from error
    return serialization, ed25519


def key_blob(raw: bytes) -> bytes:
    """A public key of 32 bytes in SSH's form, which the line of a public key holds as base64."""
    return _join(KEY_TYPE.encode(), raw)


def key_from_blob(blob: bytes) -> bytes:
    """The 32 bytes of a public key.

    Raises:
        ValueError: it isn't an Ed25519 key.
    """
    kind, raw = _split(blob, 2)
    if kind != KEY_TYPE.encode() or len(raw) != 32:
        raise ValueError("not an Ed25519 key")
    return raw


def sign(private: Any, message: bytes) -> bytes:
    """Sign a message with an ``Ed25519PrivateKey``; returns the signature as text."""
    algorithm = b"sha512"
    signature = private.sign(_signed(NAMESPACE.encode(), b"", algorithm, message))
    fields = (
        key_blob(private.public_key().public_bytes_raw()),
        NAMESPACE.encode(),
        b"",
        algorithm,
        _join(KEY_TYPE.encode(), signature),
    )
    text = base64.b64encode(_MAGIC + struct.pack(">I", _VERSION) + _join(*fields))
    lines = [text[start : start + _COLUMNS] for start in range(0, len(text), _COLUMNS)]
    return b"\n".join([_BEGIN, *lines, _END, b""])


def verify(raw: bytes, message: bytes, signature: bytes) -> bool:
    """True if ``signature`` is a signature of the message, for logitcache, by the public key ``raw`` (32 bytes)."""
    from cryptography.exceptions import InvalidSignature

    _, ed25519 = load_library()
    try:
        envelope = _read_envelope(signature)
        public, namespace, reserved, algorithm, signed = _split(envelope, 5)
        kind, value = _split(signed, 2)
    except ValueError:
        return False  # not a signature at all
    if (public, namespace, kind) != (key_blob(raw), NAMESPACE.encode(), KEY_TYPE.encode()) or algorithm not in _HASHES:
        return False
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(raw).verify(value, _signed(namespace, reserved, algorithm, message))
    except InvalidSignature:
        return False
    return True


def _signed(namespace: bytes, reserved: bytes, algorithm: bytes, message: bytes) -> bytes:
    return _MAGIC + _join(namespace, reserved, algorithm, _HASHES[algorithm](message).digest())


def _read_envelope(signature: bytes) -> bytes:
    """The strings of a signature's envelope. Raises ValueError if it is not a signature."""
    lines = signature.strip().splitlines()
    if len(lines) < 3 or lines[0] != _BEGIN or lines[-1] != _END:
        raise ValueError("not an SSH signature")
    envelope = base64.b64decode(b"".join(lines[1:-1]), validate=True)
    head = _MAGIC + struct.pack(">I", _VERSION)
    if not envelope.startswith(head):
        raise ValueError("not an SSH signature of version 1")
    return envelope[len(head) :]


def _join(*strings: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(string)) + string for string in strings)


def _split(data: bytes, count: int) -> list[bytes]:
    """Split data into exactly ``count`` strings. Raises ValueError if there are more or fewer, or one is cut off."""
    strings = []
    for _ in range(count):
        length = int.from_bytes(data[:4], "big")
        if len(data) < 4 + length:
            raise ValueError("cut off")
        strings.append(data[4 : 4 + length])
        data = data[4 + length :]
    if data:
        raise ValueError("longer than it should be")
    return strings
