"""Publications of a small cube, seen by a reader in a loop and killed at random moments.

A writer publishes constant fields, another constant each time, with a shard a day; whoever reads two values, or values
that do not belong to the revision, has seen half a publication. `make publications` prints how many readings and kills
there were and how many were not whole.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from tempfile import TemporaryDirectory

import icechunk
import numpy as np
import xarray as xr

from pipeline.contract import FIELDS
from pipeline.cube import layout, reader, write
from pipeline.grid import Grid

GRID = Grid((119.0, 36.0, 121.0, 38.0), 0.25)
START, DAYS = layout.to_hours("2019-01-01"), 3
_CONCENTRATIONS = ("pm2p5", "pm2p5_p05", "pm2p5_p50", "pm2p5_p95")


def block(day: int, value: float) -> xr.Dataset:
    """One day on which every concentration is `value`, at sea too."""
    hours = np.arange(24) + START + 24 * day
    shape = (24, *GRID.shape)
    data = {}
    for spec in FIELDS:
        fill = value if spec.name in _CONCENTRATIONS else 1
        values = np.full(shape if spec.gridded else 24, 0 if spec.name in ("stream", "quality_flag") else fill)
        data[spec.name] = (spec.dims(), values.astype(spec.dtype))
    return xr.Dataset(data, {"time": hours.astype("M8[h]").astype("M8[ns]"), "lat": GRID.lat, "lon": GRID.lon})


def publish(path: Path, value: float, days: int = DAYS) -> str | None:
    """One run: a commit a day, then publication with a record of the value."""
    first, last = (np.datetime64(START + 24 * day, "h") for day in (0, days))
    with write.begin(path, GRID, first, last, {}) as candidate:
        for day in range(days):
            write.write_block(candidate, block(day, value))
            candidate.commit(f"day {day}")
        return write.publish(candidate, {"reason": f"value {value:g}", "value": value})


def read(path: Path) -> str | None:
    """What is wrong with what a reader sees now: None when all of it is one revision."""
    cube = reader.open_cube(path)
    said = str(cube.attrs["revision_reason"])
    seen = {f"value {value:g}" for name in _CONCENTRATIONS for value in np.unique(cube[name].values)}
    hours = {int(count) for count in np.unique(cube["revision"].values)}
    wanted = int(str(cube.attrs["revision"])[1:])
    if seen == {said} and hours == {wanted} and cube.sizes["time"] == 24 * DAYS:
        return None
    return f"{cube.attrs['revision']} ({said}): values {sorted(seen)}, publications {sorted(hours)}"


# ---- a reader in a loop ----


@dataclass(frozen=True)
class Readings:
    """How many readings there were during how many publications, and what was wrong with those that were not whole."""

    publications: int
    readings: int
    revisions: int
    wrong: list[str]


def watched(path: Path, publications: int) -> Readings:
    """Publish so many times while another process reads."""
    context = multiprocessing.get_context("spawn")
    publish(path, 1)
    done, found = context.Event(), context.Queue()
    watcher = context.Process(target=_keep_reading, args=(path, done, found))
    watcher.start()
    found.get()  # its first reading
    for number in range(2, publications + 2):
        publish(path, number)
    done.set()
    readings, revisions, wrong = found.get()
    watcher.join()
    return Readings(publications, readings, revisions, wrong)


def _keep_reading(path: Path, done: Event, found: multiprocessing.Queue[object]) -> None:
    seen: set[str] = set()
    wrong: list[str] = []
    readings = 0
    while not done.is_set():
        problem = read(path)
        seen.add(str(reader.open_cube(path).attrs["revision"]))
        wrong += [problem] if problem else []
        readings += 1
        if readings == 1:
            found.put("reading")
    found.put((readings, len(seen), wrong))


# ---- kills ----


@dataclass(frozen=True)
class Kills:
    """How many runs were killed, in how many the new revision was out, and what was wrong afterwards."""

    killed: int
    ended: int
    published: int
    wrong: list[str]


def killed(path: Path, kills: int, seed: int = 1) -> Kills:
    """Kill so many runs at random moments; after each, read, and let the next run complete."""
    _kill_after(path, 1, None)  # which starts the server of forks, too
    usual = _timed(path, 2)
    rng = np.random.default_rng(seed)
    count, ended, published, wrong = 0, 0, 0, []
    values = itertools.count(3)
    while count < kills:
        value = next(values)
        before = reader.open_cube(path).attrs["revision"]
        # A process that is new to the cube takes longer than this one, which opened it before.
        status = _kill_after(path, value, float(rng.uniform(0, 4 * usual)))
        count, ended = count + (status == -signal.SIGKILL), ended + (status == 0)
        if problem := read(path) or (None if status in (0, -signal.SIGKILL) else f"exit status {status}"):
            wrong.append(f"after a kill: {problem}")
        published += reader.open_cube(path).attrs["revision"] != before
        usual = _timed(path, value)  # the same run again: completes what was killed, or finds nothing to do
        if problem := read(path) or _unclean(path, value):
            wrong.append(f"after the next run: {problem}")
    return Kills(count, ended, published, wrong)


def _timed(path: Path, value: float) -> float:
    """Publish, and return how long that takes at the moment, seconds."""
    began = time.perf_counter()
    publish(path, value)
    return time.perf_counter() - began


def _kill_after(path: Path, value: float, seconds: float | None) -> int:
    """Start a run as a process of its own and kill it after a time, if one is given; its exit status."""
    # Forks lose the threads of Icechunk, so they come from a process that never used it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.cube.write"])
    started = context.Event()
    process = context.Process(target=_run, args=(path, value, started))
    process.start()
    started.wait()
    process.join(seconds)
    if process.pid is not None and process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return int(process.exitcode or 0)


def _run(path: Path, value: float, started: Event) -> None:
    started.set()
    publish(path, value)


def _unclean(path: Path, value: float) -> str | None:
    """What the cube holds besides whole revisions of ascending number, or that its last is not the run's."""
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))
    entries = reader.history(path)
    if repo.list_branches() != {"main"} or [e["revision"] for e in entries] != [
        f"r{k + 1}" for k in range(len(entries))
    ]:
        return f"branches {sorted(repo.list_branches())}, tags {[entry['revision'] for entry in entries]}"
    if entries[-1]["metadata"].get("value") != value:
        return f"the record of {entries[-1]['revision']} says {entries[-1]['metadata']}, not {value}"
    return None


def main() -> None:
    """Print what the reader saw and what the kills left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publications", type=int, default=100)
    parser.add_argument("--kills", type=int, default=50)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        seen = watched(Path(folder) / "watched.icechunk", asked.publications)
        what = f"{seen.publications} publications, {seen.readings} readings of {seen.revisions} revisions"
        print(f"{what}, {len(seen.wrong)} not whole", flush=True)
        found = killed(Path(folder) / "killed.icechunk", asked.kills)
        what = f"{found.killed} runs killed, {found.ended} ended first, {found.published} of all had published"
        print(f"{what}; {len(found.wrong)} wrong")
        for problem in seen.wrong + found.wrong:
            print(f"  {problem}")


if __name__ == "__main__":
    main()
