"""What a cube costs after years of revisions: `python -m benchmarks.revisions`.

Two things grow. Each publication leaves a commit and a tag: an hourly cube has 87,600 of them in ten years. Each day
lengthens the lists of chunks, of which a commit writes those that changed. The first table has a repository of few
hours and ever more revisions, made with Icechunk itself (each with a record as long as that of a run with 590 stations;
beyond 10,000 several share a commit); the second a cube of few revisions and ever more days. Every operation opens the
repository anew, as commands do. Times are processor seconds, so that a machine with other work gives them too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import icechunk
import numpy as np
import zarr

from benchmarks.publications import GRID, START, block
from pipeline.cube import layout, reader, repository, revisions, write
from pipeline.cube.layout import FILL

STATIONS = 590
#: Revisions that have a commit of their own; making one takes tens of milliseconds. More share those of the others.
COMMITS = 10_000
#: Parts of an Icechunk repository on disk.
PARTS = ("refs", "snapshots", "transactions", "manifests", "chunks")


def record(run: str, base: str, stations: int = STATIONS) -> dict[str, Any]:
    """As long as what a run says of itself in its commit."""
    check = {"name": "observations", "expected": "at least half of the last", "found": "20 (median) after 20 in r1"}
    row = {"method": "AQ-Net", "mae_median": 10.0, "rmse_mean": 20.0, "coverage_90": 0.9, "crps": 9.0, "pairs": 5e4}
    return {
        "made": {"run_id": run, "config": {"source": "cnemc", "start": "2019-01-01"}, "inputs": {"a.csv": "f" * 64}},
        "reason": "1 hours appended",
        "hours": {"start": "2019-01-01T00", "end": "2019-01-02T00", "last": "2019-01-02T00"},
        "scores": [row | {"period": "2019-01"}, row | {"method": "log_kriging", "period": "2019-01"}],
        "stations": {f"cnemc:{1000 + n}A": [105 + n / 30, 32 + n / 50] for n in range(stations)},
        "checks": [check | {"passed": True, "final": False}] * 16,
        "base": base,
    }


def publish(path: Path, value: float, day: int = 0) -> dict[str, float]:
    """One run over a day, as `aqnet run` does it; seconds of its parts."""
    first, last = (np.datetime64(START + 24 * n, "h") for n in (day, day + 1))
    took: dict[str, float] = {}
    with timed(took, "begin"):
        candidate = write.begin(path, GRID, first, last, {"flow_run_id": f"value-{value:g}-{day}"})
    with candidate:
        with timed(took, "write a day"):
            write.write_block(candidate, block(day, value))
            candidate.commit("day")
        said = record("bench", candidate.base)
        with timed(took, "publish"):
            write.publish(candidate, said)
    return took


@contextmanager
def timed(took: dict[str, float], name: str) -> Iterator[None]:
    began = time.process_time()
    yield
    took[name] = time.process_time() - began


def seconds(call: Callable[[], object]) -> float:
    """Processor time of a call."""
    took: dict[str, float] = {}
    with timed(took, "call"):
        call()
    return took["call"]


def opened(path: Path) -> icechunk.Repository:
    return repository.open_existing(path)


def size(path: Path) -> dict[str, int]:
    """Bytes in each part of the repository, and how many files there are in all."""
    files = {part: [file for file in (path / part).rglob("*") if file.is_file()] for part in PARTS}
    return {part: sum(file.stat().st_size for file in found) for part, found in files.items()} | {
        "files": sum(map(len, files.values()))
    }


# ---- ever more revisions ----


def grow(path: Path, upto: int) -> float:
    """Add revisions, each with a changed attribute alone, up to a number of them; return seconds a revision."""
    repo = opened(path)
    head, first = repo.lookup_branch("main"), _newest(repo) + 1
    said, began = record("bench", head), time.process_time()
    for number in range(first, upto + 1):
        head = _commit(repo, number, said | {"base": head})
        repo.create_tag(f"r{number}", head)
    return (time.process_time() - began) / max(upto - first + 1, 1)


def tag_only(path: Path, upto: int) -> float:
    """Add tags that share the commits there are; only the newest revision has a commit of its own."""
    repo = opened(path)
    first, began = _newest(repo) + 1, time.process_time()
    commits = [info.id for info in repo.ancestry(branch="main")][:-1]
    for number in range(first, upto):
        repo.create_tag(f"r{number}", commits[number % len(commits)])
    base = repo.lookup_branch("main")
    repo.create_tag(f"r{upto}", _commit(repo, upto, record("bench", base)))
    return (time.process_time() - began) / (upto - first + 1)


def _newest(repo: icechunk.Repository) -> int:
    return int(str(repository.root(repo).attrs["revision"])[1:])


def _commit(repo: icechunk.Repository, number: int, said: dict[str, Any]) -> str:
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="r+").attrs["revision"] = f"r{number}"
    return str(session.commit(f"aqnet run bench-{number}", said))


def costs(path: Path, value: float, slow: bool = True) -> dict[str, float]:
    """Seconds of what runs and readers do to a repository."""
    repo = opened(path)
    reader.open_cube(path)  # imports what it needs
    found = {
        "open_cube": seconds(lambda: reader.open_cube(path)),
        "open_cube of a tag": seconds(lambda: reader.open_cube(path, "r1")),
        "newest record": seconds(lambda: repository.last(opened(path))),
        "list of branches": seconds(lambda: repo.list_branches()),
    }
    found |= publish(path, value)
    found["history of the last 100"] = seconds(lambda: revisions.as_text(revisions.history(path, 100)))
    if slow:
        found["history"] = seconds(lambda: revisions.as_text(revisions.history(path)))
        write.begin(path, GRID, np.datetime64(START, "h"), np.datetime64(START + 24, "h"), {}).close()  # dies
        found["begin after a kill"] = publish(path, value + 0.5)["begin"]
        found["collect garbage"] = seconds(lambda: opened(path).garbage_collect(datetime.now(UTC)))
    return found


def by_revisions(folder: Path, counts: list[int], slow: bool) -> list[dict[str, Any]]:
    """A row a number of revisions."""
    path, rows = folder / "revisions.icechunk", []
    publish(path, 1)
    for number, count in enumerate(counts):
        each = grow(path, count) if count <= COMMITS else tag_only(path, count)
        kept = size(path)
        rows.append({"revisions": count, "a commit": each} | costs(path, 10 + number, slow) | kept)
        print(_line(rows[-1]), flush=True)
    return rows


# ---- ever more hours ----


def lengthen(path: Path, days: int) -> None:
    """Fill the cube up to so many days in one commit."""
    repo = opened(path)
    session = repo.writable_session("main")
    group, rng = zarr.open_group(session.store, mode="r+"), np.random.default_rng(days)
    known = group["time"].shape[0]
    layout.extend(group, np.arange(START, START + 24 * days))
    for name, array in group.arrays():
        dims = array.metadata.dimension_names or ("",)
        if dims[0] != "time" or name in ("time", "time_bnds"):
            continue
        new = (24 * days - known, *array.shape[1:])
        array[known:] = rng.gamma(2, 30, new).astype(array.dtype) if name not in FILL else np.ones(new, array.dtype)
    head = session.commit("years", record("bench", repo.lookup_branch("main")))
    repo.create_tag(f"r{len(repo.list_tags()) + 1}", head)


def by_days(folder: Path, counts: list[int]) -> list[dict[str, Any]]:
    """A row a number of days: what one more publication takes and leaves on the disk."""
    rows = []
    for days in counts:
        path = folder / f"days-{days}.icechunk"
        publish(path, 1)
        lengthen(path, days)
        publish(path, 2, days - 1)
        before, took = size(path), publish(path, 3, days - 1)
        rows.append({"days": days} | took | {part: now - before[part] for part, now in size(path).items()})
        print(_line(rows[-1]), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    return "  ".join(f"{name} {_cell(value)}" for name, value in row.items())


def _cell(value: float) -> str:
    return f"{value:,d}" if isinstance(value, int) else f"{value:.4f}"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a column a row: seconds and bytes."""
    lines = [f"| {name} | " + " | ".join(_cell(row[name]) for row in rows) + " |" for name in rows[0]]
    return "\n".join([lines[0], "|" + "---|" * (len(rows) + 1), *lines[1:]])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--revisions", type=int, nargs="*", default=[100, 1000], help="numbers of revisions, ascending")
    parser.add_argument("--days", type=int, nargs="*", default=[30, 365], help="lengths of the cube")
    parser.add_argument("--folder", type=Path, help="where the repositories lie and stay; a temporary one by default")
    parser.add_argument("--quick", action="store_true", help="no whole history, no kill")
    asked = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        revised = by_revisions(folder, asked.revisions, not asked.quick) if asked.revisions else []
        lengthened = by_days(folder, asked.days) if asked.days else []
    for rows in (revised, lengthened):
        if rows:
            print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
