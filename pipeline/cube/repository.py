"""The Icechunk repository of a cube: its branches and tags, and what each snapshot says of itself.

``main`` is what readers see, ``r1``, ``r2`` ... are its published snapshots. ``candidate-<run>`` is what a run is
writing; ``held-<run>`` is a candidate that the release gate stopped, kept for inspection until the next publication or
the next one that is stopped.

``main`` says in its attribute ``revision`` which it is, so that no run lists the tags: ten years of hours leave 90,000.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import icechunk
import zarr

from pipeline.cube import patience, store
from pipeline.cube.layout import Group
from pipeline.errors import ProductError
from pipeline.location import S3, Location

log = logging.getLogger("aqnet")

CANDIDATE, HELD = "candidate-", "held-"

#: In a bucket a run elsewhere, whose lock is not seen here, may be writing what is younger than this.
OTHERS = timedelta(days=7)

_TAG = re.compile(r"r(\d+)")

#: What Icechunk says of a tag or branch that is not there, or cannot be.
_NO_REF = re.compile(r"ref not found|invalid ref name")


@dataclass(frozen=True)
class Entry:
    """A snapshot by the tag or branch that leads to it; `written` is UTC, `metadata` what its run said of it."""

    name: str
    snapshot: str
    written: datetime
    message: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def open_existing(place: Location) -> icechunk.Repository:
    """Open a repository; ProductError where there is none."""
    if not store.exists(place):
        kind = "prefix" if isinstance(place, S3) else "folder"
        raise ProductError(f"{place}: no cube here; expected the {kind} of an Icechunk repository")
    return store.opened(place)


def group(session: icechunk.Session, mode: Literal["r", "r+", "a"]) -> Group:
    """Root group of a session; no chunk of it is waited for for ever."""
    return zarr.open_group(patience.Patient(session.store), mode=mode)


def root(repo: icechunk.Repository) -> Group | None:
    """Root group of ``main``, or None before the first publication."""
    try:
        return group(repo.readonly_session("main"), "r")
    except FileNotFoundError:
        return None


# ---- what there is ----


def published(repo: icechunk.Repository, count: int | None = None) -> list[Entry]:
    """Published snapshots, oldest first: all, which takes a while after years, or those of the last `count` numbers."""
    return [entry for entry in (_tagged(repo, number) for number in _numbers(repo, count)) if entry is not None]


def backwards(repo: icechunk.Repository, before: int | None = None) -> Iterator[Entry]:
    """Published snapshots one by one, newest first, from number `before` down or from the newest."""
    for number in range(newest(repo) if before is None else before, 0, -1):
        if (entry := _tagged(repo, number)) is not None:
            yield entry


def held(repo: icechunk.Repository, branches: Collection[str] | None = None) -> list[Entry]:
    """Candidates that the release gate stopped, oldest first, among `branches` or all that there are."""
    names = [name for name in (repo.list_branches() if branches is None else branches) if name.startswith(HELD)]
    return sorted((_entry(name, next(iter(repo.ancestry(branch=name)))) for name in names), key=lambda e: e.written)


def last(repo: icechunk.Repository) -> Entry | None:
    """The newest published snapshot."""
    return _tagged(repo, newest(repo))


def newest(repo: icechunk.Repository) -> int:
    """Number of the newest revision, 0 before the first.

    It is what ``main`` says, or a later one where somebody else committed there. Where that has no tag (a run was
    killed before it gave one, or nothing is published), the tags are listed.
    """
    number = _said(repo)
    if tagged(repo, f"r{number}") is None:
        return max(_numbers(repo), default=0)
    while tagged(repo, f"r{number + 1}") is not None:
        number += 1
    return number


def names(repo: icechunk.Repository) -> str:
    """Tags of the published snapshots, for a message."""
    found = [f"r{number}" for number in _numbers(repo)]
    return ", ".join(found if len(found) < 10 else [found[0], "...", found[-1]]) or "none"


def tagged(repo: icechunk.Repository, tag: str) -> str | None:
    """Snapshot of a tag, None where there is no such tag."""
    try:
        return str(repo.lookup_tag(tag))
    except icechunk.IcechunkError as error:
        if _NO_REF.search(str(error)):
            return None
        raise


def _said(repo: icechunk.Repository) -> int:
    """Number of the revision that ``main`` says it is; 0 where it says none."""
    group = root(repo)
    named = _TAG.fullmatch(str(group.attrs.get("revision"))) if group is not None else None
    return int(named[1]) if named else 0


def _numbers(repo: icechunk.Repository, count: int | None = None) -> list[int]:
    """Numbers of all tags, or the last `count` numbers, ascending."""
    if count is None:
        return sorted(int(named[1]) for tag in repo.list_tags() if (named := _TAG.fullmatch(tag)))
    end = newest(repo) + 1
    return list(range(max(end - count, 1), end))


def _tagged(repo: icechunk.Repository, number: int) -> Entry | None:
    snapshot = tagged(repo, f"r{number}")
    return _entry(f"r{number}", repo.lookup_snapshot(snapshot)) if snapshot else None


def _entry(name: str, info: icechunk.SnapshotInfo) -> Entry:
    return Entry(name, info.id, info.written_at.astimezone(UTC), info.message, info.metadata or {})


# ---- what a run does to it ----


@dataclass(frozen=True)
class State:
    """Number of the newest revision, 0 before the first, and the candidates that the release gate stopped."""

    newest: int
    held: list[Entry]

    @property
    def overtaken(self) -> list[str]:
        """Branches that go with the next publication; kept, since a list of branches reads all tags as well."""
        return [entry.name for entry in self.held]


def clean(repo: icechunk.Repository, before: datetime | None = None, dead: str = "") -> State:
    """Finish or undo what a killed run left: tag a published ``main``, drop stale candidates and their chunks.

    Parameters
    ----------
    before : candidates written since then are left, for another machine may be writing them; None leaves none.
    dead : a candidate that is dropped all the same, for its run is known to have ended.
    """
    number, head = newest(repo), repo.lookup_branch("main")
    if root(repo) is not None and head not in (tagged(repo, f"r{number}"), tagged(repo, f"r{_said(repo)}")):
        number += 1
        _tag(repo, f"r{number}", head)
    branches = repo.list_branches()
    stale, kept = _begun(repo, branches, before) | ({dead} & branches), held(repo, branches)
    if any(entry.metadata.get("base") != head for entry in kept):  # killed between the publication and this
        stale, kept = stale | {entry.name for entry in kept}, []
    drop(repo, stale, before)
    return State(number, kept)


def _begun(repo: icechunk.Repository, branches: Collection[str], before: datetime | None) -> set[str]:
    """Candidates, those alone that were written before a time where there is one."""
    names = {name for name in branches if name.startswith(CANDIDATE)}
    if before is None:
        return names
    return {name for name in names if next(iter(repo.ancestry(branch=name))).written_at <= before}


def others(place: Location) -> datetime | None:
    """Time before which nobody elsewhere is writing to a place any more; None where the lock says so."""
    return datetime.now(UTC) - OTHERS if isinstance(place, S3) else None


def drop(repo: icechunk.Repository, branches: Collection[str], before: datetime | None = None) -> None:
    """Delete some branches, those that are still there, and the chunks from `before` (now) that nothing else needs."""
    for branch in sorted(branches):
        log.info("dropping the unpublished candidate %s", branch)
        try:
            repo.delete_branch(branch)
        except icechunk.IcechunkError as error:  # by a former try of the same publication, or by another host
            if not _NO_REF.search(str(error)):
                raise
    if branches:
        repo.garbage_collect(before or datetime.now(UTC))


def move_main(repo: icechunk.Repository, head: str, base: str, where: str, tag: str) -> None:
    """Make a snapshot what readers see, in one step, and tag it.

    Raises
    ------
    ProductError
        When ``main`` is no longer at `base`.
    """
    try:
        repo.reset_branch("main", head, from_snapshot_id=base)
    except icechunk.IcechunkError as error:
        found = repo.lookup_branch("main")
        if found == base:  # nobody moved it: what the error says is the reason
            raise
        if found != head:  # where it is at `head`, this was done before, and its answer was lost
            raise ProductError(f"{where}: main moved since the candidate began; run it again") from error
    _tag(repo, tag, head)


def _tag(repo: icechunk.Repository, tag: str, head: str) -> None:
    """Tag a snapshot, unless a run that came just then has finished that."""
    try:
        repo.create_tag(tag, head)
    except icechunk.IcechunkError:
        if tagged(repo, tag) != head:
            raise
