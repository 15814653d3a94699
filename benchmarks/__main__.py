"""Gridding speed and memory of AQ-Net: ``make bench`` prints two Markdown tables.

Speed counts a cell-hour as the mean and three quantiles at one cell in one hour; every cell of the grid is estimated,
sea too. Reading the stations and laying out the neighbours are part of the time, once for the whole grid, then for the
cells that a station touches when it comes or goes. A month and a quarter are shown (a backfill does a quarter at once),
since the former is paid once; compilation, once an installation, is left out. Each peer estimates as many hours as it
can in about ten seconds, or at least as many as it works on together. Memory is the peak of a fresh process that grids
and writes a cube of one day, and of a month.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from pykrige.ok import OrdinaryKriging
from scipy.interpolate import griddata

from model import baseline, infer, space_time
from model.windows import POLLUTANTS, Observations, Points
from pipeline import analyse, qc
from pipeline.contract import HOUR
from pipeline.cube import write
from pipeline.grid import Grid, relief, terrain

BBOX = (105.0, 32.0, 125.0, 45.0)
START = np.datetime64("2019-12-01T00", "h")
STATIONS, CITIES = 590, 130
QUANTILES = tuple(analyse.QUANTILES.values())
SECONDS, TOGETHER = 10.0, 6
SPACE_TIME_HOURS = 72


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
    return Observations(hours, values, lon, lat, terrain(lon, lat).astype(float), relief(lon, lat))


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


def speed(periods: list[int]) -> str:
    """Cell-hours a second of AQ-Net over some days, and of its peers over as many hours as they can.

    Peers are compared with the last of the periods.
    """
    grid, observations = Grid(BBOX, 0.1), record(max(periods))
    points = Points(*grid.points())
    aqnet(observations, Points(*(axis[:100] for axis in grid.points())), 1)  # load the compiled loops, or compile them
    rows = [
        (f"AQ-Net: mean, 3 quantiles, distance; {days} days", *aqnet(observations, points, days)) for days in periods
    ]
    first = rows[-1][1] / rows[-1][2]
    for name, (peer, hours) in peers(grid, points).items():
        rows.append((name, *timed(peer, observations, len(points.lon), hours)))
    lines = ["| method | cell-hours | seconds | cell-hours/s | AQ-Net is faster by |", "|---|---|---|---|---|"]
    lines += [f"| {n} | {c:,} | {s:.1f} | {c / s:,.0f} | {first * s / c:.1f} |" for n, c, s in rows]
    return "\n".join(lines)


def aqnet(observations: Observations, points: Points, days: int) -> tuple[int, float]:
    """Cell-hours and seconds of AQ-Net, the layout of the neighbours included."""
    network, first = analyse.load().aqnet, analyse.LEAD_HOURS
    began, count = time.perf_counter(), 0
    for block in infer.day_blocks(network, observations, points, QUANTILES, first, first + 24 * days):
        count += block.mean.size
    return count, time.perf_counter() - began


def peers(grid: Grid, points: Points) -> dict[str, tuple[Callable[[Observations], object], int]]:
    """Name -> function that estimates the PM2.5 of some hours at every cell, and how many hours at once."""
    return {
        "scipy griddata (linear, mean alone)": (partial(_griddata, points=points), TOGETHER),
        "inverse distance, k = 8 (mean alone)": (partial(baseline.idw, points=points), TOGETHER),
        "gridpp optimal interpolation, max_points 10 (mean alone)": (
            partial(baseline.gridpp_oi, points=points, max_points=10),
            TOGETHER,
        ),
        "log kriging, k = 48": (partial(baseline.log_kriging, points=points), TOGETHER),
        "space-time kriging, all stations": (
            partial(space_time.space_time_kriging, points=points),
            SPACE_TIME_HOURS,
        ),
        "PyKrige, k = 48, backend C": (partial(_pykrige, grid=grid, backend="C", n_closest_points=48), 1),
        "PyKrige as it comes, all stations": (partial(_pykrige, grid=grid), 1),
    }


def _pykrige(observations: Observations, grid: Grid, **options: object) -> list[object]:
    """Ordinary kriging of the logarithm, hour by hour, the variogram fitted to each as PyKrige does."""
    found = []
    for hour in observations.values[0]:
        ok = ~np.isnan(hour)
        log = np.log1p(hour[ok]).astype(float)
        field = OrdinaryKriging(
            observations.lon[ok], observations.lat[ok], log, "exponential", coordinates_type="geographic"
        )
        found.append(field.execute("grid", grid.lon, grid.lat, **options))
    return found


def _griddata(observations: Observations, points: Points) -> list[NDArray[np.float64]]:
    places, wanted = np.column_stack([observations.lon, observations.lat]), (points.lon, points.lat)
    known = [~np.isnan(hour) for hour in observations.values[0]]
    return [griddata(places[ok], hour[ok], wanted) for hour, ok in zip(observations.values[0], known, strict=True)]


def timed(
    peer: Callable[[Observations], object], observations: Observations, cells: int, together: int
) -> tuple[int, float]:
    """Cell-hours and seconds of a peer, `together` hours at a time until `SECONDS` have gone or the record ends."""
    began, hours, last = time.perf_counter(), 0, len(observations.hours) - analyse.LEAD_HOURS
    while time.perf_counter() - began < SECONDS and hours + together <= last:
        at = slice(analyse.LEAD_HOURS + hours, analyse.LEAD_HOURS + hours + together)
        peer(replace(observations, hours=observations.hours[at], values=observations.values[:, at]))
        hours += together
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
    parser.add_argument("--days", type=int, nargs="+", default=[31, 92], help="periods that AQ-Net grids")
    parser.add_argument("--grid-days", type=int, help="grid and write so many days and print the peak memory")
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.grid_days:
        print(grid_days(options.grid_days))
        return
    print(speed(options.days), memory((1, 31)), sep="\n\n")


if __name__ == "__main__":
    main()
