"""Keys and signatures equal OpenSSH's: files that ssh-keygen made, and ssh-keygen itself if it is installed."""

from __future__ import annotations

import base64
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from share_tools import make_cache

import logitcache as lc
from logitcache.cache.signatures import check_trusted, write_signature
from logitcache.errors import ConfigError, SignatureError
from logitcache.share.signing import sign
from logitcache.signing.digest import is_signed, signed_bytes
from logitcache.signing.keys import make_key, read_private, read_trusted

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "signing"
MESSAGE = (FIXTURES / "manifest.sha256").read_bytes()
DIGEST = f"sha256:{MESSAGE[:64].decode()}"
LINE = (FIXTURES / "key.pub").read_text().strip()
KEY = read_trusted(FIXTURES / "key.pub")[0]
PRIVATE = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def ssh_keygen() -> str:
    found = shutil.which("ssh-keygen")
    if found is None:
        pytest.skip("ssh-keygen isn't installed")
    return found


def test_a_public_key_of_ssh_keygen() -> None:
    assert KEY.comment == "team of the fixture"
    assert KEY.line() == LINE
    assert KEY.fingerprint == "SHA256:yU0vxQq3OLcJ05Ex/nkVV1CL6NIi07glZxRp+m2G9hU"  # as ssh-keygen -l prints it


@pytest.mark.parametrize("name", ["sha512.sig", "sha256.sig"])
def test_a_signature_of_ssh_keygen(name: str) -> None:
    signature = (FIXTURES / name).read_bytes()
    assert signed_bytes(DIGEST) == MESSAGE
    assert is_signed(DIGEST, KEY, signature)
    assert not is_signed("sha256:" + "0" * 64, KEY, signature)


def test_a_signature_for_another_purpose_does_not_count() -> None:
    assert not is_signed(DIGEST, KEY, (FIXTURES / "other-namespace.sig").read_bytes())


def test_our_signature_is_that_of_ssh_keygen(tmp_path: Path, ssh_keygen: str) -> None:
    """Ed25519 has no randomness: the same key and message give the same file, byte by byte."""
    make_cache(tmp_path / "a", range(2))
    make_key(tmp_path / "key", "the team")
    name = sign(tmp_path / "a", tmp_path / "key").name
    signed = (tmp_path / "a" / "manifest.sha256").read_bytes()
    command = [ssh_keygen, "-q", "-Y", "sign", "-f", str(tmp_path / "key"), "-n", "logitcache"]
    theirs = subprocess.run(command, input=signed, capture_output=True, check=True).stdout
    assert (tmp_path / "a" / "signatures" / f"{name}.sig").read_bytes() == theirs


def test_ssh_keygen_verifies_our_signature(tmp_path: Path, ssh_keygen: str) -> None:
    make_cache(tmp_path / "a", range(2))
    key = make_key(tmp_path / "key", "the team")
    sign(tmp_path / "a", tmp_path / "key")
    (tmp_path / "allowed_signers").write_text(f'team namespaces="logitcache" {key.line()}\n')
    signature = tmp_path / "a" / "signatures" / f"{key.name}.sig"
    command = [ssh_keygen, "-Y", "verify", "-f", str(tmp_path / "allowed_signers"), "-I", "team", "-n", "logitcache"]
    command += ["-s", str(signature)]
    signed = (tmp_path / "a" / "manifest.sha256").read_bytes()
    shown = subprocess.run(command, input=signed, capture_output=True, check=True).stdout.decode()
    assert key.fingerprint in shown
    assert subprocess.run(command, input=signed + b"x", capture_output=True, check=False).returncode != 0
    check_trusted(lc.open(tmp_path / "a"), tmp_path / "allowed_signers")


def test_a_key_pair_of_ssh_keygen_signs(tmp_path: Path, ssh_keygen: str) -> None:
    make_cache(tmp_path / "a", range(2))
    command = [ssh_keygen, "-q", "-t", "ed25519", "-N", "", "-C", "me@here", "-f", str(tmp_path / "id_ed25519")]
    subprocess.run(command, check=True)
    assert sign(tmp_path / "a", tmp_path / "id_ed25519").line() in (tmp_path / "id_ed25519.pub").read_text()
    check_trusted(lc.open(tmp_path / "a"), tmp_path / "id_ed25519.pub")
    command = [ssh_keygen, "-l", "-f", str(tmp_path / "id_ed25519")]
    shown = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert read_trusted(tmp_path / "id_ed25519.pub")[0].fingerprint in shown


def test_a_key_with_a_password_is_refused(tmp_path: Path, ssh_keygen: str) -> None:
    command = [ssh_keygen, "-q", "-t", "ed25519", "-N", "secret", "-f", str(tmp_path / "key")]
    subprocess.run(command, check=True)
    with pytest.raises(ConfigError, match="has a password"):
        read_private(tmp_path / "key")


def test_the_private_key_is_the_owners_alone(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key", " the \n team ")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert (tmp_path / "key").read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert (tmp_path / "key.pub").read_text() == f"{key.line()}\n"
    assert key.comment == "the team"
    assert read_private(tmp_path / "key").public_key().public_bytes_raw() == key.raw


def test_other_private_keys_are_refused(tmp_path: Path) -> None:
    forms = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    (tmp_path / "curve").write_bytes(ec.generate_private_key(ec.SECP256R1()).private_bytes(*forms))
    with pytest.raises(ConfigError, match="another kind of key"):
        read_private(tmp_path / "curve")
    pkcs8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "pkcs8").write_bytes(PRIVATE.private_bytes(*pkcs8))
    with pytest.raises(ConfigError, match="no private key in OpenSSH's form"):
        read_private(tmp_path / "pkcs8")


@pytest.mark.parametrize(
    ("line", "comment"),
    [
        (LINE, "team of the fixture"),
        (f"  {LINE}  ", "team of the fixture"),
        (" ".join(LINE.split()[:2]), ""),
        (f"alice@example.com,bob@example.com {' '.join(LINE.split()[:2])}", "alice@example.com,bob@example.com"),
        (f'team namespaces="git,logit*" {LINE}', "team of the fixture"),
        (f'namespaces="logitcache" {LINE}', "team of the fixture"),
        (f"no-pty,no-agent-forwarding {LINE}", "team of the fixture"),
        (f"# a comment\n\n{LINE}", "team of the fixture"),
        (f'team namespaces="git" {LINE}\n{LINE} again', "team of the fixture again"),
    ],
)
def test_lines_of_trusted_keys(tmp_path: Path, line: str, comment: str) -> None:
    (tmp_path / "keys").write_text(f"{line}\n")
    keys = read_trusted(tmp_path / "keys")
    assert [(key.raw, key.comment) for key in keys] == [(KEY.raw, comment)]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("", "holds no public key"),
        (f'team namespaces="git" {LINE}', "holds no public key"),
        (f'team namespaces="*,!logitcache" {LINE}', "holds no public key"),
        (f"team cert-authority {LINE}", "cert-authority of key"),
        (f'team valid-before="20200101" {LINE}', "valid-before of key"),
        ("ssh-ed25519", "is not an Ed25519 public key"),
        ("ssh-ed25519 AAAA", "is not an Ed25519 public key"),
        (LINE.replace("ssh-ed25519", "ssh-rsa"), "is not an Ed25519 public key"),
        (LINE.replace("AAAAC3", "AAAAC4"), "is not an Ed25519 public key"),
        (f"a b c {LINE}", "is not an Ed25519 public key"),
    ],
)
def test_other_lines_are_refused(tmp_path: Path, line: str, match: str) -> None:
    (tmp_path / "keys").write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=match):
        read_trusted(tmp_path / "keys")


SIGNATURE = (FIXTURES / "sha512.sig").read_bytes()
ENVELOPE = base64.b64decode(b"".join(SIGNATURE.splitlines()[1:-1]))


def armored(envelope: bytes) -> bytes:
    lines = SIGNATURE.splitlines()
    return b"\n".join([lines[0], base64.b64encode(envelope), lines[-1], b""])


def test_the_envelope_may_have_lines_of_any_length() -> None:
    assert is_signed(DIGEST, KEY, armored(ENVELOPE))


@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_a_changed_signature_does_not_fit(at: int, change: int) -> None:
    changed = bytearray(ENVELOPE)
    changed[at] ^= change
    assert not is_signed(DIGEST, KEY, armored(bytes(changed)))


@given(st.integers(0, len(ENVELOPE) - 1) | st.binary(min_size=1, max_size=300))
def test_a_cut_or_longer_signature_does_not_fit(what: int | bytes) -> None:
    assert not is_signed(DIGEST, KEY, armored(ENVELOPE[:what] if isinstance(what, int) else ENVELOPE + what))


@given(st.binary(max_size=300))
def test_other_bytes_are_not_a_signature(content: bytes) -> None:
    assert not is_signed(DIGEST, KEY, content)


def test_a_signature_that_is_too_large_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path / "a", range(2))
    write_signature(tmp_path / "a", f"{KEY.name}.sig", SIGNATURE)
    with pytest.raises(SignatureError, match="doesn't fit"):
        check_trusted(lc.open(tmp_path / "a"), FIXTURES / "key.pub")
    write_signature(tmp_path / "a", f"{KEY.name}.sig", SIGNATURE + b"\n" * 5000)
    with pytest.raises(lc.LogitCacheError, match="at most"):
        check_trusted(lc.open(tmp_path / "a"), FIXTURES / "key.pub")
