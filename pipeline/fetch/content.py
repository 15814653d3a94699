"""Whether a file is whole, by what it holds: compressed files open to the end, text ends with a whole line."""

from __future__ import annotations

import csv
import gzip
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_CHUNK = 1 << 20


def problem(path: Path, name: str) -> str | None:
    """Say what is wrong with the bytes at `path` as a file called `name`; None where nothing is."""
    if not path.stat().st_size:
        return "an empty file"
    return _CHECKS.get(Path(name).suffix.lower(), _text)(path)


def is_cut(path: Path, name: str) -> bool:
    """Tell whether a text file's last line has fewer fields than its first: it ends in the middle of a line."""
    if Path(name).suffix.lower() in _CHECKS:
        return False
    first, last = _ends(path)
    return _fields(last) < _fields(first)


def _gzip(path: Path) -> str | None:
    try:
        with gzip.open(path) as file:
            while file.read(_CHUNK):
                pass
    except (OSError, EOFError, zlib.error) as error:
        return f"no whole gzip file ({error})"
    return None


def _zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            members = len(archive.namelist())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        return f"no whole zip archive ({error})"
    return f"a zip archive with the broken member {broken}" if broken else None if members else "an empty zip archive"


def _parquet(path: Path) -> str | None:
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group)
    except (pa.ArrowException, OSError, EOFError) as error:
        return f"no whole Parquet file ({str(error).splitlines()[0]})"
    return None


def _text(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
        file.seek(0)
        has_zero = any(b"\0" in block for block in iter(lambda: file.read(_CHUNK), b""))
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page instead of data"
    return "binary bytes instead of text" if has_zero or head.startswith(b"\x1f\x8b") else None


_CHECKS: dict[str, Callable[[Path], str | None]] = {".gz": _gzip, ".zip": _zip, ".parquet": _parquet}


def _ends(path: Path) -> tuple[str, str]:
    """First and last line; the last is found from the end, since files may be large."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.readline()
        reach = min(size, max(2 * len(first), _CHUNK))
        file.seek(size - reach)
        last = file.read().rstrip(b"\r\n").rsplit(b"\n", 1)[-1]
    return first.decode("latin-1").rstrip("\r\n"), last.decode("latin-1").rstrip("\r")


def _fields(line: str) -> int:
    delimiter = "|" if "|" in line and not line.startswith('"') else ","
    return len(next(csv.reader([line], delimiter=delimiter), []))
