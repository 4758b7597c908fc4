"""A dump that is killed at any moment, and started again with any number of workers, gives the same cache.

Set LOGITCACHE_FULL_CRASH=1 for a hundred kills instead of a handful.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

import logitcache as lc
from logitcache.cache.reader import open_cache
from logitcache.errors import DumpInterruptedError, OutputExistsError

pytestmark = pytest.mark.crash

KILLS = 100 if os.environ.get("LOGITCACHE_FULL_CRASH") else 6
# Children fork from a process that has imported everything: a start costs milliseconds instead of seconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["logitcache.dump", "logitcache.engines", "transformers.models.llama.modeling_llama"])


def _work(settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    try:
        lc.dump(**settings)
    except DumpInterruptedError:
        os._exit(3)
    except OutputExistsError:
        os._exit(4)


def start(settings: dict[str, Any], rank: int = 0, world_size: int = 1) -> BaseProcess:
    process = CONTEXT.Process(target=_work, args=(settings | {"rank": rank, "world_size": world_size},))
    process.start()
    return process


def join(processes: list[BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join(120)
        assert process.exitcode is not None, "a worker hangs"
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def settings(tiny_llama_dir: Path, heldout_text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    text = tmp_path_factory.mktemp("text") / "address.txt"
    text.write_text(heldout_text.read_text()[:12_000])
    return {
        "teacher": str(tiny_llama_dir),
        "data": [str(text)],
        "top_k": 8,
        "max_length": 64,
        "batch_tokens": 128,
        "shard_tokens": 256,
        "min_mass": 0.0,
    }


@pytest.fixture(scope="module")
def undisturbed(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """Digest of an uninterrupted run, and the time of a run after the first one."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert join([start(settings | {"out": root / "warm"})]) == [0]
    began = time.monotonic()
    assert join([start(settings | {"out": root / "timed"})]) == [0]
    seconds = time.monotonic() - began
    assert lc.open(root / "warm").digest == lc.open(root / "timed").digest
    return lc.open(root / "timed").digest, seconds


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_and_started_again(
    settings: dict[str, Any], undisturbed: tuple[str, float], tmp_path: Path, number: int
) -> None:
    digest, seconds = undisturbed
    rng = random.Random(number)
    settings = settings | {"out": tmp_path / "out"}
    first = [start(settings, rank, 2) for rank in range(2)] if number % 2 else [start(settings)]
    time.sleep(rng.uniform(0.05, 1.0) * seconds)
    for process in first:
        process.kill()
    join(first)
    before = set((tmp_path / "out" / "shards").glob("*"))
    workers = rng.randint(1, 4)
    codes = join([start(settings, rank, workers) for rank in range(workers)])
    finished_before = workers == 1 and codes == [4]
    assert finished_before or codes == [0] * workers
    assert open_cache(tmp_path / "out").digest == digest
    assert before <= set((tmp_path / "out" / "shards").glob("*"))  # nothing finished was done again
    assert not (tmp_path / "out" / ".dump").exists()


def test_four_workers_at_once_two_of_one_rank(
    settings: dict[str, Any], undisturbed: tuple[str, float], tmp_path: Path
) -> None:
    settings = settings | {"out": tmp_path / "out"}
    assert join([start(settings, rank, 4) for rank in (0, 1, 1, 3)]) == [0] * 4
    assert open_cache(tmp_path / "out").digest == undisturbed[0]


def test_another_worker_takes_over_from_a_dead_one(
    settings: dict[str, Any], undisturbed: tuple[str, float], tmp_path: Path
) -> None:
    settings = settings | {"out": tmp_path / "out"}
    workers = [start(settings, rank, 3) for rank in range(3)]
    time.sleep(undisturbed[1] * 0.5)
    workers[1].kill()
    codes = join(workers)
    assert (codes[0], codes[2]) == (0, 0)
    assert open_cache(tmp_path / "out").digest == undisturbed[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_ends_at_the_next_shard(
    settings: dict[str, Any], undisturbed: tuple[str, float], tmp_path: Path, number: int
) -> None:
    out = tmp_path / "out"
    settings = settings | {"out": out}
    worker = start(settings)
    wait_for_shard(out, worker)
    assert worker.pid is not None
    os.kill(worker.pid, number)
    assert join([worker]) == [3]
    published = len(list((out / "shards").glob("*")))
    assert published == len(list((out / ".dump" / "done").rglob("*.json")))  # clean: nothing half done
    assert join([start(settings)]) == [0]
    assert open_cache(out).digest == undisturbed[0]


def test_second_signal_ends_at_once(settings: dict[str, Any], undisturbed: tuple[str, float], tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = settings | {"out": out}
    # One shard that would take a while, so that there is something to cut off.
    worker = start(settings | {"shard_tokens": 1_000_000, "data": settings["data"] * 30})
    wait_for(lambda: (out / ".dump" / "claims").exists(), worker)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)
    time.sleep(0.3)
    os.kill(worker.pid, signal.SIGTERM)
    assert join([worker]) == [-signal.SIGTERM]
    with pytest.raises(lc.LogitCacheError):
        open_cache(out)


def wait_for_shard(out: Path, worker: BaseProcess) -> None:
    wait_for(lambda: any((out / "shards").glob("*")), worker)


def wait_for(happened: Any, worker: BaseProcess) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert worker.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
