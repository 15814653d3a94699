"""Raw files into the store: each once, a month at a time, and one commit at the end."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import atomic, sources
from pipeline.contract import check_station_table
from pipeline.errors import InputError
from pipeline.fetch import Entry, read_manifest
from pipeline.sources.archive import Member, RawFile, contents, modified
from pipeline.sources.csvfile import Truncated
from pipeline.sources.sites import SiteList
from pipeline.sources.source import Source, base_name
from pipeline.store import layout, ledger
from pipeline.store.layout import Manifest, Partition
from pipeline.store.rows import Rows, concatenate, from_table, merge, of_one_file

logger = logging.getLogger("aqnet")

#: Files parsed at once: Arrow and numpy let go of the interpreter, so two cores are put to use.
WORKERS = 2
#: Rows held before months are written, which bounds memory (about 120 bytes a row).
MAX_ROWS = 3_000_000

#: Lines of progress in a log.
LINES = 20

_NEVER = pd.Timestamp("NaT")

#: Gives a file's rows, or raises the InputError that its reader raised.
_Result = Callable[[], list[Rows]]


@dataclass(frozen=True)
class File:
    """What the store keeps of a file: see the table of files in ``docs/reference/observation-store.md``.

    Attributes
    ----------
    file : SHA-256 of its bytes, its name in the store.
    name : label in lineage, ``<zip>!<member>`` or the file's name.
    published, rank : what its precedence is made of; `published` in UTC, whole seconds.
    superseded : whether a newer file of the same dated name takes its place.
    bytes, values : its size and number of values.
    first, last : its first and last hour, UTC; NaT when it holds none.
    sites : SHA-256 of the site list its coordinates are from; empty where it holds them itself.
    """

    file: str
    name: str
    published: datetime
    rank: int
    superseded: bool
    bytes: int
    values: int
    first: pd.Timestamp
    last: pd.Timestamp
    sites: str

    @property
    def base(self) -> str:
        """File name without zip and folders."""
        return base_name(self.name)

    @property
    def months(self) -> list[str]:
        """Calendar months (UTC) that the file has values of."""
        if not self.values:
            return []
        edges = np.datetime64(self.first, "M"), np.datetime64(self.last, "M") + 1
        return [str(month) for month in np.arange(*edges)]


@dataclass(frozen=True)
class Ingested:
    """What one ingest did.

    Attributes
    ----------
    ingest : its number in the ledger; that of the one before when nothing changed.
    digest : SHA-256 of the store's content after it.
    files, known, rows : files put in, files that were there already, rows of station and hour read.
    refused : error of each file that was left out.
    changes : hours that changed: ``network``, ``hour`` (since 1970-01-01) and `ledger.COUNTS`.
    """

    ingest: int
    digest: str
    files: int
    known: int
    rows: int
    refused: tuple[str, ...]
    changes: pd.DataFrame

    def as_text(self, store: Path) -> str:
        """Two lines for people."""
        counts = ", ".join(f"{self.changes[name].sum()} {name}" for name in ledger.COUNTS[:-1])
        return (
            f"{store}: ingest {self.ingest}: {self.files} files put in, {self.known} there already; {self.rows} rows\n"
            f"  {self.changes['hour'].nunique()} hours changed: values {counts}"
        )

    def as_dict(self) -> dict[str, object]:
        """Counts and digest, ready for JSON; the hours that changed are in the ledger."""
        counts = {name: int(self.changes[name].sum()) for name in ledger.COUNTS[:-1]}
        own = {name: getattr(self, name) for name in ("ingest", "digest", "files", "known", "rows", "refused")}
        return own | {"hours_changed": int(self.changes["hour"].nunique()), "values": counts}


@dataclass
class _Job:
    """An ingest under way: the manifest as it was and as it will be, all files, and rows not yet written by month."""

    store: Path
    network: str
    spec: Source
    before: Manifest
    manifest: Manifest
    files: dict[str, File]
    writer: Executor
    waiting: dict[str, list[Rows]] = field(default_factory=dict)
    changes: dict[str, pd.DataFrame] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    known: int = 0
    new: int = 0
    rows: int = 0
    writing: tuple[str, Future[tuple[Partition, pd.DataFrame]]] | None = None


def ingest(
    store: Path,
    network: str,
    path: Path,
    stations: Path | None = None,
    truncated: Truncated = "error",
    published: datetime | None = None,
    keep_going: bool = False,
) -> Ingested:
    """Put raw files into a store; files that are in it already are passed over.

    Parameters
    ----------
    store : folder of the store; made when absent.
    network : one of `sources.names`.
    path : file, zip or folder.
    stations : site list; None looks for the network's own in or beside `path`.
    truncated : what to do with a CSV row that does not have every column.
    published : when the files were published, UTC; None takes what `aqnet fetch` noted, else the time stamp of the
        zip member or file.
    keep_going : leave a file out that cannot be read (see `Ingested.refused`), rather than stop with nothing changed.

    Raises
    ------
    ConfigError
        When there is no such network.
    InputError
        When a file is not what was declared, or another ingest is at work.
    """
    spec = sources.find(network)
    busy = InputError(f"{store}: another ingest is at work; wait for it to end, or stop it")
    with atomic.lock(store, busy), ThreadPoolExecutor(1) as writer:
        before = layout.load(store)
        layout.collect(store, before)
        job = _Job(store, network, spec, before, before, _files(store, before, network), writer)
        sites = sources.site_list(spec, path, stations)
        origin = _Origin(read_manifest(path if path.is_dir() else path.parent), published, sites)
        for member, raw, rows in _parsed(spec, sites, truncated, _unknown(job, path, stations)):
            try:
                _take(job, origin.file(member, raw, spec), rows())
            except InputError as error:
                if not keep_going:
                    raise
                logger.error("%s; left out", error)
                job.refused.append(str(error))
            _write(job, _complete(job, member))
        _write(job, list(job.waiting))
        if sites is not None:
            sites.warn_of_unknown()
        return _finish(job)


@dataclass(frozen=True)
class _Origin:
    """Where the files of an ingest are from."""

    notes: dict[str, Entry]
    published: datetime | None
    sites: SiteList | None

    def file(self, member: Member, raw: RawFile, spec: Source) -> File:
        """What is known of a file before its rows are."""
        listed = hashlib.sha256(self.sites.file.data).hexdigest() if self.sites is not None else ""
        return File(
            file=_digest(raw),
            name=member.label,
            published=self._published(member).replace(tzinfo=None, microsecond=0),
            rank=spec.rank(member.label),
            superseded=False,
            bytes=len(raw.data),
            values=0,
            first=_NEVER,
            last=_NEVER,
            sites=listed,
        )

    def _published(self, member: Member) -> datetime:
        if self.published is not None:
            return self.published.astimezone(UTC)
        entry = self.notes.get(member.container.name)
        noted = entry and (entry.last_modified or entry.retrieved)
        return datetime.fromisoformat(noted).astimezone(UTC) if noted else modified(member)


def _files(store: Path, manifest: Manifest, network: str) -> dict[str, File]:
    rows = layout.read_files(store, manifest, network).to_dict("records")
    return {str(row["file"]): File(**{str(name): value for name, value in row.items()}) for row in rows}


def _unknown(job: _Job, path: Path, stations: Path | None) -> Iterator[tuple[Member, RawFile]]:
    """The files that the store does not hold yet, in the order of the hours that their names tell, one at a time."""
    listed = sources.list_members(job.spec, path, stations)
    seen = set(job.files)
    for done, (member, raw) in enumerate(contents(listed), 1):
        if done == len(listed) or done % max(len(listed) // LINES, 1) == 0:
            logger.info("read %d of %d files", done, len(listed), extra={"done": done, "total": len(listed)})
        if (digest := _digest(raw)) in seen:
            job.known += 1
        else:
            seen.add(digest)
            yield member, raw


def _digest(raw: RawFile) -> str:
    return hashlib.sha256(raw.data).hexdigest()


def _parsed(
    spec: Source, sites: SiteList | None, truncated: Truncated, files: Iterator[tuple[Member, RawFile]]
) -> Iterator[tuple[Member, RawFile, _Result]]:
    """Parse files on `WORKERS` threads, a few ahead, and give them back in their order."""
    with ThreadPoolExecutor(WORKERS) as pool:
        ahead: deque[tuple[Member, RawFile, Future[list[Rows]]]] = deque()
        for member, raw in files:
            ahead.append((member, raw, pool.submit(_rows, spec, raw, sites, truncated)))
            if len(ahead) > 2 * WORKERS:
                first, its, future = ahead.popleft()
                yield first, its, future.result
        yield from ((first, its, future.result) for first, its, future in ahead)


def _rows(spec: Source, raw: RawFile, sites: SiteList | None, truncated: Truncated) -> list[Rows]:
    digest = _digest(raw)
    return [from_table(check_station_table(table, raw.where), digest) for table in spec.parse(raw, sites, truncated)]


def _take(job: _Job, file: File, parts: list[Rows]) -> None:
    """Note a file, and put its rows where those of their months wait."""
    hours = [hour for part in parts if len(part) for hour in (part.hour.min(), part.hour.max())]
    if hours:
        first, last = (pd.Timestamp(np.datetime64(int(hour), "h")) for hour in (min(hours), max(hours)))
        file = replace(file, first=first, last=last, values=sum(int(np.isfinite(p.values).sum()) for p in parts))
    job.files[file.file] = file
    job.new += 1
    job.rows += sum(map(len, parts))
    for part in parts:
        for month, rows in _by_month(part):
            job.waiting.setdefault(month, []).append(rows)
    _supersede(job, file)


def _by_month(rows: Rows) -> Iterator[tuple[str, Rows]]:
    month = rows.hour.astype("M8[h]").astype("M8[M]")
    every = np.unique(month)
    for one in every:
        yield str(one), rows if len(every) == 1 else rows.take(month == one)


def _supersede(job: _Job, new: File) -> None:
    """Of files of one dated name only the newest counts; the months of one that no longer does wait to be merged."""
    if job.spec.span(new.base) is None:
        return
    same = [file for file in job.files.values() if file.base == new.base]
    newest = max(same, key=_precedence)
    for file in same:
        if file.superseded != (file is not newest):
            job.files[file.file] = replace(file, superseded=file is not newest)
            for month in file.months:
                job.waiting.setdefault(month, [])


def _precedence(file: File) -> tuple[int, datetime, str, str]:
    """What decides between two files that give a value of one station, hour and pollutant; the greater one counts."""
    return file.rank, file.published, file.name, file.file


def _complete(job: _Job, member: Member) -> list[str]:
    """Months whose rows are all there (files come in the order of their hours), or all when too many rows wait."""
    if sum(len(part) for parts in job.waiting.values() for part in parts) > MAX_ROWS:
        return list(job.waiting)
    span = job.spec.span(member.base)
    return [] if span is None else [month for month in job.waiting if month < str(span[0].astype("M8[M]"))]


def _write(job: _Job, months: Iterable[str]) -> None:
    """Begin to merge what waits for these months into the store, one month at a time, beside the reading of files."""
    for month in months:
        _settle(job)
        held, was = (manifest.find(job.network, month) for manifest in (job.manifest, job.before))
        merging = partial(_merge_month, job.store, job.network, month, job.waiting.pop(month), held, was)
        job.writing = month, job.writer.submit(merging, dict(job.files))


def _settle(job: _Job) -> None:
    """Wait for the month that is being written, if one is."""
    if job.writing is not None:
        month, future = job.writing
        part, job.changes[month] = future.result()
        job.manifest, job.writing = job.manifest.with_partition(part), None


def _merge_month(
    store: Path,
    network: str,
    month: str,
    parts: list[Rows],
    held: Partition | None,
    was: Partition | None,
    files: dict[str, File],
) -> tuple[Partition, pd.DataFrame]:
    """Merge new rows with what is held of a month; return its partition and how it differs from what it `was`."""
    observed, contested = layout.read_partition(store, held)
    rows = concatenate([of_one_file(observed, contested), contested, *parts])
    observed, contested = merge(rows, _order([files[file] for file in rows.files]))
    part = layout.write_partition(store, network, month, observed, contested)
    return part, ledger.differences(layout.read_partition(store, was)[0], observed)


def _order(files: list[File]) -> NDArray[np.int64]:
    """Precedence of each file as a number; -1 when superseded."""
    order = {file.file: i for i, file in enumerate(sorted(files, key=_precedence))}
    return np.array([-1 if file.superseded else order[file.file] for file in files], dtype="int64")


def _finish(job: _Job) -> Ingested:
    """Write the table of files and the ledger, and let readers see it all in one step."""
    _settle(job)
    found = list(job.changes.values()) or [pd.DataFrame(columns=["hour", *ledger.COUNTS], dtype="int64")]
    changes = pd.concat(found, ignore_index=True).assign(network=job.network)
    if job.new:
        table = pd.DataFrame([vars(file) for file in job.files.values()]).astype(layout.FILE_TYPES)
        files = job.before.files | {job.network: layout.write_files(job.store, job.network, table)}
        job.manifest = replace(job.manifest, files=files, ingest=job.before.ingest + 1)
        ledger.write(job.store, job.manifest.ingest, changes)
        layout.commit(job.store, job.manifest)
    number, digest = job.manifest.ingest, job.manifest.digest
    return Ingested(number, digest, job.new, job.known, job.rows, tuple(job.refused), changes)
