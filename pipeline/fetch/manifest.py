"""``manifest.jsonl`` of a fetched folder: what each file is, whence and when; written so that kills do no harm.

A line is appended when a file stands whole in the folder; the last line about a file counts. Before a file is replaced
a line forgets it, so no entry ever speaks of other bytes than those on disk. `Manifest.compact` leaves one line a file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pipeline.atomic import replacing
from pipeline.errors import ConfigError, InputError

NAME = "manifest.jsonl"

_FORGOTTEN = "forgotten"


@dataclass(frozen=True)
class Entry:
    """One file of a fetched folder, or one that the archive does not have.

    Attributes
    ----------
    path : name in the folder.
    url : where it came from, without user name and password.
    retrieved : when, UTC, ISO 8601.
    bytes, sha256 : size and digest of the file; 0 and empty where it is absent.
    etag, last_modified : what the server said; the time as ISO 8601 in UTC. None where it said nothing.
    status : ``fetched``; ``cut``: a text whose last line is cut in the archive itself; ``absent``: not there.
    """

    path: str
    url: str
    retrieved: str
    bytes: int = 0
    sha256: str = ""
    etag: str | None = None
    last_modified: str | None = None
    status: Literal["fetched", "cut", "absent"] = "fetched"


def read_manifest(folder: Path) -> dict[str, Entry]:
    """Read the manifest of a fetched folder: entries by file name, sorted; empty where there is none.

    A last line without its end is what a kill left of it, and does not count.

    Raises
    ------
    InputError
        Naming the line that is no entry.
    """
    path, found = folder / NAME, dict[str, Entry]()
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    for number, line in enumerate(text.split("\n")[:-1], 1):
        values = _values(line, f"{path}, line {number}")
        if values["status"] == _FORGOTTEN:
            found.pop(values["path"], None)
        else:
            found[values["path"]] = _entry(values, f"{path}, line {number}")
    return dict(sorted(found.items()))


def _values(line: str, where: str) -> dict[str, str]:
    try:
        values: dict[str, str] = json.loads(line)
        return values | {"path": values["path"], "status": values["status"]}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{where}: expected an entry with path and status; found {line[:80]!r} ({error})") from None


def _entry(values: dict[str, str], where: str) -> Entry:
    try:
        return Entry(**values)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(f"{where}: expected the fields of an entry; found {error}") from None


def is_whole(folder: Path, entry: Entry | None) -> bool:
    """Tell whether the file of an entry is on disk with the size and digest that the entry says."""
    if entry is None or entry.status == "absent":
        return False
    path = folder / entry.path
    return path.is_file() and path.stat().st_size == entry.bytes and sha256(path) == entry.sha256


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def opened(folder: Path) -> Iterator[Manifest]:
    """Open the manifest of a folder for one process at a time, and compact it at the end.

    Raises
    ------
    ConfigError
        When another fetch is at work in the folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        manifest = Manifest(folder)
        try:
            yield manifest
        finally:
            manifest.compact()
    except BlockingIOError:
        raise ConfigError(f"{folder}: expected a folder that no one else writes to; another fetch is at work") from None
    finally:
        os.close(handle)


class Manifest:
    """The entries of a folder, in memory and on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries = read_manifest(folder)
        self.compact()  # so that no line is appended to what a kill left of the last one

    def put(self, entry: Entry) -> None:
        """Add or replace an entry; its file must be in place."""
        self.entries[entry.path] = entry
        self._append(asdict(entry))

    def forget(self, name: str) -> None:
        """Drop the entry of a file that is about to be replaced."""
        if self.entries.pop(name, None) is not None:
            self._append({"path": name, "status": _FORGOTTEN})

    def compact(self) -> None:
        """Leave one line a file, sorted by name."""
        if not self.entries and not (self.folder / NAME).exists():
            return
        with replacing(self.folder / NAME) as part:
            part.write_text("".join(_line(asdict(self.entries[name])) for name in sorted(self.entries)), "utf-8")
            sync(part)
        sync(self.folder)

    def _append(self, values: dict[str, object]) -> None:
        with (self.folder / NAME).open("ab", buffering=0) as file:
            file.write(_line(values).encode())
            os.fsync(file.fileno())


def _line(values: dict[str, object]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"
