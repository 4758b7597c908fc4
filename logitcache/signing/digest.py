"""Signatures of a cache: the owner of a private key signs the cache's digest, and so every byte of the cache.

The signed text is the content of the cache's ``manifest.sha256``, so ``ssh-keygen -Y verify`` can check it too. A
signature is in ``signatures/``, and its file name is that of its key.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from logitcache.errors import SignatureError
from logitcache.format.manifest import line_of_digest
from logitcache.signing import sshsig
from logitcache.signing.keys import PublicKey, read_private

SIGNATURES_DIR = "signatures"


def signed_bytes(digest: str) -> bytes:
    """The signed text: the content of ``manifest.sha256``."""
    return line_of_digest(digest)


def sign_digest(digest: str, key_file: Path) -> tuple[PublicKey, bytes]:
    """Sign a cache's digest.

    Returns:
        The public key, and the signature as text.

    Raises:
        ConfigError: the file holds no private Ed25519 key.
        StorageError: the system refused.
    """
    private = read_private(key_file)
    return PublicKey(private.public_key().public_bytes_raw()), sshsig.sign(private, signed_bytes(digest))


def signature_path(digest: str, key: PublicKey) -> str:
    """The path of a signature in a store."""
    return f"{SIGNATURES_DIR}/{digest.removeprefix('sha256:')}/{key.name}.sig"


def is_signed(digest: str, key: PublicKey, signature: bytes) -> bool:
    """True if this is a signature of the digest by this key."""
    return sshsig.verify(key.raw, signed_bytes(digest), signature)


def require_signed(
    digest: str, keys: Iterable[PublicKey], signatures: Iterable[tuple[PublicKey, bytes]], where: str
) -> None:
    """Check that one of the trusted keys signed a digest; ``signatures`` are those that were found.

    Raises:
        SignatureError: none did.
        MissingDependencyError: ``cryptography`` isn't installed.
    """
    sshsig.load_library()
    found = list(signatures)
    if any(is_signed(digest, key, signature) for key, signature in found):
        return
    names = ", ".join(key.comment or key.name for key in keys)
    state = "a signature that doesn't fit" if found else "no signature"
    raise SignatureError(f"{where} ({digest}) has {state} by a trusted key ({names}): don't use it unless you trust it")
