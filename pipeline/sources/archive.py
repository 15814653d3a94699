"""The CSV files behind one path: a CSV, a zip of CSVs, or a folder of either; listed once, read one at a time."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pipeline.errors import InputError
from pipeline.sources.csvfile import CsvFile


@dataclass(frozen=True)
class Member:
    """One CSV: a file, or a member of the zip `container`."""

    container: Path
    name: str | None = None

    @property
    def base(self) -> str:
        """File name without folders."""
        return (self.name or self.container.name).rsplit("/", 1)[-1]

    @property
    def label(self) -> str:
        """Name for `source_file` and lineage, the same on every machine: ``<zip>!<member>`` or the file's name."""
        return self.container.name + (f"!{self.name}" if self.name else "")

    @property
    def where(self) -> str:
        """Name for errors, with the whole path."""
        return str(self.container) + (f"!{self.name}" if self.name else "")


def members(path: Path, suffixes: tuple[str, ...] = (".zip", ".csv"), ignore: Iterable[str] = ()) -> list[Member]:
    """List the CSVs of `path` sorted by container, then name.

    Parameters
    ----------
    path : a file, a zip, or a folder (not searched further down).
    suffixes : which files of a folder count.
    ignore : file names of a folder that do not count (a station list, say).

    Raises
    ------
    InputError
        When the path does not exist, a zip is none or holds no CSV, or a folder holds no such file.
    """
    if not path.exists():
        raise InputError(f"{path}: expected a file or folder; found nothing there")
    if not path.is_dir():
        return _expand(path)
    skip = set(ignore)
    files = [f for f in sorted(path.iterdir()) if f.suffix.lower() in suffixes and f.name not in skip]
    files = [f for f in files if f.is_file() and not f.name.startswith((".", "_"))]
    if not files:
        raise InputError(f"{path}: expected {' or '.join(suffixes)} files in the folder; found none")
    return [member for file in files for member in _expand(file)]


def contents(wanted: Iterable[Member]) -> Iterator[tuple[Member, CsvFile]]:
    """Read the members in their order, opening each zip once for each run of its members.

    Raises
    ------
    InputError
        Naming the member that cannot be read.
    """
    for container, group in groupby(wanted, key=lambda member: member.container):
        if not zipfile.is_zipfile(container):
            yield from ((member, CsvFile(member.where, container.read_bytes())) for member in group)
            continue
        with zipfile.ZipFile(container) as archive:
            yield from ((member, CsvFile(member.where, _member_bytes(archive, member))) for member in group)


def digests(wanted: Iterable[Member]) -> dict[str, str]:
    """SHA-256 of each member's own bytes (not of the zip around it) by label, sorted by label."""
    found = {member.label: hashlib.sha256(file.data).hexdigest() for member, file in contents(wanted)}
    return dict(sorted(found.items()))


def _expand(file: Path) -> list[Member]:
    if file.suffix.lower() != ".zip" and not zipfile.is_zipfile(file):
        return [Member(file)]
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise InputError(f"{file}: expected a zip archive; found a file that is not one ({error})") from error
    csvs = [name for name in sorted(names) if name.lower().endswith(".csv") and not name.startswith("__MACOSX/")]
    if not csvs:
        raise InputError(f"{file}: expected a zip with at least one CSV; found {len(names)} members, no CSV")
    return [Member(file, name) for name in csvs]


def _member_bytes(archive: zipfile.ZipFile, member: Member) -> bytes:
    try:
        return archive.read(member.name or "")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{member.where}: expected a readable zip member; found a broken one ({error})") from error
