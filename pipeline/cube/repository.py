"""The Icechunk repository of a cube: its branches and tags, and what each snapshot says of itself.

``main`` is what readers see, ``r1``, ``r2`` ... are its published snapshots. ``candidate-<run>`` is what a run is
writing; ``held-<run>`` is a candidate that the release gate stopped, kept for inspection until the next publication or
the next one that is stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import icechunk
import zarr

from pipeline.cube import store
from pipeline.cube.layout import Group
from pipeline.errors import ProductError
from pipeline.location import S3, Location

log = logging.getLogger("aqnet")

CANDIDATE, HELD = "candidate-", "held-"

#: In a bucket a run elsewhere, whose lock is not seen here, may be writing what is younger than this.
OTHERS = timedelta(days=7)


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


def root(repo: icechunk.Repository) -> Group | None:
    """Root group of ``main``, or None before the first publication."""
    try:
        return zarr.open_group(repo.readonly_session("main").store, mode="r")
    except FileNotFoundError:
        return None


# ---- what there is ----


def published(repo: icechunk.Repository) -> list[Entry]:
    """Published snapshots, oldest first."""
    return [_entry(tag, next(iter(repo.ancestry(tag=tag)))) for tag in _in_order(repo.list_tags())]


def held(repo: icechunk.Repository) -> list[Entry]:
    """Candidates that the release gate stopped, oldest first."""
    branches = [branch for branch in repo.list_branches() if branch.startswith(HELD)]
    return sorted((_entry(name, next(iter(repo.ancestry(branch=name)))) for name in branches), key=lambda e: e.written)


def last(repo: icechunk.Repository) -> Entry | None:
    """The newest published snapshot."""
    tags = _in_order(repo.list_tags())
    return _entry(tags[-1], next(iter(repo.ancestry(tag=tags[-1])))) if tags else None


def _in_order(tags: set[str]) -> list[str]:
    return sorted(tags, key=lambda tag: int(tag[1:]))


def _entry(name: str, info: icechunk.SnapshotInfo) -> Entry:
    return Entry(name, info.id, info.written_at.astimezone(UTC), info.message, info.metadata or {})


# ---- what a run does to it ----


def clean(repo: icechunk.Repository, before: datetime | None = None, dead: str = "") -> None:
    """Finish or undo what a killed run left: tag a published ``main``, drop stale candidates and their chunks.

    Parameters
    ----------
    before : candidates written since then are left, for another machine may be writing them; None leaves none.
    dead : a candidate that is dropped all the same, for its run is known to have ended.
    """
    tags, head = repo.list_tags(), repo.lookup_branch("main")
    if root(repo) is not None and head not in {repo.lookup_tag(tag) for tag in tags}:
        _tag(repo, f"r{len(tags) + 1}", head)
    drop(repo, CANDIDATE, _younger(repo, before) - {dead}, before)
    if any(entry.metadata.get("base") != head for entry in held(repo)):
        drop(repo, HELD, before=before)  # killed between the publication and this


def _younger(repo: icechunk.Repository, before: datetime | None) -> set[str]:
    """Candidates that were written since a time."""
    if before is None:
        return set()
    names = [name for name in repo.list_branches() if name.startswith(CANDIDATE)]
    return {name for name in names if next(iter(repo.ancestry(branch=name))).written_at > before}


def others(place: Location) -> datetime | None:
    """Time before which nobody elsewhere is writing to a place any more; None where the lock says so."""
    return datetime.now(UTC) - OTHERS if isinstance(place, S3) else None


def drop(repo: icechunk.Repository, kind: str, keep: Collection[str] = (), before: datetime | None = None) -> None:
    """Delete the branches of a kind but some, and the chunks from `before` (now) that nothing else needs."""
    stale = sorted(name for name in repo.list_branches() if name.startswith(kind) and name not in keep)
    for branch in stale:
        log.info("dropping the unpublished candidate %s", branch)
        repo.delete_branch(branch)
    if stale:
        repo.garbage_collect(before or datetime.now(UTC))


def move_main(
    repo: icechunk.Repository, head: str, base: str, where: str, tag: str, before: datetime | None = None
) -> None:
    """Make a snapshot what readers see, in one step, and tag it; then no held candidate fits any more.

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
    drop(repo, HELD, before=before)


def _tag(repo: icechunk.Repository, tag: str, head: str) -> None:
    """Tag a snapshot, unless a run that came just then has finished that."""
    try:
        repo.create_tag(tag, head)
    except icechunk.IcechunkError:
        if tag not in repo.list_tags() or repo.lookup_tag(tag) != head:
            raise
