"""The cube of record: an Icechunk repository that readers only ever see in whole revisions.

A run begins a candidate branch from ``main``, writes hour blocks on it and publishes: ``main`` moves to the candidate's
snapshot in one step and is tagged ``r1``, ``r2`` ... A candidate that the release gate stops is held instead. One run
writes at a time, held by a file lock that dies with its process; a reader needs no lock. See
docs/adr/0002-icechunk-cube.md and docs/adr/0019-release-gate.md.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import icechunk
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline import atomic
from pipeline.contract import FIELDS, STREAMS, check_cube
from pipeline.cube import reader, repository, store
from pipeline.cube.layout import BLOCK, FILL, GLOBAL_ATTRS, Group, extend, lay, plain, time_coverage, to_hours
from pipeline.errors import ProductError
from pipeline.grid import Grid, extent
from pipeline.location import S3, Location, located
from pipeline.products import outlook_fields

log = logging.getLogger("aqnet")

KEEP_BITS = 9

#: Newest revisions that the attribute ``history`` names: in ten years of hours there are 90,000.
HISTORY_LINES = 100
_EARLIER, _ACCEPTED = "earlier revisions: aqnet history", ", accepted "

#: One of its lines, as a revision adds it.
HISTORY_LINE = re.compile(
    r"^(?P<when>\S+) aqnet run (?P<run>\S+): hours (?P<first>\S+) to (?P<end>[^\s,]+)"
    r"(?:, outlook to (?P<outlook>[^\s,]+))?, revision (?P<revision>r\d+)",
    re.MULTILINE,
)


def bitround(values: NDArray[np.float32], keepbits: int = KEEP_BITS) -> NDArray[np.float32]:
    """Round to ``keepbits`` bits of mantissa, half to even; NaN and infinity stay.

    Kloewer et al. 2021, Nature Computational Science 1, 713-724. Relative error at most 2^-(keepbits + 1); order and
    sign are kept, so quantiles stay ordered.
    """
    drop = 23 - keepbits
    bits = np.ascontiguousarray(values, "float32").view("uint32")
    half = np.uint32((1 << (drop - 1)) - 1) + ((bits >> np.uint32(drop)) & np.uint32(1))
    rounded = (bits + half) & np.uint32((0xFFFFFFFF << drop) & 0xFFFFFFFF)
    return np.where(np.isfinite(values), rounded.view("float32"), values)


@dataclass
class Candidate:
    """A revision in the making: a branch of the cube that one run writes and readers do not see.

    Use it as a context manager, so that the lock is given back when the run fails; the branch then stays for
    inspection until the next run begins.

    Attributes
    ----------
    path, grid : where the repository lies, and its grid.
    run_id : identifier of the run; the branch is ``candidate-<run_id>``.
    revision : the tag that publication will give, ``r1``, ``r2`` ...
    hours : the run's own hours (first, last + 1) since 1970-01-01, those of its outlook included.
    issue : hour from which on they are an outlook; without one the hour after the last.
    base : snapshot of ``main`` that the candidate grew from; `published` is that revision's group, or None.
    overtaken : branches of held candidates, which go when this one is published or held.
    """

    path: Location
    grid: Grid
    run_id: str
    revision: str
    hours: tuple[int, int]
    issue: int
    repo: icechunk.Repository
    base: str
    published: Group | None
    overtaken: list[str]
    session: icechunk.Session
    lock: IO[str]

    def __enter__(self) -> Candidate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back; what was not published stays unpublished."""
        self.lock.close()

    @property
    def branch(self) -> str:
        """Name of the candidate's branch."""
        return f"{repository.CANDIDATE}{self.run_id}"

    @property
    def group(self) -> Group:
        """Root of the candidate's arrays."""
        return repository.group(self.session, "r+")

    def open(self) -> xr.Dataset:
        """Return the candidate as `reader.open_cube` would, with what was written since the last commit."""
        return reader.dataset(self.session)

    def commit(self, message: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Save what was written so far on the candidate branch, with what is to be said of it."""
        group = self.group
        stream = group["stream"][:]
        produced = group["time"][:][stream != FILL["stream"]]
        if len(produced):
            group.attrs.update(time_coverage(produced))
        if not (stream == STREAMS["outlook"]).any():
            for name in set(group.attrs) - set(outlook_fields.without(group.attrs)):
                del group.attrs[name]
        if self.session.has_uncommitted_changes:
            self.session.commit(message, dict(metadata) if metadata else None)
            self.session = self.repo.writable_session(self.branch)

    def seal(self, record: Mapping[str, Any] | None) -> str:
        """Commit the last of the candidate with the record of its run; return the snapshot."""
        record = {**(record or {}), "base": self.base}
        if reason := record.get("reason"):
            self.group.attrs["revision_reason"] = reason
        self.commit(f"aqnet run {self.run_id}", record)
        return self.repo.lookup_branch(self.branch)


def begin(
    path: str | Location,
    grid: Grid,
    start: object,
    end: object,
    attrs: Mapping[str, str],
    outlook_hours: int = 0,
    lock: Path | None = None,
) -> Candidate:
    """Begin a revision for the hours [start, end) and an outlook of the hours from ``end`` on.

    The cube's outlook is that of one issue time, the end of what is analysed: where the cube holds analysed hours from
    ``end`` on, the candidate has no outlook.

    Parameters
    ----------
    path : folder or ``s3://`` address of the Icechunk repository; made when absent.
    grid : the run's grid; must be the cube's.
    start, end : whole hours, UTC, half open.
    attrs : global attributes that the run adds (title, lineage ...); ``flow_run_id`` names the candidate.
    outlook_hours : hours of the outlook.
    lock : path whose lock (`pipeline.atomic.lock`) one run holds; that of a cube in a folder is its own.

    Raises
    ------
    ProductError
        When another run is writing the cube, the cube is on another grid or begins after ``start``.
    """
    path, first, issue = located(path), to_hours(start), to_hours(end)
    if first >= issue:
        raise ProductError(f"{path}: the run's start {start} must be before its end {end}")
    with ExitStack() as stack:
        held_lock = stack.enter_context(_lock(path, lock))
        repo, run_id = store.opened_or_made(path), attrs.get("flow_run_id") or uuid4().hex
        dead = _take_over(held_lock, f"{repository.CANDIDATE}{run_id}")
        found = repository.clean(repo, repository.others(path), dead)
        base = repo.lookup_branch("main")
        published = repository.root(repo)
        hours = first, issue if outlook_fields.analysed_from(published, issue) else issue + outlook_hours
        branch = f"{repository.CANDIDATE}{run_id}"
        repo.create_branch(branch, base)
        session = repo.writable_session(branch)
        revision, held = f"r{found.newest + 1}", found.overtaken
        candidate = Candidate(
            path, grid, run_id, revision, hours, issue, repo, base, published, held, session, held_lock
        )
        _lay_or_extend(candidate, attrs)
        if isinstance(path, S3):  # dates the branch, for others
            candidate.commit(f"aqnet run {run_id}: laid")
        stack.pop_all()
    return candidate


def _lock(path: Location, lock: Path | None) -> IO[str]:
    busy = ProductError(f"{path}: another run is writing this cube; wait for it to end, or stop it")
    if lock is None and isinstance(path, S3):
        raise ValueError(f"{path}: expected the path of a lock, for a bucket has none")
    return atomic.lock(lock or Path(str(path)), busy)


def _take_over(lock: IO[str], branch: str) -> str:
    """Write in the lock whose it is; return the branch of the run that had it before, which has ended."""
    lock.seek(0)
    former = lock.read().strip()
    lock.seek(0)
    lock.truncate()
    lock.write(branch)
    lock.flush()
    return former


def _lay_or_extend(candidate: Candidate, attrs: Mapping[str, str]) -> None:
    """Make the candidate's time axis reach from the first day's midnight to the end of the run's last day."""
    first, last = candidate.hours[0] // BLOCK * BLOCK, -(-candidate.hours[1] // BLOCK) * BLOCK
    group, old = repository.group(candidate.session, "a"), candidate.published
    if old is None:
        lay(group, candidate.grid.coords(), np.arange(first, last))
    else:
        _check_same(candidate, old)
        first = int(old["time"][0])
        if old["time"].shape[0] < last - first:
            extend(group, np.arange(first, last))
    said = {**group.attrs.asdict(), **_global_attrs(candidate, attrs)}
    said.pop("revision_reason", None)  # `seal` then has something to commit with the record, the reason, whatever it is
    group.attrs.put(said)


def _check_same(candidate: Candidate, old: Group) -> None:
    """Raise when the run does not fit the published cube."""
    _check_grid(candidate, old)
    path, begins = candidate.path, int(old["time"][0])
    if candidate.hours[0] < begins:
        found, first = (np.datetime64(hour, "h") for hour in (candidate.hours[0], begins))
        raise ProductError(
            f"{path}: the cube begins at {first} and cannot grow backwards; the run starts at {found}; "
            f"write the whole period to another folder, earliest run first"
        )


def _check_grid(candidate: Candidate, old: Group) -> None:
    """Raise when a cube is on another grid than the run."""
    path, coords = candidate.path, candidate.grid.coords()
    for name in (*candidate.grid.spatial, "crs"):
        same = name in old and old[name].shape == coords[name].shape and np.array_equal(old[name][...], coords[name])
        if not same or plain(coords[name].attrs) != {**old[name].attrs}:
            raise ProductError(
                f"{path}: the cube is on another grid ('{name}' differs); keep the bbox, resolution and "
                f"crs it was begun with, or write to another folder"
            )


def _global_attrs(candidate: Candidate, attrs: Mapping[str, str]) -> dict[str, Any]:
    """Return CF and ACDD attributes of the revision; the run's own win."""
    now = _now()
    first, last, issue = (np.datetime64(hour, "h") for hour in (*candidate.hours, candidate.issue))
    ahead = f", outlook to {last}" if last > issue else ""
    line = f"{now} aqnet run {candidate.run_id}: hours {first} to {issue}{ahead}, revision {candidate.revision}"
    earlier = str(candidate.published.attrs.get("history", "")) if candidate.published is not None else ""
    return {
        **GLOBAL_ATTRS,
        **extent(candidate.grid.coords()),
        "date_created": now,
        **plain(attrs),
        "revision": candidate.revision,
        "history": _history(line, earlier.splitlines()),
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _history(line: str, earlier: list[str]) -> str:
    """The attribute ``history``: this revision first, then the ones before, the oldest left to their records."""
    lines = [line, *earlier]
    return "\n".join(lines if len(lines) <= HISTORY_LINES else [*lines[:HISTORY_LINES], _EARLIER])


def write_block(candidate: Candidate, block: xr.Dataset) -> None:
    """Write hours of one UTC day, rounded to 9 bits; of ``revision`` only the shape is read, its values are counted.

    Parameters
    ----------
    candidate : what `begin` returned.
    block : satisfies `contract.check_cube`, on the candidate's grid, consecutive hours within one day and the run.

    Raises
    ------
    ProductError
        When the block breaks the contract or lies elsewhere than the candidate.
    """
    check_cube(block, f"{candidate.path}: block")
    hours = _check_place(candidate, block)
    group = candidate.group
    first = int(hours[0] - group["time"][0])
    at = slice(first, first + len(hours))
    values = {spec.name: _stored(block[spec.name].values) for spec in FIELDS}
    values["revision"] = _revision(candidate.published, values, at)
    for name, array in values.items():
        group[name][at] = array


def describe_outlook(candidate: Candidate, attrs: Mapping[str, str]) -> None:
    """Say of what issue time and weights the candidate's outlook is, and take back the hours of an earlier one.

    Outlook hours that an earlier run published and this one does not write become as if never produced, but for their
    ``revision``, which counts that too.

    Parameters
    ----------
    attrs : from `pipeline.products.outlook_fields.attrs`.
    """
    candidate.group.attrs.update(plain(attrs))
    if candidate.published is not None:
        outlook_fields.take_back(candidate.group, candidate.published, *candidate.hours)


def _stored(values: NDArray[Any]) -> NDArray[Any]:
    return bitround(values) if values.dtype == np.float32 else values


def _check_place(candidate: Candidate, block: xr.Dataset) -> NDArray[np.int64]:
    """Hours of the block since 1970-01-01, after a check that block and candidate agree."""
    where, grid = f"{candidate.path}: block", candidate.grid
    for name, axis in zip(grid.spatial, (grid.y, grid.x), strict=True):
        if not np.array_equal(block[name], axis):
            raise ProductError(f"{where}: coordinate '{name}' is not the grid's")
    hours = block["time"].values.astype("datetime64[h]").astype("int64")
    first, last = candidate.hours
    if len(hours) == 0 or hours[0] < first or hours[-1] >= last or hours[0] // BLOCK != hours[-1] // BLOCK:
        raise ProductError(
            f"{where}: coordinate 'time' must be hours of one UTC day within the run; "
            f"found {len(hours)} from {block['time'].values[:1]}"
        )
    return hours


def _revision(old: Group | None, new: Mapping[str, NDArray[Any]], at: slice) -> NDArray[np.int32]:
    """Return the published revision of each hour, one more where any value differs; 1 where none was published."""
    revision = np.ones(at.stop - at.start, "int32")
    if old is None or old["time"].shape[0] <= at.start:
        return revision
    past = slice(at.start, min(at.stop, old["time"].shape[0]))
    known = past.stop - past.start
    same = np.ones(known, bool)
    for name in set(new) - {"revision"}:
        same &= _equal_hours(old[name][past], new[name][:known])
    revision[:known] = np.where(same, old["revision"][past], old["revision"][past] + 1)
    return revision


def _equal_hours(old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.bool_]:
    equal = old == new
    if old.dtype.kind == "f":
        equal |= np.isnan(old) & np.isnan(new)
    return equal.reshape(len(equal), -1).all(axis=1)


def publish(candidate: Candidate, record: Mapping[str, Any] | None = None) -> str | None:
    """Make the candidate what readers see, in one step, and give the lock back.

    Parameters
    ----------
    record : what the commit says of the revision, ready for JSON (see `pipeline.cube.revisions`).

    Returns
    -------
    The new revision's tag, or None when no hour differs from what is published: then nothing moves.

    Raises
    ------
    ProductError
        When ``main`` moved since the candidate began, or the candidate lost hours that ``main`` holds.
    """
    check_axes(candidate)
    head, changed = candidate.seal(record), _changed(candidate)
    if changed:
        repository.move_main(candidate.repo, head, candidate.base, _of_run(candidate), candidate.revision)
        repository.drop(candidate.repo, candidate.overtaken, repository.others(candidate.path))
    candidate.repo.delete_branch(candidate.branch)
    candidate.close()
    log.info("%s: %s", candidate.path, f"{changed} hours in {candidate.revision}" if changed else "nothing changed")
    return candidate.revision if changed else None


def hold(candidate: Candidate, record: Mapping[str, Any] | None = None) -> str:
    """Keep a candidate that may not be published, in place of any held before, and give the lock back.

    Returns
    -------
    Name of its branch; `open_cube` opens it as a revision.
    """
    branch = f"{repository.HELD}{candidate.run_id}"
    candidate.repo.create_branch(branch, candidate.seal(record))
    candidate.repo.delete_branch(candidate.branch)
    repository.drop(candidate.repo, candidate.overtaken, repository.others(candidate.path))
    candidate.close()
    return branch


def accept(path: str | Location, run_id: str, reason: str, lock: Path | None = None) -> str:
    """Publish the held candidate of a run and record why; return the new revision's tag.

    Where one of the newest revisions is that run's, accepted before, its tag is returned and its reason stays.

    Raises
    ------
    ProductError
        When there is no such candidate, or another revision was published since.
    """
    path = located(path)
    with _lock(path, lock) as held_lock:
        repo = repository.open_existing(path)
        found = repository.clean(repo, repository.others(path), _take_over(held_lock, ""))
        candidates = {entry.name.removeprefix(repository.HELD): entry for entry in found.held}
        if run_id in candidates:
            tag = _publish_held(repo, path, candidates[run_id], f"r{found.newest + 1}", reason)
            repository.drop(repo, found.overtaken, repository.others(path))
            log.info("%s: accepted run %s as %s", path, run_id, tag)
            return tag
        for entry in islice(repository.backwards(repo, found.newest), HISTORY_LINES):
            if entry.message.startswith(_accepted(run_id)):
                log.info("%s: run %s was accepted before, as %s", path, run_id, entry.name)
                return entry.name
        known = ", ".join(candidates) or "none"
        raise ProductError(f"{path}: expected the run of a held candidate ({known}); found '{run_id}'")


def _publish_held(repo: icechunk.Repository, path: Location, entry: repository.Entry, tag: str, reason: str) -> str:
    run_id = entry.name.removeprefix(repository.HELD)
    session = repo.writable_session(entry.name)
    attrs = repository.group(session, "r+").attrs
    line, *earlier = str(attrs["history"]).splitlines()
    line = f"{line.partition(_ACCEPTED)[0]}{_ACCEPTED}{_now()}: {' '.join(reason.split())}"
    attrs.update(revision=tag, revision_reason=reason, history=_history(line, earlier))
    head = session.commit(f"{_accepted(run_id)}{reason}", {**entry.metadata, "accepted": reason})
    base = str(entry.metadata["base"])
    repository.move_main(repo, head, base, f"{path}: run {run_id}", tag)
    return tag


def _accepted(run_id: str) -> str:
    """What the message of an accepted run's commit begins with."""
    return f"aqnet run {run_id}, accepted: "


def check_axes(candidate: Candidate) -> None:
    """Raise when a published hour, cell or estimate is not in the candidate where it was.

    Outlook hours alone may be taken back: they are forecasts of one issue time.

    Raises
    ------
    ProductError
        Naming the coordinate, what ``main`` holds and what the candidate holds.
    """
    old, new = candidate.published, candidate.group
    if old is None:
        return
    _check_grid(candidate, new)
    before, after = old["time"][:], new["time"][:]
    if len(after) < len(before) or not np.array_equal(after[: len(before)], before):
        spans = [f"{len(hours)} hours from {np.datetime64(int(hours[0]), 'h')}" for hours in (before, after)]
        raise ProductError(
            f"{_of_run(candidate)}: coordinate 'time': expected the {spans[0]} of the published revision, and more;"
            f" found {spans[1]}"
        )
    kept = ~np.isin(old["stream"][:], [FILL["stream"], STREAMS["outlook"]])
    if lost := int((new["stream"][: len(before)][kept] == FILL["stream"]).sum()):
        raise ProductError(f"{_of_run(candidate)}: expected every analysed hour of main; found {lost} of them empty")


def _of_run(candidate: Candidate) -> str:
    return f"{candidate.path}: run {candidate.run_id}"


def _changed(candidate: Candidate) -> int:
    """Count the hours that differ from ``main``."""
    revision = candidate.group["revision"][:]
    if candidate.published is not None:
        old = candidate.published["revision"][:]
        revision[: len(old)] -= old
    return int(np.count_nonzero(revision))
