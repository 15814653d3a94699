"""Where a disturbed run happens: a SIMULATED record, a cube with its first day, and what an undisturbed run makes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from benchmarks.matrix import child
from pipeline import output, verify
from pipeline.cube import reader, repository
from pipeline.location import Location
from pipeline.twin.simulate import simulate

BBOX = (110.0, 36.0, 112.0, 38.0)
DAYS = ("2019-12-01", "2019-12-02", "2019-12-03")
OUTLOOK_HOURS = 24

#: What may lie in an output folder beside what is offered: locks, and what runs under Prefect leave for Prometheus.
BESIDE = {f".{output.CUBE}.lock", f".{output.PRODUCTS}.lock", "metrics.prom", ".metrics.prom.lock"}


@dataclass(frozen=True)
class Reference:
    """What undisturbed runs left in a folder: one of the first period, then one of the second."""

    folder: Path
    days: tuple[str, str, str] = DAYS

    @property
    def record(self) -> Path:
        """Folder of the SIMULATED archive and station list."""
        return self.folder / "record"

    @property
    def first(self) -> Path:
        """Output folder after the first period."""
        return self.folder / "first"

    @property
    def second(self) -> Path:
        """Output folder after the second."""
        return self.folder / "second"

    def cubes(self) -> tuple[xr.Dataset, xr.Dataset]:
        """Both revisions, read."""
        return tuple(reader.open_cube(out / output.CUBE).load() for out in (self.first, self.second))  # type: ignore[return-value]


def prepare(folder: Path, days: tuple[str, str, str] = DAYS) -> Reference:
    """Make record and undisturbed runs in a folder, unless they are there."""
    made = Reference(folder, days)
    if (folder / "ready").exists():
        return made
    whole = int((np.datetime64(days[2]) - np.datetime64(days[0])) / np.timedelta64(1, "D"))
    simulate(made.record, start=days[0], days=whole, bbox=BBOX, n_stations=60)
    _undisturbed(made, made.first, 0)
    shutil.copytree(made.first, made.second)
    _undisturbed(made, made.second, 1)
    (folder / "ready").touch()
    return made


def _undisturbed(made: Reference, out: Path, period: int) -> None:
    run = child.forked(words(made.record, out, made.days[period:]), out.parent, out.parent / "undisturbed.log")
    if run.end():
        raise RuntimeError(f"an undisturbed run failed: {run.said()}")


def words(record: Path, out: Path, days: tuple[str, ...]) -> list[str]:
    """Options of `aqnet run` from the first day to the second."""
    options = {
        "--input": record / "archive",
        "--stations": record / "stations.csv",
        "--start": days[0],
        "--end": days[1],
        "--resolution": 0.25,
        "--outlook-hours": OUTLOOK_HOURS,
        "--domain": "matrix",
        "--out": out,
    }
    return [str(word) for pair in options.items() for word in pair] + ["--bbox", *map(str, BBOX)]


@dataclass(frozen=True)
class Place:
    """One cell's own copy of record and first day, in a folder of its own."""

    folder: Path
    reference: Reference

    @property
    def disk(self) -> Path:
        """Folder of the output folder, which a fault may put on a disk of its own."""
        return self.folder / "disk"

    @property
    def out(self) -> Path:
        """Output folder of the runs."""
        return self.disk / "out"

    @property
    def cube(self) -> Location:
        """The cube of record."""
        return output.cube(self.out)

    @property
    def environment(self) -> dict[str, str]:
        """What runs find in their environment."""
        return {}

    @property
    def beside(self) -> dict[str, str]:
        """What readers find in theirs."""
        return {}

    @property
    def record(self) -> Path:
        """Input of the runs."""
        return self.folder / "record"

    @property
    def words(self) -> list[str]:
        """Options of the run that is disturbed, and of the one that recovers."""
        return words(self.record, self.out, self.reference.days[1:])

    def fill(self) -> None:
        """Copy record and first day to their places."""
        shutil.copytree(self.reference.first, self.out)
        shutil.copytree(self.reference.record, self.record)


@dataclass(frozen=True)
class Left:
    """What is wrong with an output folder: hours lost and wrong beside the reference, and all else, in words."""

    lost: int
    wrong: int
    problems: list[str]


def compare(place: Place, wanted: xr.Dataset) -> Left:
    """Compare an output folder with the undisturbed one."""
    found = reader.open_cube(place.cube).load()
    lost, wrong = hours_that_differ(found, wanted)
    return Left(lost, wrong, [*_strangers(place.out), *_branches(place.cube), *_unverified(place.out)])


def hours_that_differ(found: xr.Dataset, wanted: xr.Dataset) -> tuple[int, int]:
    """Hours that are not there or were never produced, and hours with any other value."""
    hours = wanted["time"].values
    there = np.isin(hours, found["time"].values)
    common = hours[there]
    a, b = found.sel(time=common), wanted.sel(time=common)
    empty = (a["stream"].values == -1) & (b["stream"].values != -1)
    differs = np.zeros(len(common), bool)
    for name in b.data_vars:
        one, other = a[name].values, b[name].values
        same = (one == other) | ((one != one) & (other != other))
        differs |= ~same.reshape(len(common), -1).all(axis=1)
    return int((~there).sum() + empty.sum()), int((differs & ~empty).sum())


def _strangers(out: Path) -> list[str]:
    """Files that no run leaves when it ends well."""
    known = {output.CUBE, output.PRODUCTS, output.STORE, *BESIDE}
    here = [path.name for path in out.iterdir() if path.name not in known]
    below = [str(path.relative_to(out)) for path in (out / output.PRODUCTS).rglob(".*")]
    return [f"left over: {name}" for name in sorted(here + below)]


def _branches(cube: Location) -> list[str]:
    repo = repository.open_existing(cube)
    branches, tags = set(repo.list_branches()), [entry.name for entry in repository.published(repo)]
    wanted = [f"r{number + 1}" for number in range(len(tags))]
    problems = [f"left over: branches {sorted(branches - {'main'})}"] if branches != {"main"} else []
    if tags != wanted or repo.lookup_tag(tags[-1]) != repo.lookup_branch("main"):
        problems.append(f"tags {tags}, main not the last of them")
    return problems


def _unverified(out: Path) -> list[str]:
    return [f"aqnet verify: {found.name}: {found.problem}" for found in verify.verify(out) if found.problem]
