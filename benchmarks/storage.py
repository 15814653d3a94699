"""How small and how fast the products are beside usual ways to store the same fields: `python -m benchmarks.storage`.

A month of hourly fields of 131 x 201 cells, made as `aqnet run` makes them: AQ-Net's analysis of SIMULATED observations
of 590 stations; sea cells hold no concentration. Every way writes all that a run yields: the four concentrations, the
distance and the flag of each cell, and three variables of each hour. It begins with the float32 fields in memory and
ends with closed files; rounding, checks, commits and publication count.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import h5py
import icechunk
import numpy as np
import torch
import xarray as xr
import zarr

from pipeline import analyse, harmonise, qc, sources
from pipeline.contract import FIELDS, HOUR
from pipeline.cube import write
from pipeline.cube.layout import GLOBAL_ATTRS, Group
from pipeline.grid import Grid
from pipeline.products import netcdf
from pipeline.products.series import Values, hourly
from pipeline.twin import simulate

BBOX, RESOLUTION = (105.0, 32.0, 125.0, 45.0), 0.1
START = np.datetime64("2019-12-01T00", "h")
CONCENTRATIONS = [spec.name for spec in FIELDS if spec.concentration]
FLOATS = [spec.name for spec in FIELDS if spec.dtype == "float32"]


@dataclass(frozen=True)
class Way:
    """One way to store: `write` a month under a path, tell the `stored` bytes of an array of it."""

    name: str
    write: Callable[[xr.Dataset, Path], None]
    stored: Callable[[Path, str], int]


# ---- fields ----


def analysed(folder: Path, days: int) -> xr.Dataset:
    """Fields of a run on SIMULATED observations, (hours, rows, columns), float32 as the network gives them."""
    made = simulate.simulate(folder, start=START, days=days, bbox=BBOX)
    grid, end = Grid(BBOX, RESOLUTION), START + 24 * days * HOUR
    first = analyse.first_hour(START)
    tables = sources.read("cnemc", made.archive, made.stations, first, end, grid.bbox)
    cube = qc.flag(harmonise.to_cube(tables, first, end), analyse.first_used(START))
    blocks = analyse.fields(cube, grid, START, end, analyse.load())
    month = xr.concat(list(blocks), "time").assign_attrs(GLOBAL_ATTRS)
    return month.assign_coords(dict(grid.coords().variables))


def per_day(month: xr.Dataset) -> Iterator[xr.Dataset]:
    for first in range(0, month.sizes["time"], 24):
        yield month.isel(time=slice(first, first + 24))


# ---- the products ----


def cube(month: xr.Dataset, path: Path) -> None:
    """The cube of record, as a run writes and publishes it."""
    end = month["time"].values[-1] + HOUR
    with write.begin(path, Grid(BBOX, RESOLUTION), month["time"].values[0], end, {"flow_run_id": "bench"}) as candidate:
        for day in per_day(month):
            write.write_block(candidate, day)
        candidate.commit("bench")
        write.publish(candidate)


def of_cube(path: Path, name: str) -> int:
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))
    return _of_zarr(zarr.open_group(repo.readonly_session("main").store, mode="r"), name)


def monthly_file(month: xr.Dataset, path: Path) -> None:
    """The monthly NetCDF, from memory, rounded on the way as the cube is."""

    def rounded() -> Iterator[Values]:
        for day in per_day(month):
            yield {
                spec.name: write.bitround(day[spec.name].values) if spec.name in FLOATS else day[spec.name].values
                for spec in FIELDS
            }

    netcdf.write(replace(hourly(month), blocks=rounded), path, {"id": "bench", "product_version": "0"})


def of_file(path: Path, name: str) -> int:
    with h5py.File(path) as file:
        return int(file[name].id.get_storage_size())


# ---- other ways ----


def raw(month: xr.Dataset, path: Path) -> None:
    """Bytes of the arrays one after the other, no format at all: what the disk gives."""
    with path.open("wb") as file:
        for spec in FIELDS:
            month[spec.name].values.tofile(file)


def of_raw(path: Path, _name: str) -> int:
    """A float's share of the 21 bytes of a cell and hour, five floats and a flag."""
    return path.stat().st_size * 4 // 21


def packed(month: xr.Dataset, path: Path) -> None:
    """Floats as int16 with scale and offset over the range of the month, deflated, as CAMS publishes."""
    encoding = {spec.name: {"zlib": True, "complevel": 4, "shuffle": True} for spec in FIELDS if spec.gridded}
    for name in FLOATS:
        low, high = float(month[name].min()), float(month[name].max())
        scale = (high - low) / (2**16 - 3)
        encoding[name] |= {
            "dtype": "int16",
            "scale_factor": scale,
            "add_offset": (low + high) / 2,
            "_FillValue": -32768,
        }
    month.to_netcdf(path, encoding=encoding)


def deflated(month: xr.Dataset, path: Path) -> None:
    """What is often done: deflate and shuffle, nothing rounded."""
    month.to_netcdf(path, encoding={spec.name: {"zlib": True, "complevel": 4} for spec in FIELDS if spec.gridded})


def default_netcdf(month: xr.Dataset, path: Path) -> None:
    month.to_netcdf(path)


def default_zarr(month: xr.Dataset, path: Path) -> None:
    month.to_zarr(path)


def of_zarr(path: Path, name: str) -> int:
    return _of_zarr(zarr.open_group(path, mode="r"), name)


def _of_zarr(group: Group, name: str) -> int:
    return int(group[name].nbytes_stored())


WAYS = (
    Way("**cube of record**: Icechunk, 9 bits, zstd, bitshuffle", cube, of_cube),
    Way("**monthly NetCDF**: 9 bits, deflate, shuffle", monthly_file, of_file),
    Way("float32 one after the other, no format", raw, of_raw),
    Way("`to_netcdf()` as it comes: float32", default_netcdf, of_file),
    Way("`to_netcdf()`, deflate 4, shuffle", deflated, of_file),
    Way("`to_netcdf()`, int16 with scale and offset, deflate 4, shuffle, as CAMS", packed, of_file),
    Way("`to_zarr()` as it comes: float32, zstd", default_zarr, of_zarr),
)


# ---- measuring ----


@dataclass(frozen=True)
class Found:
    """Seconds until closed, until the disk held it, and of all processors; bytes of it all and of four fields."""

    closed: float
    kept: float
    processor: float
    whole: int
    four: int


def measured(way: Way, month: xr.Dataset, path: Path) -> Found:
    gc.collect()
    began, worked = time.perf_counter(), time.process_time()
    way.write(month, path)
    closed, worked = time.perf_counter() - began, time.process_time() - worked
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    kept = time.perf_counter() - began
    whole, four = sum(file.stat().st_size for file in files), sum(way.stored(path, name) for name in CONCENTRATIONS)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Found(closed, kept, worked, whole, four)


def table(month: xr.Dataset, folder: Path, repeats: int) -> str:
    """A row a way; of the seconds the medians. In turn, so that all see the same machine."""
    rounds = [[measured(way, month, folder / "bench") for way in WAYS] for _ in range(repeats)]
    count = month["pm2p5"].size
    lines = [
        "| way | bytes a cell-hour, four fields | all | seconds until closed | until on the disk | of processors | "
        "million cell-hours/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, found in zip(WAYS, zip(*rounds, strict=True), strict=True):
        closed, kept, worked = (median(getattr(one, name) for one in found) for name in ("closed", "kept", "processor"))
        sizes = f"{found[0].four / count:.2f} | {found[0].whole / count:.2f}"
        lines.append(
            f"| {way.name} | {sizes} | {closed:.1f} | {kept:.1f} | {worked:.1f} | {count / closed / 1e6:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=31, help="length of the period (default 31)")
    parser.add_argument("--repeats", type=int, default=3, help="times that each way is measured (default 3)")
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        month = analysed(Path(folder) / "simulated", options.days)
        sea = float(month["pm2p5"].isnull().mean())
        print(f"SIMULATED data: {month['pm2p5'].size:,} cell-hours, {sea:.1%} of them without a concentration\n")
        print(table(month, Path(folder), options.repeats))


if __name__ == "__main__":
    main()
