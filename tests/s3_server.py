"""A real S3 server, SeaweedFS, on free ports of this machine; started once a test run, stopped at its end."""

from __future__ import annotations

import atexit
import functools
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "test-access", "test-secret-9f2c"
BUCKET = "caches"
_START_SECONDS = 60


@dataclass(frozen=True)
class S3Server:
    """Where it listens; ``filer`` serves the same objects by plain HTTP under ``/buckets/caches``."""

    s3: int
    filer: int

    def environment(self, port: int | None = None) -> dict[str, str]:
        """What a client needs; ``port`` is that of a proxy in between."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.s3}",
            "AWS_REGION": "us-east-1",
        }

    def place(self) -> str:
        """A URL that wasn't used before."""
        return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"

    def http(self, url: str) -> str:
        """The same place by plain HTTP."""
        return url.replace("s3://", f"http://127.0.0.1:{self.filer}/buckets/")


@functools.cache
def start_s3() -> S3Server:
    """The server; the first call starts it."""
    ports = _free_ports(9)
    directory = Path(tempfile.mkdtemp(prefix="logitcache-s3-"))
    account = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (directory / "s3.json").write_text(json.dumps({"identities": [account]}))
    (directory / "data").mkdir()
    names = ("s3", "filer", "master", "volume")
    numbers = [f"-{name}.port={port}" for name, port in zip(names, ports, strict=False)]
    numbers += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[4:], strict=False)]
    command = [
        str(Path(sys.executable).with_name("weed")), "server", "-s3", f"-dir={directory / 'data'}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={directory / 's3.json'}", *numbers,
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=256", "-volume.max=40",
        "-volume.preStopSeconds=0",
    ]  # fmt: skip
    log = (directory / "log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    atexit.register(_stop, process, directory)
    server = S3Server(ports[0], ports[1])
    _wait(server, process, directory / "log")
    return server


def _wait(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", server.filer, timeout=5)
            connection.request("POST", f"/buckets/{BUCKET}/")
            made = connection.getresponse().status in (200, 201, 409)
            with socket.create_connection(("127.0.0.1", server.s3), timeout=5):
                if made and _answers(server):
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _answers(server: S3Server) -> bool:
    """True once objects can be written: the volume server needs a moment after the ports are open."""
    connection = http.client.HTTPConnection("127.0.0.1", server.filer, timeout=5)
    connection.request("PUT", f"/buckets/{BUCKET}/ready", body=b"x" * 4096)
    return connection.getresponse().status in (200, 201, 409)


def _stop(process: subprocess.Popen[bytes], directory: Path) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    shutil.rmtree(directory, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
