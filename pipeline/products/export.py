"""Downloads cut from the published cube: NetCDF, plain Zarr, CSV and GeoTIFF, of hours, days or months.

Everything is written beside its place and renamed, so that a file is there whole or not at all; nothing in a file
depends on when or where it was exported, so that the same hours make the same bytes. Time flows through in blocks of
24 hours, days or months: memory does not grow with the period.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from pipeline.atomic import replacing
from pipeline.contract import STREAMS
from pipeline.cube.layout import FILL, Group, lay, plain, to_hours
from pipeline.errors import ConfigError, ProductError
from pipeline.products import aggregate, csvtable, geotiff, netcdf
from pipeline.products.point_table import check_table_name, write_table
from pipeline.products.series import Series, TrackingId, hourly, hours_of

__all__ = [
    "FREQUENCIES",
    "Cut",
    "check_table_name",
    "export_files",
    "export_netcdf",
    "export_zarr",
    "pieces",
    "subset",
    "write_table",
]

log = logging.getLogger("aqnet")

Bbox = tuple[float, float, float, float]
FREQUENCIES = ("hourly", "daily", "monthly")


@dataclass(frozen=True)
class Cut:
    """What is cut from a cube.

    Attributes
    ----------
    stream : ``interim``, ``final`` or ``outlook``; any when None, which only hours can be of.
    frequency : one of `FREQUENCIES`.
    start, end : of hours, [start, end) in UTC; of daily or monthly means, all days or months that [start, end) touches,
        in local time. The cube's own when None.
    bbox : (west, south, east, north), degrees, see `subset`.
    day_offset : hours that local time is ahead of UTC, of daily and monthly means.
    """

    stream: str | None = None
    frequency: str = "hourly"
    start: object = None
    end: object = None
    bbox: Bbox | None = None
    day_offset: int = 0

    def __post_init__(self) -> None:
        if not -14 <= self.day_offset <= 14:
            raise ConfigError(f"--day-offset: expected whole hours from -14 to 14; found {self.day_offset}")
        if self.day_offset and self.frequency == "hourly":
            raise ConfigError("--day-offset: expected with daily or monthly means; hours have none")
        if self.stream is None and self.frequency != "hourly":
            raise ConfigError("--stream: expected one stream, which daily and monthly means are of")

    @property
    def label(self) -> str:
        """Frequency as in file names; days that are not UTC's say so."""
        return self.frequency + (f"-utc{self.day_offset:+03d}" if self.day_offset else "")


# ---- parts of a cube ----


def subset(
    cube: xr.Dataset, stream: str | None = None, start: object = None, end: object = None, bbox: Bbox | None = None
) -> xr.Dataset:
    """Produced hours in [start, end) and the cells whose centres lie in a box, as a lazy view.

    Parameters
    ----------
    cube : what `reader.open_cube` returned.
    stream : ``interim``, ``final`` or ``outlook``; any when None.
    start, end : UTC; the cube's own when None.
    bbox : (west, south, east, north), degrees; west > east crosses the dateline. On a projected grid the smallest
        rectangle of rows and columns around those cells.

    Raises
    ------
    ProductError
        When no hour or no cell is left.
    """
    hours, produced = hours_of(cube), cube["stream"].values
    keep = produced != FILL["stream"] if stream is None else produced == STREAMS[stream]
    if start is not None:
        keep &= hours >= to_hours(start)
    if end is not None:
        keep &= hours < to_hours(end)
    if not keep.any():
        period = f"{start or '...'} to {end or '...'}"
        raise ProductError(f"export: the cube holds no {stream or 'produced'} hour in {period}")
    cube = cube.isel(time=_positions(keep))
    return cube.isel(_window(cube, bbox)) if bbox else cube


def _positions(keep: NDArray[np.bool_]) -> slice | NDArray[np.intp]:
    """Return where ``keep`` holds, as a slice where it can be: Zarr reads a slice many times faster than a list."""
    at = np.flatnonzero(keep)
    return slice(int(at[0]), int(at[-1]) + 1) if at[-1] - at[0] + 1 == len(at) else at


def _window(cube: xr.Dataset, bbox: Bbox) -> dict[str, slice]:
    """Rows and columns around the cells with centres in ``bbox``."""
    west, south, east, north = bbox
    margin = 1e-6
    inside = (cube["lat"] >= south - margin) & (cube["lat"] <= north + margin)
    inside = inside & ((cube["lon"] - west + margin) % 360 <= (east - west) % 360 + 2 * margin)
    if not inside.any():
        raise ProductError(f"export: no cell of the cube lies in bbox {bbox}")
    window = {}
    for name in inside.dims:
        (at,) = np.nonzero(inside.any([other for other in inside.dims if other != name]).values)
        window[str(name)] = slice(int(at[0]), int(at[-1]) + 1)
    return window


def _whole(cut: Cut) -> tuple[object, object]:
    """First hour and the hour after the last of a cut, UTC: of means, those of whole days or months."""
    if cut.frequency == "hourly":
        return cut.start, cut.end
    unit = {"daily": "D", "monthly": "M"}[cut.frequency]
    edges: list[object] = [None, None]
    if cut.start is not None:
        edges[0] = _hour(to_hours(cut.start)).astype(f"M8[{unit}]").astype("M8[h]") - cut.day_offset
    if cut.end is not None:
        edges[1] = (_hour(to_hours(cut.end) - 1).astype(f"M8[{unit}]") + 1).astype("M8[h]") - cut.day_offset
    return edges[0], edges[1]


def _hour(hours: int) -> np.datetime64:
    return np.datetime64(hours, "h")


def _all_of(cube: xr.Dataset, cut: Cut) -> Series:
    """Everything that is cut, as one series; ProductError where a mean has too few hours, or days."""
    return next(pieces(cube, cut, whole=True))


def pieces(cube: xr.Dataset, cut: Cut, whole: bool = False) -> Iterator[Series]:
    """Series of a file each: a calendar month of hours or days, a calendar year of months; or one of all."""
    part = subset(cube, cut.stream, *_whole(cut), cut.bbox)
    if cut.frequency == "hourly":
        months = part["time"].values.astype("M8[M]")
        for month in [None] if whole else np.unique(months):
            yield hourly(part if month is None else part.isel(time=_positions(months == month)))
        return
    days = aggregate.days(part, cut.day_offset)
    found = days if cut.frequency == "daily" else aggregate.months(days)
    if not found:
        raise ProductError(_too_few(cut))
    for group in [found] if whole else _by_file(found):
        make: Callable[..., Series] = aggregate.daily if cut.frequency == "daily" else aggregate.monthly
        yield make(part, group, cut.day_offset)


def _by_file(found: Sequence[aggregate.Day] | Sequence[Sequence[aggregate.Day]]) -> list[Sequence[object]]:
    """Days of a month, or months of a year, together."""
    groups: dict[np.datetime64, list[object]] = {}
    for period in found:
        first, unit = (period, "M") if isinstance(period, aggregate.Day) else (period[0], "Y")
        groups.setdefault(np.datetime64(first.number, "D").astype(f"M8[{unit}]"), []).append(period)
    return list(groups.values())


def _too_few(cut: Cut) -> str:
    needed = f"a day with {aggregate.HOURS_NEEDED} {cut.stream} hours"
    if cut.frequency == "monthly":
        needed = f"a month with {needed} on {aggregate.DAYS_NEEDED:.0%} of its days"
    return f"export: expected {needed} in {cut.start or '...'} to {cut.end or '...'}; the cube holds none"


# ---- files ----


def export_files(
    cube: xr.Dataset,
    out_dir: str | Path,
    cut: Cut,
    kind: str,
    domain: str,
    version: str,
    variables: Sequence[str] = ("pm2p5",),
) -> list[Path]:
    """Write a cut as ``netcdf``, ``csv`` or ``geotiff``: a file a month of hours or days, a year of months.

    Names are ``pm25_<domain>_aqnet_<stream>_v<version>_<frequency>_<first day>-<last day>``; of GeoTIFF, which has a
    file for each of `variables`, ``_<variable>`` follows.

    Returns
    -------
    The files, earliest first.

    Raises
    ------
    ConfigError, ProductError
        When there is no such variable; when the cube holds nothing of the kind.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    files = []
    for series in pieces(cube, cut):
        stem = f"pm25_{domain}_aqnet_{cut.stream}_v{version}_{cut.label}_{_dates(series, cut)}"
        files += [
            _write(series, out_dir / name, write) for name, write in _writers(series, kind, stem, version, variables)
        ]
    return files


def _dates(series: Series, cut: Cut) -> str:
    local = np.array([series.bounds[0, 0], series.bounds[-1, 1] - 1]) + cut.day_offset
    return "-".join(str(day).replace("-", "") for day in local.astype("M8[h]").astype("M8[D]"))


def _writers(
    series: Series, kind: str, stem: str, version: str, variables: Sequence[str]
) -> Iterator[tuple[str, Callable[[Series, Path], None]]]:
    """Name of each file and what writes it."""
    if kind == "netcdf":
        yield f"{stem}.nc", partial(netcdf.write, own={"id": stem, "product_version": version})
    elif kind == "csv":
        yield f"{stem}.csv", csvtable.write
    else:
        if wrong := [name for name in variables if name not in geotiff.gridded(series)]:
            known = ", ".join(geotiff.gridded(series))
            raise ConfigError(f"--variable: expected one of {known}; found {wrong[0]!r}")
        for name in variables:
            yield f"{stem}_{name}.tif", partial(geotiff.write, variable=name)


def _write(series: Series, target: Path, write: Callable[[Series, Path], None]) -> Path:
    with replacing(target) as path:
        write(series, path)
    log.info("wrote %s", target)
    return target


def export_netcdf(
    cube: xr.Dataset,
    out_dir: str | Path,
    domain: str,
    stream: str,
    version: str,
    *,
    start: object = None,
    end: object = None,
    bbox: Bbox | None = None,
) -> list[Path]:
    """Write one NetCDF-4 file a calendar month of the hours that ``stream`` produced; see `export_files`."""
    return export_files(cube, out_dir, Cut(stream, "hourly", start, end, bbox), "netcdf", domain, version)


def export_zarr(
    cube: xr.Dataset,
    path: str | Path,
    *,
    start: object = None,
    end: object = None,
    bbox: Bbox | None = None,
    cut: Cut | None = None,
) -> Path:
    """Write produced hours, of all streams, or any `cut` as a plain Zarr v3 folder with consolidated metadata.

    The folder takes its place whole; a Zarr that was there is renamed away just before.

    Raises
    ------
    ConfigError
        When something other than a Zarr is there.
    """
    series, path = _all_of(cube, cut or Cut(None, "hourly", start, end, bbox)), Path(path)
    if path.exists() and not (path / "zarr.json").is_file():
        raise ConfigError(f"{path}: expected nothing there or a Zarr to replace; found something else, left as it is")
    path.parent.mkdir(parents=True, exist_ok=True)
    return _write(series, path, partial(_write_zarr, name=path.stem))


def _write_zarr(series: Series, folder: Path, name: str) -> None:
    group: Group = zarr.open_group(folder, mode="w")
    tracking = TrackingId(series)
    lay(group, series.coords, series.bounds, series.fields, series.time_attrs)
    group.attrs.update(plain(series.global_attrs({"id": name})))
    for spec in series.fields:
        group[spec.name].attrs.put(plain(series.field_attrs(spec)))
    for at, values in series.placed():
        for field, array in values.items():
            group[field][at] = array
            tracking.update(array)
    group.attrs["tracking_id"] = str(tracking)
    _consolidate(folder)


def _consolidate(folder: Path) -> None:
    """Put every array's metadata into the root's, where xarray looks for it first."""
    arrays = {file.parent.name: json.loads(file.read_text()) for file in sorted(folder.glob("*/zarr.json"))}
    root = json.loads((folder / "zarr.json").read_text())
    root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": arrays}
    (folder / "zarr.json").write_text(json.dumps(root, indent=2))
