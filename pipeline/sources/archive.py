"""The files behind one path: a file, a zip of files, or a folder of either; listed once, read one at a time."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from pipeline.errors import InputError

#: A compressed file that unpacks to more than this is no hourly record.
MAX_BYTES = 4 << 30

#: What zipfile raises on damaged bytes, beside its own error: its decompressors', and those of lengths and names.
_BROKEN_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, NotImplementedError, OSError),
    *(ValueError, struct.error, OverflowError),
)


@dataclass(frozen=True)
class RawFile:
    """The bytes of one file (unpacked, where it was a ``.gz``), the name errors give it and the one lineage does."""

    where: str
    label: str
    data: bytes = field(repr=False)

    @property
    def base(self) -> str:
        """File name without folders."""
        return self.label.rsplit("!", 1)[-1].rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Member:
    """One file, or a member of the zip `container`; `inner` is a zip within that zip."""

    container: Path
    name: str | None = None
    inner: str | None = None

    @property
    def base(self) -> str:
        """File name without folders."""
        return (self.name or self.container.name).rsplit("/", 1)[-1]

    @property
    def label(self) -> str:
        """Name for `source_file` and lineage, the same on every machine: ``<zip>!<member>`` or the file's name."""
        return "!".join(filter(None, (self.container.name, self.inner, self.name)))

    @property
    def where(self) -> str:
        """Name for errors, with the whole path; what is not printable in a member's name is escaped."""
        return _said("!".join(filter(None, (str(self.container), self.inner, self.name))))


def members(path: Path, suffixes: tuple[str, ...] = (".csv",), ignore: Iterable[str] = ()) -> list[Member]:
    """List the data files of `path` sorted by container, then name.

    Parameters
    ----------
    path : a file, a zip, or a folder (not searched further down).
    suffixes : endings of data files, lower case; zips of such files count, too.
    ignore : file names that do not count (a station list, say).

    Raises
    ------
    InputError
        When the path does not exist, a zip is none or holds no such file, or a folder holds none.
    """
    if not path.exists():
        raise InputError(f"{path}: expected a file or folder; found nothing there")
    if not path.is_dir():
        return _expand(path, suffixes, set())
    skip = set(ignore)
    files = [f for f in sorted(path.iterdir()) if f.name.lower().endswith((*suffixes, ".zip")) and f.name not in skip]
    files = [f for f in files if f.is_file() and not f.name.startswith((".", "_"))]
    if not files:
        raise InputError(f"{path}: expected {' or '.join((*suffixes, '.zip'))} files in the folder; found none")
    return [member for file in files for member in _expand(file, suffixes, skip)]


def contents(wanted: Iterable[Member]) -> Iterator[tuple[Member, RawFile]]:
    """Read the members in their order, opening each zip once for each run of its members.

    Raises
    ------
    InputError
        Naming the member that cannot be read.
    """
    for (container, inner), group in groupby(wanted, key=lambda member: (member.container, member.inner)):
        if not zipfile.is_zipfile(container):
            yield from ((member, _raw(member, container.read_bytes())) for member in group)
            continue
        with _opened(container, inner) as archive:
            yield from ((member, _raw(member, _member_bytes(archive, member))) for member in group)


def digests(wanted: Iterable[Member]) -> dict[str, str]:
    """SHA-256 of each member's own bytes (not of the zip or gzip around it) by label, sorted by label."""
    found = {member.label: hashlib.sha256(file.data).hexdigest() for member, file in contents(wanted)}
    return dict(sorted(found.items()))


def modified(member: Member) -> datetime:
    """When the member was last changed, by its zip or else by its file system; UTC, whole seconds."""
    if member.name is None:
        return datetime.fromtimestamp(int(member.container.stat().st_mtime), UTC)
    with _opened(member.container, member.inner) as archive:
        return datetime(*archive.getinfo(member.name).date_time, tzinfo=UTC)


def _expand(file: Path, suffixes: tuple[str, ...], skip: set[str]) -> list[Member]:
    if file.suffix.lower() != ".zip" and not zipfile.is_zipfile(file):
        return [Member(file)]
    try:
        with zipfile.ZipFile(file) as archive:
            names = sorted(archive.namelist())
            nested = {name: _inner_names(archive, file, name) for name in names if name.lower().endswith(".zip")}
    except _BROKEN_ZIP as error:
        raise InputError(f"{file}: expected a zip archive; found a file that is not one ({_said(error)})") from error
    found = [Member(file, name) for name in _data(names, suffixes, skip)]
    found += [Member(file, name, inner) for inner, own in nested.items() for name in _data(own, suffixes, skip)]
    if not found:
        kinds = " or ".join(suffixes)
        raise InputError(f"{file}: expected a zip with at least one {kinds} file; found {len(names)} members, no such")
    return found


def _inner_names(archive: zipfile.ZipFile, file: Path, name: str) -> list[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(_limited(archive, f"{file}!{name}", name))) as inner:
            return sorted(inner.namelist())
    except _BROKEN_ZIP as error:
        where = _said(f"{file}!{name}")
        raise InputError(f"{where}: expected a zip archive; found one that cannot be read ({_said(error)})") from error


def _data(names: list[str], suffixes: tuple[str, ...], skip: set[str]) -> list[str]:
    kept = [name for name in names if name.lower().endswith(suffixes) and not name.startswith("__MACOSX/")]
    return [name for name in kept if name.rsplit("/", 1)[-1] not in skip]


def _opened(container: Path, inner: str | None) -> zipfile.ZipFile:
    archive = zipfile.ZipFile(container)
    if inner is None:
        return archive
    with archive:
        return zipfile.ZipFile(io.BytesIO(_limited(archive, f"{container}!{inner}", inner)))


def _member_bytes(archive: zipfile.ZipFile, member: Member) -> bytes:
    try:
        return _limited(archive, member.where, member.name or "")
    except _BROKEN_ZIP as error:
        found = f"a broken one ({_said(error)})"
        raise InputError(f"{member.where}: expected a readable zip member; found {found}") from error


def _limited(archive: zipfile.ZipFile, where: str, name: str) -> bytes:
    """Unpack a member, unless it says that it is too large; zipfile unpacks no more than a member says."""
    if (size := archive.getinfo(name).file_size) > MAX_BYTES:
        raise InputError(f"{_said(where)}: expected at most {MAX_BYTES} bytes unpacked; found {size}")
    return archive.read(name)


def _said(what: object) -> str:
    """A name or an error of a damaged archive, on one line without control characters."""
    text = " ".join(str(what).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _raw(member: Member, data: bytes) -> RawFile:
    if member.base.lower().endswith(".gz"):
        data = _gunzipped(member.where, data)
    return RawFile(member.where, member.label, data)


def _gunzipped(where: str, data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            unpacked = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{where}: expected a whole gzip file; found a broken one ({error})") from error
    if len(unpacked) > MAX_BYTES:
        raise InputError(f"{where}: expected at most {MAX_BYTES} bytes unpacked; found more")
    return unpacked
