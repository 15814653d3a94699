"""Looks for texts in whatever a run leaves: every byte, what is packed in it, and the forms a text may take."""

from __future__ import annotations

import gzip
import html
import io
import json
import re
import sqlite3
import zipfile
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote, quote_plus

import netCDF4
import pyarrow as pa
from PIL import Image

#: What a zstd frame begins with, and a data address in a page.
_ZSTD, _EMBEDDED = b"\x28\xb5\x2f\xfd", re.compile(rb"base64,([A-Za-z0-9+/=]{16,})")


def forms(secret: str) -> set[bytes]:
    """How a text may be written: plain, in an address, in JSON or HTML, as hexadecimal digits, in base64 anywhere."""
    raw = secret.encode()
    written = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), html.escape(secret), raw.hex()}
    written |= {json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    # Three bytes make four letters; those at both ends depend on what stands beside the text.
    shifted = {b64encode(b"\0" * n + raw).decode()[(0, 2, 3)[n] :].rstrip("=")[:-1] for n in range(3)}
    alike = {one.replace("+", "-").replace("/", "_") for one in shifted}
    return {one.encode() for one in written | shifted | alike}


def leaks(place: Path, secrets: Mapping[str, str]) -> list[str]:
    """Files of a folder (or one file) that hold a secret, each with its name, sorted."""
    wanted = {name: forms(secret) for name, secret in secrets.items()}
    files = [place] if place.is_file() else [path for path in sorted(place.rglob("*")) if path.is_file()]
    return sorted({f"{path}: {name}" for path in files for view in views(path) for name in _held(view, wanted)})


def _held(view: bytes, wanted: Mapping[str, set[bytes]]) -> Iterator[str]:
    for name, written in wanted.items():
        if any(one in view for one in written):
            yield name


def views(path: Path) -> Iterator[bytes]:
    """The bytes of a file (its name, too), and whatever they are of, unpacked."""
    raw = path.read_bytes()
    yield str(path).encode()
    yield from unpacked(raw)
    if raw.startswith((b"\x89HDF", b"CDF")):
        yield _attributes(path)
    if raw.startswith(b"SQLite format 3"):
        yield _rows(path)
    if raw.startswith(b"\x89PNG"):
        with Image.open(path) as picture:
            yield repr(picture.info).encode()


def unpacked(raw: bytes) -> Iterator[bytes]:
    """Bytes, and the members of archives, gzip and zstd frames and embedded files in them."""
    yield raw
    yield raw.replace(b"\\n", b"").replace(b"\n", b"")  # base64 comes in lines
    if raw.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from unpacked(archive.read(name))
    if raw.startswith(b"\x1f\x8b"):
        yield from unpacked(gzip.decompress(raw))
    for found in _EMBEDDED.finditer(raw):
        yield from unpacked(b64decode(found[1]))
    yield from _frames(raw)


def _frames(raw: bytes) -> Iterator[bytes]:
    """Whatever zstd frames hold, as those of Icechunk's metadata and of chunks."""
    at = raw.find(_ZSTD)
    while at >= 0:
        yield _frame(raw[at:])
        at = raw.find(_ZSTD, at + 1)


def _frame(raw: bytes) -> bytes:
    """As much as can be unpacked: other bytes may follow the frame, and it may be none after all."""
    parts: list[bytes] = []
    with pa.CompressedInputStream(pa.BufferReader(raw), "zstd") as stream, suppress(OSError):
        while part := stream.read(1 << 16):
            parts.append(part)
    return b"".join(parts)


def _attributes(path: Path) -> bytes:
    with netCDF4.Dataset(path) as data:
        return "".join(f"{one.__dict__}" for one in (data, *data.variables.values())).encode()


def _rows(path: Path) -> bytes:
    """All rows of a database, those of its journal, too: long values lie in pieces in the file."""
    with closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        return "\n".join(repr(row) for name in tables for row in database.execute(f'select * from "{name}"')).encode()
