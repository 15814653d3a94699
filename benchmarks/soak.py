"""Hours of real data on a Prefect server: `hourly` on a schedule, then the cube beside that of one batch run.

The clock is simulated: the deployment of `prefect.yaml` gets one schedule an hour, each with its own `now`, some
seconds apart; what the network delivers is put into the folder of arrivals before each. `make soak` prints the tables.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from benchmarks import arrivals, prefect_site
from benchmarks.arrivals import HOUR, Archive
from benchmarks.prefect_site import BIN, ROOT, Site
from pipeline import output
from pipeline.cube import reader

#: First hour. The archive lacks the hours of 2019-12-09T14 and 2019-12-11T02 within two days of it.
START = datetime(2019, 12, 9, 6, tzinfo=UTC)
#: Days before it that its estimates and their flags look back to.
HISTORY = timedelta(days=13)
#: When the archive published its day files, later than everything that arrived by the hour.
ARCHIVED = datetime(2020, 1, 1, tzinfo=UTC)
#: From making the schedules to their first run: the server plans runs once a minute, and none that are over.
LEAD = timedelta(seconds=90)
DOMAIN = "soak"
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

CONFIG = f"""source = "store"
input = "observations"
start = {START:%Y-%m-%dT%H:%M:%SZ}
bbox = [115.0, 38.0, 118.0, 41.0]
resolution = RESOLUTION
domain = "{DOMAIN}"
out = "scheduled"
"""


@dataclass(frozen=True)
class Soak:
    """What there is to do: hours of data, seconds between runs, seed of the deliveries, degrees of a cell."""

    hours: int = 48
    every: float = 20.0
    seed: int = 6
    resolution: float = 0.25

    @property
    def end(self) -> datetime:
        """Hour after the last."""
        return START + HOUR * self.hours

    def deliveries(self) -> list[arrivals.Delivery]:
        """What arrives, by run; see `benchmarks.arrivals.plan`."""
        return arrivals.plan(self.hours, self.seed)

    @property
    def runs(self) -> int:
        """Runs 0 (nothing arrived yet) up to the one that finds the archive's day files, and one that finds nothing."""
        return max(one.run for one in self.deliveries()) + 3


def prepare(folder: Path, data: Path, soak: Soak) -> Archive:
    """Lay out the folder that flows run in: configuration, station list, a store of the days before, no arrivals."""
    archive = Archive(data, START - HISTORY, soak.end)
    (folder / "arrivals").mkdir(parents=True)
    shutil.copy(data / "stations.csv", folder)
    (folder / "schedule.toml").write_text(CONFIG.replace("RESOLUTION", str(soak.resolution)))
    history = archive.cut(folder / "history.zip", START - HISTORY, START, ARCHIVED - timedelta(days=30))
    _ingest(folder, history, "observations")
    return archive


def _ingest(folder: Path, path: Path, store: str) -> None:
    words = ["ingest", "cnemc", "--input", str(path), "--stations", "stations.csv", "--store", store]
    prefect_site.run([str(BIN / "aqnet"), *words], folder)


@contextmanager
def deployed(folder: Path, work: Path, postgres: bool) -> Iterator[Site]:
    """A server with the deployments of the project's `prefect.yaml`, as the guide makes them, their crons paused."""
    with prefect_site.serving(folder, work, postgres) as site:
        site.prefect("gcl", "create", f"aqnet-{DOMAIN}", "--limit", "1")
        site.prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(ROOT / "prefect.yaml"))
        yield site


def crons(site: Site) -> pd.DataFrame:
    """Deployments with their cron schedules, limits, and the first run that the server planned."""
    rows = []
    for one in site.post("deployments/filter", {"sort": "NAME_ASC"}):
        planned = [run for run in site.runs(one["name"]) if run["state_type"] == "SCHEDULED"]
        cron = [item["schedule"]["cron"] for item in one["schedules"] if "cron" in item["schedule"]]
        limit = (one.get("global_concurrency_limit") or {}).get("limit")
        first = planned[0]["expected_start_time"][:16] if planned else "-"
        rows.append({"deployment": one["name"], "cron": ", ".join(cron) or "-", "limit": limit, "first run": first})
    return pd.DataFrame(rows)


def operate(site: Site, archive: Archive, soak: Soak) -> list[dict[str, Any]]:
    """Run the schedule while data arrives; the runs of `hourly` as the API has them."""
    for name in ("hourly/hourly", "daily/daily", "verify/verify"):
        site.pause(name)
    first = datetime.now(UTC).replace(microsecond=0) + LEAD
    times = [first + timedelta(seconds=soak.every * number) for number in range(soak.runs)]
    given = [{"now": (START + HOUR * number).isoformat()} for number in range(soak.runs)]
    site.schedule("hourly/hourly", dict(zip(times, given, strict=True)))
    wanted = {one["now"] for one in given}
    prefect_site.wait(lambda: _planned(site) >= wanted, LEAD.total_seconds(), "the server to plan all runs")
    for number, at in enumerate(times):
        # a worker starts a process some seconds ahead and lets it wait: half an interval before is before all of it
        time.sleep(max(0.0, (at - datetime.now(UTC)).total_seconds() - soak.every / 2))
        _deliver(site.folder / "arrivals", archive, soak, number)
    prefect_site.wait(lambda: len(_ended(site, wanted)) == soak.runs, 60 * soak.runs, "the last runs to end")
    return _ended(site, wanted)


def _deliver(folder: Path, archive: Archive, soak: Soak, run: int) -> None:
    for one in soak.deliveries():
        if one.run == run:
            arrivals.deliver(archive, START, one, folder)
    if run == soak.runs - 2:
        # whole day files: one takes the place of what the days before brought under its name
        day = (START + arrivals.TO_START).replace(hour=0) - arrivals.TO_START
        archive.cut(folder / "china_sites.zip", day, soak.end, ARCHIVED)


def _planned(site: Site) -> set[str]:
    return {run["parameters"]["now"] for run in site.runs("hourly") if "now" in run["parameters"]}


def _ended(site: Site, wanted: set[str]) -> list[dict[str, Any]]:
    """Runs that have one of those presents and are over."""
    found = [run for run in site.runs("hourly") if run["state_type"] in ENDED]
    return [run for run in found if run["parameters"].get("now") in wanted]


def batch(folder: Path, archive: Archive, soak: Soak) -> Path:
    """Make the same hours in one run, of a store that took in the archive at once; its cube."""
    whole = archive.cut(folder / "whole.zip", START - HISTORY, soak.end, ARCHIVED)
    _ingest(folder, whole, "at-once")
    words = ["run", "schedule.toml", "--input", "at-once", "--end", soak.end.isoformat(), "--out", "batch", "--json"]
    prefect_site.run([str(BIN / "aqnet"), *words], folder)
    return folder / "batch" / output.CUBE


# ---- tables ----


def compare(found: xr.Dataset, wanted: xr.Dataset) -> pd.DataFrame:
    """Values that differ, by variable; `revision`, which counts publications, is left out."""
    found, wanted = (one.isel(time=one["stream"].values >= 0) for one in (found, wanted))  # others were never made
    if not np.array_equal(found["time"].values, wanted["time"].values):
        counts = f"{found.sizes['time']} in the schedule's cube, {wanted.sizes['time']} in the batch's"
        raise SystemExit(f"hours differ: {counts}")
    rows = []
    for name in map(str, wanted.data_vars):
        if name == "revision" or "time" not in wanted[name].dims:
            continue
        ours, theirs = (one[name].values.astype(np.float64) for one in (found, wanted))
        unlike = ~((ours == theirs) | (np.isnan(ours) & np.isnan(theirs)))
        largest = np.abs(ours - theirs)[unlike].max(initial=0.0)
        rows.append({"variable": name, "values": ours.size, "differ": int(unlike.sum()), "largest": largest})
    return pd.DataFrame(rows)


def states(site: Site, runs: list[dict[str, Any]]) -> pd.DataFrame:
    """How often runs ended in each state, and seconds that they took."""
    counts = Counter((run["state_type"], run["state_name"]) for run in runs)
    rows = []
    for (kind, name), count in sorted(counts.items()):
        took = [run["total_run_time"] for run in runs if (run["state_type"], run["state_name"]) == (kind, name)]
        rows.append({"type": kind, "state": name, "runs": count, "median s": round(float(np.median(took)), 1)})
    return pd.DataFrame(rows)


def overlaps(runs: list[dict[str, Any]]) -> int:
    """Runs that began before the one before them had ended."""
    spans = sorted((run["start_time"], run["end_time"]) for run in runs)
    return sum(later[0] < earlier[1] for earlier, later in pairwise(spans))


@dataclass(frozen=True)
class Outcome:
    """What a soak found."""

    crons: pd.DataFrame
    states: pd.DataFrame
    values: pd.DataFrame
    revisions: int
    artifacts: int
    overlapping: int
    left: int

    @property
    def passed(self) -> bool:
        """Whether all runs completed, one at a time, with a report each, and no value differs."""
        completed = set(self.states["type"]) == {"COMPLETED"}
        return bool(completed and not self.values["differ"].sum() and not self.overlapping and not self.left)

    def as_text(self) -> str:
        """Tables for people."""
        said = f"{self.revisions} revisions, {self.artifacts} report artifacts, {self.overlapping} runs at once, "
        said += f"{self.left} runs late at the end"
        tables = [_markdown(table) for table in (self.crons, self.states, self.values)]
        return "\n\n".join([*tables, said, "PASSED" if self.passed else "FAILED"])


def _markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy(object).tolist()]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def soak_on(folder: Path, data: Path, soak: Soak, postgres: bool = True) -> Outcome:
    """Do all of it in a folder."""
    work = folder / "site"
    archive = prepare(work, data, soak)
    with deployed(folder / "prefect", work, postgres) as site:
        time.sleep(8)  # the server's scheduler plans the runs of a new deployment every five seconds
        planned = crons(site)
        with prefect_site.working(site, folder / "worker.log"):
            runs = operate(site, archive, soak)
        counts = states(site, runs)
        artifacts = len(site.post("artifacts/filter", {"artifacts": {"key": {"any_": ["reanalysis-report"]}}}))
        late = [run for run in site.runs("hourly") if run["state_name"] in ("Late", "AwaitingConcurrencySlot")]
    cube = reader.open_cube(work / "scheduled" / output.CUBE)
    values = compare(cube, reader.open_cube(batch(work, archive, soak)))
    return Outcome(planned, counts, values, int(str(cube.attrs["revision"])[1:]), artifacts, overlaps(runs), len(late))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the CNEMC archive: china_sites_YYYYMM.zip, stations.csv")
    parser.add_argument("--hours", type=int, default=Soak.hours)
    parser.add_argument("--every", type=float, default=Soak.every, help="seconds between scheduled runs")
    parser.add_argument("--seed", type=int, default=Soak.seed)
    parser.add_argument("--resolution", type=float, default=Soak.resolution)
    parser.add_argument("--folder", type=Path, help="where to work, a new folder; it is kept")
    parser.add_argument("--sqlite", action="store_true", help="SQLite in place of PostgreSQL")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that server, worker and database end, too
    folder = given.folder or Path(mkdtemp(prefix="aqnet-soak-"))
    folder.chmod(0o755) if folder.exists() else folder.mkdir(parents=True)
    soak = Soak(given.hours, given.every, given.seed, given.resolution)
    outcome = soak_on(folder.resolve(), given.data.resolve(), soak, not given.sqlite)
    print(outcome.as_text())
    raise SystemExit(not outcome.passed)


if __name__ == "__main__":
    main()
