"""Ctrl-C during a transfer: the command ends at once and says so, and the next run continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy
from s3_server import S3Server
from share_tools import files_of, make_cache, s3

import logitcache as lc
from logitcache.cli import main
from logitcache.errors import CacheNotFoundError
from logitcache.share.pulling import pull
from logitcache.share.pushing import push

pytestmark = pytest.mark.integration
__all__ = ["s3"]


@pytest.mark.parametrize(
    ("command", "again"),
    [
        (["train", "--cache", "cache"], "again with --resume to go on"),
        (["train", "--resume"], "again to go on"),
        (["convert", "cache"], "again to go on"),
    ],
)
def test_commands_that_continue_after_an_interruption(
    command: list[str], again: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only training needs a flag to continue."""

    def pressed(args: list[str]) -> None:
        assert args == command
        raise SystemExit(130)

    monkeypatch.setattr(main, "app", pressed)
    monkeypatch.setattr(sys, "argv", ["logitcache", *command])
    with pytest.raises(SystemExit):
        main.run()
    assert f"interrupted: run the same command {again}" in " ".join(capsys.readouterr().err.split())


_HANDED_ELSEWHERE = """
import os, signal, threading, time
from logitcache.utils.parallel import run_parallel

def action(number):
    if number == 0:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    time.sleep(60)

try:
    run_parallel(range(2), action, 2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
os._exit(0)
"""


def heed_interrupts() -> None:
    """Runs in the new process, because a process that was started in the background may ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_signal_that_reaches_another_thread_ends_the_work_too() -> None:
    """The system chooses the thread that gets the signal; the waiting main thread may not wake up."""
    done = subprocess.run(
        [sys.executable, "-c", _HANDED_ELSEWHERE],
        capture_output=True,
        text=True,
        timeout=40,
        preexec_fn=heed_interrupts,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_interrupted_pull(s3: S3Server, tmp_path: Path) -> None:
    """Through a proxy that sends bodies so slowly that each shard would take most of a minute."""
    make_cache(tmp_path / "cache", range(12))
    url = s3.place()
    push(tmp_path / "cache", url)
    pinned = f"{url}@{lc.open(url).digest}"
    command = [str(Path(sys.executable).with_name("logitcache")), "pull", pinned, str(tmp_path / "copy")]
    with FaultyProxy(s3.s3, 1.0, ("drip",)) as proxy:
        started = subprocess.Popen(
            command,
            env={**os.environ, **s3.environment(proxy.port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=heed_interrupts,
        )
        while not proxy.fetched:
            assert started.poll() is None
            time.sleep(0.05)
        pressed = time.monotonic()
        started.send_signal(signal.SIGINT)
        stdout, stderr = started.communicate(timeout=30)
        assert time.monotonic() - pressed < 10  # not the minute that the shards need
    assert (started.returncode, stdout) == (130, b"")
    assert stderr == b"interrupted: run the same command again to go on\n"
    with pytest.raises(CacheNotFoundError, match="unfinished"):
        lc.open(tmp_path / "copy")
    pull(pinned, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(tmp_path / "cache")
