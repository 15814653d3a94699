"""What runs make: the output folder, its space, the cube with its revisions, and what runs that ended badly left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import output
from pipeline.doctor.check import Check, Subject, failure, ok, warning
from pipeline.doctor.environment import can_write
from pipeline.doctor.locks import describe, holder
from pipeline.errors import ConfigError
from pipeline.location import Location

if TYPE_CHECKING:
    import icechunk

#: Bytes of a cell and hour on the disk, cube and NetCDF together, at most: 10 to 30 were measured, the more the smaller
#: the grid. An interim hour is written once more as final, and a candidate stands beside what is published.
CELL_HOUR, TIMES, MONTH = 30, 2, 744
#: Free space below which nothing should be begun, bytes.
LEAST = 200 * 2**20
_REACH = "mend store, AWS_ENDPOINT_URL or credentials (docs/how-to/keep-the-cube-in-s3.md)"
_RESTORE = "restore it (docs/how-to/runbook.md#restore)"


def output_folder(subject: Subject) -> Iterator[Check]:
    """Write a file to the output folder, which tells more than its mode bits."""
    name, out = "output folder", subject.out.absolute()
    if out.exists() and not out.is_dir():
        yield failure(name, f"{out} is no folder", "set `out` to a folder")
    elif can_write(out):
        yield ok(name, f"{out} {'can be written' if out.exists() else 'can be made'}")
    else:
        full = " (no space left)" if _disk(out).free < LEAST else ""
        yield failure(
            name, f"{out} cannot be written{full}", "give the user of the runs the right to write, or make space"
        )


def _disk(path: Path) -> Any:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path)


def space(subject: Subject) -> Iterator[Check]:
    """Compare the free space with what the next month needs."""
    name, disk = "space", _disk(subject.out.absolute())
    needed, of = LEAST, "at least"
    if subject.config is not None:
        grid = subject.config.grid()
        cells = len(grid.y) * len(grid.x)
        needed, of = max(LEAST, cells * MONTH * CELL_HOUR * TIMES), f"the next month of {cells:,} cells needs up to"
    found = f"{_size(disk.free)} free of {_size(disk.total)}; {of} {_size(needed)}"
    advice = "make space (docs/how-to/runbook.md#disk-full)"
    if disk.free < needed:
        yield failure(name, found, advice)
    elif disk.free < 3 * needed or disk.free < 0.05 * disk.total:
        yield warning(name, found, advice)
    else:
        yield ok(name, found)


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def published(subject: Subject) -> Iterator[Check]:
    """Open what readers see, read its last hour, and compare the tags of its revisions with it."""
    from pipeline.cube import store

    try:
        path = _cube(subject)
        if not store.exists(path) and not (isinstance(path, Path) and path.exists()):
            yield ok("cube", f"none at {path} yet; the first run begins it")
            return
        yield from _published(path)
    except Exception as problem:
        where = (subject.config and subject.config.store) or subject.out / output.CUBE
        found = f"{where}: {type(problem).__name__}: {' '.join(str(problem).split())}"
        yield failure("cube", found, _REACH if isinstance(problem, ConfigError) else _RESTORE)


def _cube(subject: Subject) -> Location:
    return output.cube(subject.out, subject.config.store if subject.config else None)


def _published(path: Location) -> Iterator[Check]:
    import numpy as np

    from pipeline.cube import repository

    repo = repository.open_existing(path)
    group, last = repository.root(repo), repository.last(repo)
    if group is None or last is None:
        yield ok("cube", f"{path}: nothing is published yet")
        return
    made = np.flatnonzero(group["stream"][:] >= 0)
    hour = np.datetime64(int(group["time"][int(made[-1])]), "h")
    covered = np.isfinite(group["pm2p5"][int(made[-1])]).mean()  # a chunk that is gone is found out here
    ago = f"published {last.written:%Y-%m-%dT%H:%MZ}"
    yield ok("cube", f"{path}: {last.name}, {ago}, last hour {hour}, which {covered:.0%} of the cells have")
    yield from _tags(repo)


def _tags(repo: icechunk.Repository) -> Iterator[Check]:
    """Tags are r1, r2 ... without gaps, and the last one is what readers see."""
    numbers = sorted(int(tag[1:]) for tag in repo.list_tags())
    missing = sorted(set(range(1, numbers[-1] + 1)) - set(numbers))
    if missing:
        yield warning("revisions", f"r{missing[0]} is gone", "somebody deleted a tag: its values can be read no more")
    elif repo.lookup_tag(f"r{numbers[-1]}") != repo.lookup_branch("main"):
        found = f"readers see a snapshot that is not r{numbers[-1]}"
        yield warning("revisions", found, "a run was killed as it published: the next run gives it its tag")
    else:
        yield ok("revisions", f"r1 to r{numbers[-1]}, readers see the last")


def lock(subject: Subject) -> Iterator[Check]:
    """Say who is writing the cube."""
    held = holder(subject.out / output.CUBE)
    if held is None:
        yield ok("lock", "no run of this machine is writing the cube")
    else:
        yield warning("lock", f"held by {describe(held)}", "a run started now ends at once: wait for it, or stop it")


def leftovers(subject: Subject) -> Iterator[Check]:
    """Look for candidates that wait for a person, and for what killed runs left."""
    from pipeline.cube import repository

    try:
        repo = repository.open_existing(_cube(subject))
        branches = sorted(set(repo.list_branches()) - {"main"})
    except Exception:  # `published` has told
        return
    held = [name for name in branches if name.startswith(repository.HELD)]
    if held:
        run = held[0].removeprefix(repository.HELD)
        advice = (
            f"look at it with `aqnet history`, then mend the input or `aqnet accept {run}` (docs/how-to/runbook.md)"
        )
        yield warning("held candidate", f"{held[0]}: the release gate stopped it, nothing newer is published", advice)
    stale = [name for name in branches if name.startswith(repository.CANDIDATE)]
    parts = [p.name for folder in (subject.out, subject.out / output.PRODUCTS) for p in folder.glob(".*.part")]
    if (stale or parts) and holder(subject.out / output.CUBE) is None:
        found = f"of killed runs: {', '.join([*stale, *parts][:3])}"
        yield warning("leftovers", found, "nothing to do: the next run removes them")
    elif not held:
        yield ok("leftovers", f"none, as of {datetime.now(UTC):%H:%MZ}")
