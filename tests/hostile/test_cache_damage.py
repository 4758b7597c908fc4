"""Every kind of damage to every file of a cache is found by reading and by ``verify``, and the file is named."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from cache_builder import build_cache

import logitcache as lc
from logitcache.cache.verify import verify_cache
from logitcache.errors import CacheFormatError, CacheNotFoundError, CorruptCacheError

pytestmark = pytest.mark.hostile
FLIPS = 10_000 if os.environ.get("LOGITCACHE_FULL_FUZZ") else 1_000
MANIFEST_PAIR = ("manifest.json", "manifest.sha256")


@pytest.fixture(params=["zarr", "arrow"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "cache"
    build_cache(path, request.param)
    return path


def files_of(root: Path) -> list[str]:
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    assert len(files) == 3 + 3 + 2
    return files


def read_all(root: Path) -> None:
    for item in lc.open(root):
        assert len(item.targets) == len(item.positions)


def assert_found(root: Path, *names: str) -> None:
    """Reading stops with an error that names one of the files, and verify names one of them too."""
    with pytest.raises((CorruptCacheError, CacheFormatError)) as caught:
        read_all(root)
    # manifest.json and its digest file are compared, so damage to one may be reported as damage to the other.
    accepted = set(names) | (set(MANIFEST_PAIR) if set(names) & set(MANIFEST_PAIR) else set())
    assert any(name in str(caught.value) for name in accepted), caught.value
    faults = verify_cache(root, workers=1).faults
    assert accepted & {fault.path for fault in faults}, faults


@contextmanager
def changed(path: Path, change: Callable[[bytes], bytes]) -> Iterator[None]:
    """Change a file while the context lasts."""
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    try:
        yield
    finally:
        path.write_bytes(whole)


def test_the_cache_is_correct_before_any_damage(root: Path) -> None:
    read_all(root)
    assert verify_cache(root, deep=True).ok


def test_single_bit_flips(root: Path) -> None:
    files = files_of(root)
    random = np.random.default_rng(0)
    for number in range(FLIPS):
        name = files[number % len(files)]
        place, bit = int(random.integers((root / name).stat().st_size)), int(random.integers(8))

        def flip(whole: bytes, place: int = place, bit: int = bit) -> bytes:
            return whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]

        with changed(root / name, flip):
            assert_found(root, name)
    read_all(root)


def test_every_file_truncated_or_lengthened(root: Path) -> None:
    for name in files_of(root):
        size = (root / name).stat().st_size
        for length in sorted({0, 1, size // 2, size - 1} - {size}):
            with changed(root / name, lambda whole, length=length: whole[:length]):
                assert_found(root, name)
        with changed(root / name, lambda whole: whole + b"\0"):
            assert_found(root, name)
        with changed(root / name, lambda whole: whole + whole):
            assert_found(root, name)


def test_every_file_deleted(root: Path) -> None:
    for name in files_of(root):
        whole = (root / name).read_bytes()
        (root / name).unlink()
        assert_found(root, name)
        (root / name).write_bytes(whole)


def test_every_directory_deleted_or_renamed(root: Path) -> None:
    for name in ("shards", "tokenizer"):
        (root / name).rename(root.parent / "away")
        assert_found(root, *(file for file in [f"{name}/{item.name}" for item in (root.parent / "away").iterdir()]))
        (root.parent / "away").rename(root / f"{name}2")
        with pytest.raises(CorruptCacheError, match=f"{name}2 is no part of the cache"):
            read_all(root)
        (root / f"{name}2").rename(root / name)


def test_every_file_duplicated(root: Path) -> None:
    for name in files_of(root):
        for place in (
            f"{name}.bak",
            f"copy-{Path(name).name}",
            f"shards/{Path(name).name}-2",
            f"tokenizer/{'0' * 9}.json",
        ):
            shutil.copy(root / name, root / place)
            assert_found(root, place)
            (root / place).unlink()


def test_every_file_renamed(root: Path) -> None:
    for name in files_of(root):
        other = Path(name).with_name(f"x{Path(name).name}").as_posix()
        (root / name).rename(root / other)
        assert_found(root, name, other)
        assert name in {fault.path for fault in verify_cache(root).faults}
        (root / other).rename(root / name)


def test_every_two_files_swapped(root: Path) -> None:
    for one, other in itertools.combinations(files_of(root), 2):
        first, second = (root / one).read_bytes(), (root / other).read_bytes()
        (root / one).write_bytes(second)
        (root / other).write_bytes(first)
        assert_found(root, one, other)
        (root / one).write_bytes(first)
        (root / other).write_bytes(second)


def test_files_of_another_cache_of_the_same_kind(root: Path, tmp_path: Path) -> None:
    build_cache(tmp_path / "other", lc.open(root).manifest.shard_format, positions="completion")
    for name in ("manifest.json", "manifest.sha256"):
        other = (tmp_path / "other" / name).read_bytes()
        with changed(root / name, lambda _, other=other: other):
            assert_found(root, name)


def test_verify_reports_every_fault(root: Path) -> None:
    shards = [entry.path for entry in lc.open(root).shards]
    (root / shards[0]).unlink()
    (root / shards[1]).write_bytes(b"x")
    (root / shards[2]).write_bytes((root / shards[2]).read_bytes()[:-1] + b"x")
    (root / "tokenizer" / "tokenizer.json").unlink()
    (root / "extra.txt").write_text("x")
    (root / "shards" / "extra").mkdir()
    (root / "tokenizer" / "extra.json").write_text("x")
    report = verify_cache(root)
    assert not report.ok
    assert {(fault.path, fault.kind) for fault in report.faults} == {
        (shards[0], "missing"),
        (shards[1], "altered"),
        (shards[2], "altered"),
        ("tokenizer/tokenizer.json", "missing"),
        ("extra.txt", "extra"),
        ("shards/extra", "extra"),
        ("tokenizer/extra.json", "extra"),
    }
    assert all(Path(fault.path).name in fault.message for fault in report.faults)


def test_shards_are_checked_even_without_their_table(root: Path) -> None:
    shards = [entry.path for entry in lc.open(root).shards]
    (root / "shards.arrow").unlink()
    (root / shards[1]).write_bytes((root / shards[1]).read_bytes()[:-1] + b"x")
    (root / "shards" / "notes.txt").write_text("x")
    assert {(fault.path, fault.kind) for fault in verify_cache(root).faults} == {
        ("shards.arrow", "missing"),
        (shards[1], "altered"),
        ("shards/notes.txt", "altered"),
    }


def test_an_unreadable_file_is_one_fault_among_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = lc.open(root).shards[1].path
    real_open = os.open

    def refuse(path: object, *rest: object, **more: object) -> int:
        if str(path).endswith(shard):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *rest, **more)  # type: ignore[arg-type]

    (root / "extra.txt").write_text("x")
    monkeypatch.setattr(os, "open", refuse)
    assert {(fault.path, fault.kind) for fault in verify_cache(root).faults} == {
        (shard, "unreadable"),
        ("extra.txt", "extra"),
    }


def test_left_scratch_is_a_fault_for_verify_but_not_for_reading(root: Path) -> None:
    (root / ".dump").mkdir()
    read_all(root)
    assert [(fault.path, fault.kind) for fault in verify_cache(root).faults] == [(".dump", "extra")]


def test_a_cache_without_its_manifest(root: Path) -> None:
    (root / "manifest.json").unlink()
    with pytest.raises(CorruptCacheError, match=r"manifest\.json is missing"):
        lc.open(root)
    (root / ".dump").mkdir()
    with pytest.raises(CacheNotFoundError, match="unfinished cache"):
        lc.open(root)


# Things that aren't plain files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link to a copy", "link to nothing", "link to zeros", "pipe", "directory", "loop"])
def test_a_file_that_is_not_a_regular_file(root: Path, tmp_path: Path, kind: str) -> None:
    for name in files_of(root):
        path, away = root / name, tmp_path / "away"
        path.rename(away)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        else:
            targets = {"link to a copy": away, "link to nothing": tmp_path / "nothing", "loop": path}
            path.symlink_to(targets.get(kind, Path("/dev/zero")))
        assert_found(root, name)
        assert not verify_cache(root, deep=True).ok
        if kind == "directory":
            path.rmdir()
        else:
            path.unlink()
        away.rename(path)
    read_all(root)


@pytest.mark.parametrize("name", ["shards", "tokenizer"])
def test_a_directory_that_is_a_link(root: Path, tmp_path: Path, name: str) -> None:
    (root / name).rename(tmp_path / "away")
    (root / name).symlink_to(tmp_path / "away")
    with pytest.raises(CorruptCacheError, match=f"{name} is a link"):
        read_all(root)
    assert name in {fault.path for fault in verify_cache(root).faults}
