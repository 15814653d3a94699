"""The Icechunk repository of a cube: its branches and tags, and what each snapshot says of itself.

``main`` is what readers see, ``r1``, ``r2`` ... are its published snapshots. ``candidate-<run>`` is what a run is
writing; ``held-<run>`` is a candidate that the release gate stopped, kept for inspection until the next publication or
the next one that is stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import icechunk
import zarr

from pipeline.cube.layout import Group
from pipeline.errors import ProductError

log = logging.getLogger("aqnet")

CANDIDATE, HELD = "candidate-", "held-"


@dataclass(frozen=True)
class Entry:
    """A snapshot by the tag or branch that leads to it; `written` is UTC, `metadata` what its run said of it."""

    name: str
    snapshot: str
    written: datetime
    message: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def storage(path: Path) -> icechunk.Storage:
    """Storage on the local disk. Icechunk warns that it cannot guard concurrent commits there; `atomic.lock` does."""
    icechunk.set_logs_filter("error")
    return icechunk.local_filesystem_storage(str(path))


def open_existing(path: Path) -> icechunk.Repository:
    """Open a repository; ProductError where there is none."""
    if not (path.is_dir() and icechunk.Repository.exists(storage(path))):
        raise ProductError(f"{path}: no cube here; expected the folder of an Icechunk repository")
    return icechunk.Repository.open(storage(path))


def root(repo: icechunk.Repository) -> Group | None:
    """Root group of ``main``, or None before the first publication."""
    store = repo.readonly_session("main").store
    try:
        return zarr.open_group(store, mode="r")
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


def clean(repo: icechunk.Repository) -> None:
    """Finish or undo what a killed run left: tag a published ``main``, drop stale candidates and their chunks."""
    tags, head = repo.list_tags(), repo.lookup_branch("main")
    if root(repo) is not None and head not in {repo.lookup_tag(tag) for tag in tags}:
        repo.create_tag(f"r{len(tags) + 1}", head)
    drop(repo, CANDIDATE)
    if any(entry.metadata.get("base") != head for entry in held(repo)):
        drop(repo, HELD)  # killed between the publication and this


def drop(repo: icechunk.Repository, kind: str, keep: str = "") -> None:
    """Delete the branches of a kind but one, and the chunks that nothing else needs."""
    stale = sorted(name for name in repo.list_branches() if name.startswith(kind) and name != keep)
    for branch in stale:
        log.info("dropping the unpublished candidate %s", branch)
        repo.delete_branch(branch)
    if stale:
        repo.garbage_collect(datetime.now(UTC))


def move_main(repo: icechunk.Repository, head: str, base: str, where: str, tag: str) -> None:
    """Make a snapshot what readers see, in one step, and tag it; then no held candidate fits any more.

    Raises
    ------
    ProductError
        When ``main`` is no longer at `base`.
    """
    try:
        repo.reset_branch("main", head, from_snapshot_id=base)
    except icechunk.IcechunkError as error:
        raise ProductError(f"{where}: main moved since the candidate began; run it again") from error
    repo.create_tag(tag, head)
    drop(repo, HELD)
