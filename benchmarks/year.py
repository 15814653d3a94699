"""A real year from its zips to published monthly NetCDF, by each number of workers, and to an S3 store.

`aqnet run` makes hourly PM2.5 of 2019 in China at 105-125E, 32-45N, 0.1 degree, every variable, as an operator would.
``make year`` prints wall time, processor time, memory by process, and whether all cubes are the same, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import xarray as xr
import zarr

from benchmarks import seaweed
from pipeline import output
from pipeline.cube import repository
from pipeline.location import located

AQNET = Path(sys.executable).with_name("aqnet")
#: The archive's days are those of Beijing: it ends at 2019-12-31T15 UTC.
START, END = "2019-01-01", "2019-12-31T16"
BBOX = ("105", "32", "125", "45")
#: Hours of an array that are compared at a time.
PIECE = 720
MIB = 2**20


@dataclass
class Measured:
    """What a run took: seconds of wall and processors, MiB of the main process, its largest child, all together."""

    name: str
    status: int
    wall: float
    processors: float
    main: float
    worker: float
    together: float
    netcdf: int = 0
    netcdf_mib: float = 0.0


class Watch(threading.Thread):
    """Sample the resident memory of a process and its children, twice a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peaks, self.together = psutil.Process(pid), defaultdict[int, int](int), 0

    def run(self) -> None:
        """Sample until the process has ended."""
        while self.root.is_running() and self.root.status() != psutil.STATUS_ZOMBIE:
            now = dict(self._resident())
            for pid, size in now.items():
                self.peaks[pid] = max(self.peaks[pid], size)
            self.together = max(self.together, sum(now.values()))
            time.sleep(0.5)

    def _resident(self) -> Iterator[tuple[int, int]]:
        try:
            for process in (self.root, *self.root.children(recursive=True)):
                yield process.pid, process.memory_info().rss
        except psutil.NoSuchProcess:
            return


def measure(name: str, words: list[str], log: Path, environment: Mapping[str, str]) -> Measured:
    """Run a command to its end."""
    before, began = os.times(), time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=dict(environment))
        watch = Watch(process.pid)
        watch.start()
        status = process.wait()
    wall, after = time.monotonic() - began, os.times()
    watch.join()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    children = [size for pid, size in watch.peaks.items() if pid != process.pid]
    peaks = [size / MIB for size in (watch.peaks[process.pid], max(children, default=0), watch.together)]
    return Measured(name, status, wall, used, *peaks)


@contextmanager
def store(kind: str, folder: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Words and environment of a run whose cube lies in its output folder, or in a bucket."""
    if kind != "s3":
        yield [], dict(os.environ)
        return
    with seaweed.serving(folder / "weed") as url:
        os.environ.update(seaweed.environment(url))
        yield ["--store", f"s3://{seaweed.BUCKET}/year"], dict(os.environ)


def make(kind: str, workers: int, data: Path, folder: Path, period: tuple[str, str]) -> tuple[Measured, dict[str, str]]:
    """Make the year once: what it took, and a digest of each array."""
    name, out = f"{kind}, {workers} workers", folder / f"{kind}-{workers}"
    words = [str(AQNET), "run", "--source", "cnemc", "--input", str(data), "--truncated", "keep", "--domain", "year"]
    words += ["--start", period[0], "--end", period[1], "--bbox", *BBOX, "--workers", str(workers), "--out", str(out)]
    with store(kind, folder) as (more, environment):
        found = measure(name, words + more, folder / f"{kind}-{workers}.log", environment)
        if found.status:
            raise SystemExit(f"{name}: exit status {found.status}: {folder / f'{kind}-{workers}.log'}")
        files = list((out / output.PRODUCTS).glob("*.nc"))
        found.netcdf, found.netcdf_mib = len(files), sum(file.stat().st_size for file in files) / MIB
        for file in files:
            with xr.open_dataset(file) as opened:
                assert opened.sizes["time"] > 0
        return found, digests(more[1] if more else str(out / output.CUBE))


def digests(place: str) -> dict[str, str]:
    """SHA-256 of each array of a cube, hours in order."""
    repo = repository.open_existing(located(place))
    group = zarr.open_group(repo.readonly_session("main").store, mode="r")
    return {name: _digest(group[name]) for name in sorted(group.array_keys())}


def _digest(array: zarr.Array) -> str:
    told, hours = hashlib.sha256(str(array.shape).encode()), array.shape[0] if array.shape else 0
    for first in range(0, hours, PIECE):
        told.update(np.ascontiguousarray(array[first : first + PIECE]).tobytes())
    return told.hexdigest() if hours else hashlib.sha256(np.asarray(array[...]).tobytes()).hexdigest()


def row(found: Measured) -> str:
    """A line of the table."""
    figures = f"{found.wall:,.0f} s | {found.processors:,.0f} s | {found.main:,.0f} | {found.worker:,.0f}"
    return f"| {found.name} | {figures} | {found.together:,.0f} | {found.netcdf} of {found.netcdf_mib:,.0f} MiB |"


HEAD = (
    "| cube in, by | wall | of processors | main process, MiB | largest other process | all together | NetCDF files |",
    "|---|---|---|---|---|---|---|",
)


def main() -> None:
    """Make the year in each way that is asked for and compare."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.year", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the CNEMC archive: china_sites_YYYYMM.zip, stations.csv")
    parser.add_argument("--way", action="append", default=[], help="folder:2, folder:1, s3:2 (those three)")
    parser.add_argument("--start", default=START)
    parser.add_argument("--end", default=END)
    parser.add_argument("--folder", type=Path, default=Path("out/year"), help="where to work; it is kept")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    print("\n".join(HEAD), flush=True)
    made = {}
    for way in given.way or ["folder:2", "folder:1", "s3:2"]:
        kind, workers = way.split(":")
        found, made[way] = make(kind, int(workers), given.data, given.folder.resolve(), (given.start, given.end))
        print(row(found), flush=True)
        (given.folder / f"{kind}-{workers}.json").write_text(json.dumps({**asdict(found), "arrays": made[way]}))
    first = next(iter(made.values()))
    same = [name for name in first if all(one.get(name) == first[name] for one in made.values())]
    print(f"\n{len(same)} of {len(first)} arrays are the same in all {len(made)}, byte for byte")
    raise SystemExit(len(same) != len(first))


if __name__ == "__main__":
    main()
