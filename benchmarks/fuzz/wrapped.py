"""Damaged files and archives on disk, through `pipeline.sources.archive`: gzip, zip, zip in zip."""

from __future__ import annotations

import gzip
import io
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

from benchmarks.fuzz.judge import Finding
from benchmarks.fuzz.mutate import BYTE_CHANGES
from pipeline.sources.archive import RawFile, contents, members

#: What is packed.
CONTENT, FILE = b"time,station,lon,lat,pm2p5\n2019-12-10T03:00,a:1,10,50,7\n" * 3, "t.csv"


def make(rng: Random) -> tuple[str, bytes]:
    """Name and bytes of one packed, and mostly damaged, file."""
    return wrapped(CONTENT, FILE, rng)


def read(name: str, data: bytes) -> Iterator[RawFile]:
    """Read the files behind a file on disk."""
    path = _folder() / name
    path.write_bytes(data)
    for _member, raw in contents(members(path, (".csv", ".csv.gz"))):
        yield raw


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def judge(data: bytes, found: list[RawFile]) -> list[Finding]:
    """Whatever comes out of an archive has a checksum, and so is what went in, byte for byte."""
    right = {CONTENT, CONTENT[:50], data, _gunzipped(data), _gunzipped(CONTENT[:50])}
    wrong = [raw for raw in found if raw.data not in right]
    return [Finding("wrong value", f"{raw.label} holds {raw.data[:60]!r}") for raw in wrong]


def _gunzipped(data: bytes) -> bytes | None:
    """All members of a gzip stream, by zlib; None where it is none."""
    out = b""
    try:
        while data.strip(b"\0"):
            one = zlib.decompressobj(31)
            out += one.decompress(data)
            if not one.eof:
                return None
            data = one.unused_data
    except zlib.error:
        return None
    return out


#: Names that members of a zip should not have.
ODD_NAMES = (
    "../x.csv",
    "a/b.csv",
    "__MACOSX/._x.csv",
    "dir/",
    "\\x.csv",
    "x\n.csv",
    "é.csv",
    f"a/{FILE}",
    FILE,
    "b.csv.gz",
)


def wrapped(data: bytes, file: str, rng: Random) -> tuple[str, bytes]:
    """Name and bytes of a file that holds `data`, packed in one of the ways archives come in, at times damaged."""
    how = rng.choice(("plain", "gz", "zip", "zip", "stored", "nested", "two", "bz2", "lzma", "garbage"))
    name, packed = _packed(how, data, file, rng)
    for _ in range(rng.choice((0, 1, 1, 2))):
        packed = rng.choice(BYTE_CHANGES)(rng, packed, [packed])
    return name, packed


def _packed(how: str, data: bytes, file: str, rng: Random) -> tuple[str, bytes]:
    if how in ("plain", "garbage"):
        return file, data
    if how == "gz":
        return f"{file.removesuffix('.gz')}.gz", gzip.compress(data, 1, mtime=0)
    kind = {"bz2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA, "stored": zipfile.ZIP_STORED}
    inner = _zip({file: data}, kind.get(how, zipfile.ZIP_DEFLATED))
    if how == "nested":
        inner = _zip({"inner.zip": inner, "readme.txt": b"x"}, zipfile.ZIP_DEFLATED)
    if how == "two":
        odd = rng.choice(ODD_NAMES)
        inner = _zip({file: data, odd: data[:50]}, zipfile.ZIP_DEFLATED)
    return "archive.zip", inner


def _zip(members: dict[str, bytes], kind: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, kind)
    return out.getvalue()
