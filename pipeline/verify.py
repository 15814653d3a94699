"""Whether what was published is still what it was: checksums of the files, every revision, every product's values.

Disks rot, folders are restored from halves of backups, people edit files. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import netCDF4
import numpy as np
import xarray as xr

from pipeline import output
from pipeline.contract import check_cube
from pipeline.cube import reader, repository
from pipeline.cube.layout import FILL
from pipeline.errors import ProductError
from pipeline.location import Location
from pipeline.offer import inventory
from pipeline.products import export
from pipeline.products.series import TrackingId, hourly
from pipeline.provenance import digest_file

#: What reading damaged data can raise: its own errors, the system's, and those of decoders.
_UNREADABLE = (OSError, ValueError, RuntimeError, LookupError, ProductError, repository.icechunk.IcechunkError)


@dataclass(frozen=True)
class Found:
    """One thing that was looked at: what it is called, and what is wrong with it (None: nothing)."""

    name: str
    problem: str | None = None


def verify(out: Path) -> Iterator[Found]:
    """Look at everything in an output folder of `aqnet run`.

    Yields
    ------
    Found
        One for each file of ``SHA256SUMS``, each revision of the cube, the newest one's values, and the values
        of each hourly product.

    Raises
    ------
    ProductError
        When there is no cube or no list of checksums.
    """
    products, cube = out / output.PRODUCTS, output.cube(out)
    yield from files(products)
    yield from revisions(cube)
    yield newest(cube)
    for path in sorted(products.glob("pm25_*_hourly_*.nc")):
        yield product(path, cube)


def files(folder: Path) -> Iterator[Found]:
    """Compare the files of a folder with its ``SHA256SUMS``."""
    try:
        lines = (folder / output.SUMS).read_text().splitlines()
    except OSError as error:
        raise ProductError(f"{folder}: expected {output.SUMS} beside the products; found: {error.strerror}") from error
    for line in lines:
        wanted, _, name = line.partition("  ")
        yield Found(name, _compare(folder / name, wanted))


def _compare(path: Path, wanted: str) -> str | None:
    try:
        found = digest_file(path)
    except OSError as error:
        return f"expected a file; found: {error.strerror}"
    return None if found == wanted else f"expected SHA-256 {wanted[:12]}...; found {found[:12]}..."


def revisions(cube: Location) -> Iterator[Found]:
    """Read what each tag leads to: its axes and what it says of every hour."""
    for tag in sorted(repository.open_existing(cube).list_tags(), key=lambda tag: int(tag[1:])):
        yield Found(f"{cube.name} {tag}", _problem_of_revision(cube, tag))


def _problem_of_revision(cube: Location, tag: str) -> str | None:
    try:
        opened = reader.open_cube(cube, tag)
        named = [str(name) for name, variable in opened.variables.items() if variable.ndim < 3]
        opened[named].load()
    except _UNREADABLE as error:
        return _said(error)
    return None if opened.attrs.get("revision") == tag else f"expected revision {tag}; found {opened.attrs['revision']}"


def newest(cube: Location) -> Found:
    """Read every value of the newest revision, day by day, and hold it to the contract."""
    opened = reader.open_cube(cube)
    try:
        for first in range(0, opened.sizes["time"], 24):
            day = opened.isel(time=slice(first, first + 24))
            check_cube(day.isel(time=np.flatnonzero(day["stream"].values != FILL["stream"])).load(), cube.name)
    except _UNREADABLE as error:
        return Found(f"values of {cube.name}", _said(error))
    return Found(f"values of {cube.name}")


def product(path: Path, cube: Location) -> Found:
    """Compare an hourly file with the revision that it was cut from: the tracking identifier is of all values."""
    name = f"values of {path.name}"
    try:
        with netCDF4.Dataset(path) as file:
            said, tag, hours = file.tracking_id, file.revision, file["time_bnds"][:]
        stream = inventory.NAME.fullmatch(path.name)
        part = _part(reader.open_cube(cube, tag), stream["stream"] if stream else None, int(hours[0, 0]), hours[-1, 1])
        series = hourly(part)
        tracking = TrackingId(series)
        for _, values in series.placed():
            for array in values.values():
                tracking.update(array)
    except _UNREADABLE as error:
        return Found(name, _said(error))
    same = str(tracking) == said
    return Found(name, None if same else f"expected the values of {tag} ({tracking}); found {said}")


def _part(cube: xr.Dataset, stream: str | None, first: int, end: int) -> xr.Dataset:
    start, stop = (np.datetime64(int(hour), "h") for hour in (first, end))
    return export.subset(cube, stream, start, stop)


def _said(error: Exception) -> str:
    return f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
