"""A SeaweedFS server with a bucket on loopback, and cubes in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obstore.store import S3Store

from benchmarks import seaweed
from benchmarks.seaweed import BUCKET, KEY, SECRET, environment

#: Environment variable with the server's address, for processes that play cells.
SERVER = "MATRIX_S3_SERVER"


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """Start a server that keeps its data in a folder, for this process and those that it starts."""
    with seaweed.serving(folder) as url:
        os.environ |= {SERVER: url, **environment(url)}
        try:
            yield
        finally:
            os.environ.pop(SERVER, None)


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
        BUCKET,
        prefix=prefix,
        endpoint=known["AWS_ENDPOINT_URL"],
        region=known["AWS_REGION"],
        access_key_id=KEY,
        secret_access_key=SECRET,
        client_options={"allow_http": True},
    )
