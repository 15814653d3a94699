"""Gridding speed and memory of AQ-Net: ``make bench`` prints two Markdown tables.

Speed counts a cell-hour as the mean and three quantiles at one cell in one hour; every cell of the grid is estimated,
sea too, and the one-off layout of the neighbours is part of the time. Each peer estimates as many hours as it can in
about ten seconds. Memory is the peak of a fresh process that grids and writes a cube of one day, and of a month.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.interpolate import griddata

from model import baseline, infer
from model.windows import POLLUTANTS, Observations, Points
from pipeline import analyse, qc, write
from pipeline.contract import HOUR
from pipeline.grid import Grid, terrain

BBOX = (105.0, 32.0, 125.0, 45.0)
START = np.datetime64("2019-12-01T00", "h")
STATIONS, CITIES = 590, 130
QUANTILES = tuple(analyse.QUANTILES.values())
SECONDS, TOGETHER = 10.0, 6


def record(days: int, seed: int = 1) -> Observations:
    """Random network: clustered stations, log-normal values, 5 % of them missing, one station a day falls silent."""
    rng = np.random.default_rng(seed)
    hours = (START - analyse.LEAD_HOURS * HOUR).astype(np.int64) + np.arange(analyse.LEAD_HOURS + 24 * days)
    city = rng.uniform((BBOX[0], BBOX[1]), (BBOX[2], BBOX[3]), (CITIES, 2))[rng.integers(CITIES, size=STATIONS)]
    lon, lat = (city + rng.normal(0, 0.08, city.shape)).T
    values = np.exp(rng.normal(4, 0.8, (len(POLLUTANTS), len(hours), STATIONS))).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = np.nan
    for day in range(days):
        values[:, 24 * day : 24 * day + 96, day % STATIONS] = np.nan
    return Observations(hours, values, lon, lat, terrain(lon, lat).astype(float))


def station_cube(observations: Observations) -> xr.Dataset:
    """Dress the record as a StationCube without flags."""
    dims = ("time", "station")
    data = {name: (dims, values) for name, values in zip(POLLUTANTS, observations.values, strict=True)}
    none = np.zeros(observations.values.shape[1:], np.uint16)
    data |= {f"qc_{name}": (dims, none) for name in POLLUTANTS}
    place = {name: ("station", getattr(observations, name)) for name in ("lon", "lat", "elevation")}
    stations = [f"bench:{n:04d}" for n in range(STATIONS)]
    time_axis = observations.hours.astype("datetime64[h]").astype("datetime64[ns]")
    return xr.Dataset(data, {"time": time_axis, "station": stations, **place})


# ---- speed ----


def speed(days: int) -> str:
    """Cell-hours a second of AQ-Net over some days, and of its peers over as many hours as they can."""
    grid, observations = Grid(BBOX, 0.1), record(days)
    points = Points(*grid.points())
    rows = [("AQ-Net: mean, 3 quantiles, distance", *aqnet(observations, points))]
    for name, peer in peers(points).items():
        rows.append((name, *timed(peer, observations, len(points.lon))))
    first = rows[0][1] / rows[0][2]
    lines = ["| method | cell-hours | seconds | cell-hours/s | AQ-Net is faster by |", "|---|---|---|---|---|"]
    lines += [f"| {n} | {c:,} | {s:.1f} | {c / s:,.0f} | {first * s / c:.1f} |" for n, c, s in rows]
    return "\n".join(lines)


def aqnet(observations: Observations, points: Points) -> tuple[int, float]:
    """Cell-hours and seconds of AQ-Net, the layout of the neighbours included."""
    network = analyse.load().aqnet
    began, count = time.perf_counter(), 0
    for block in infer.day_blocks(network, observations, points, QUANTILES, analyse.LEAD_HOURS):
        count += block.mean.size
    return count, time.perf_counter() - began


def peers(points: Points) -> dict[str, Callable[[Observations], object]]:
    """Name -> function that estimates the PM2.5 of some hours at every cell."""
    return {
        "scipy griddata (linear, mean alone)": partial(_griddata, points=points),
        "inverse distance, k = 8 (mean alone)": partial(baseline.idw, points=points),
        "gridpp optimal interpolation (mean alone)": partial(baseline.gridpp_oi, points=points, max_points=10),
        "log kriging, k = 48": partial(baseline.log_kriging, points=points),
    }


def _griddata(observations: Observations, points: Points) -> list[NDArray[np.float64]]:
    places, wanted = np.column_stack([observations.lon, observations.lat]), (points.lon, points.lat)
    known = [~np.isnan(hour) for hour in observations.values[0]]
    return [griddata(places[ok], hour[ok], wanted) for hour, ok in zip(observations.values[0], known, strict=True)]


def timed(peer: Callable[[Observations], object], observations: Observations, cells: int) -> tuple[int, float]:
    """Cell-hours and seconds of a peer, `TOGETHER` hours at a time until `SECONDS` have gone or the record ends."""
    began, hours, last = time.perf_counter(), 0, len(observations.hours) - analyse.LEAD_HOURS
    while time.perf_counter() - began < SECONDS and hours + TOGETHER <= last:
        at = slice(analyse.LEAD_HOURS + hours, analyse.LEAD_HOURS + hours + TOGETHER)
        peer(
            Observations(
                observations.hours[at],
                observations.values[:, at],
                observations.lon,
                observations.lat,
                observations.elevation,
            )
        )
        hours += TOGETHER
    return hours * cells, time.perf_counter() - began


# ---- memory ----


def memory(periods: tuple[int, ...]) -> str:
    """Peak memory of a fresh process a period."""
    lines = ["| days gridded and written | peak memory of the process, MiB |", "|---|---|"]
    for days in periods:
        command = [sys.executable, "-m", "benchmarks", "--grid-days", str(days)]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
        lines.append(f"| {days} | {float(found):.0f} |")
    return "\n".join(lines)


def grid_days(days: int) -> float:
    """Grid and write some days into a throw-away cube; return this process' peak memory, MiB."""
    cube, grid, network = station_cube(record(days)), Grid(BBOX, 0.1), analyse.load()
    assert not any(qc.valid(cube, name).isnull().all() for name in POLLUTANTS)
    end = START + days * 24 * HOUR
    with (
        tempfile.TemporaryDirectory() as folder,
        write.begin(Path(folder) / "cube.icechunk", grid, START, end, {"flow_run_id": "bench"}) as candidate,
    ):
        for block in analyse.fields(cube, grid, START, end, network):
            write.write_block(candidate, block)
        candidate.commit("bench")
        write.publish(candidate)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print both tables, or with ``--grid-days`` the peak memory of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=31, help="days that AQ-Net grids")
    parser.add_argument("--grid-days", type=int, help="grid and write so many days and print the peak memory")
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.grid_days:
        print(grid_days(options.grid_days))
        return
    print(speed(options.days), memory((1, 31)), sep="\n\n")


if __name__ == "__main__":
    main()
