"""The cell of a cube that holds a point, and what is published of it in an hour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from model.windows import Points
from pipeline.contract import HOUR, QUALITY_BITS, STREAMS
from pipeline.cube.layout import FILL
from pipeline.errors import ProductError
from pipeline.grid import relief, terrain
from pipeline.location import Location

#: Gridded values that a trace recomputes.
VALUES = ("pm2p5", "pm2p5_p05", "pm2p5_p50", "pm2p5_p95")

_STREAM_NAMES = {number: name for name, number in STREAMS.items()}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes
    ----------
    row, column : position in the cube.
    lon, lat : of its centre, degrees.
    ring : (5, 2) lon, lat of its corners, closed.
    """

    row: int
    column: int
    lon: float
    lat: float
    ring: NDArray[np.float64]

    @property
    def place(self) -> Points:
        """The centre as the network is told it, with the terrain that `Grid.points` gives every cell."""
        lon, lat = np.array([self.lon]), np.array([self.lat])
        return Points(lon, lat, terrain(lon, lat), relief(lon, lat))


@dataclass(frozen=True)
class Published:
    """What a cube holds of a cell in an hour.

    Attributes
    ----------
    hour : its start, UTC.
    values : of `VALUES`, ug m-3.
    distance : km to the nearest valid observation of the hour.
    flags : names of the bits of ``quality_flag`` that are set.
    stream : ``interim``, ``final`` or ``outlook``.
    revision : times the values of the hour were published.
    count : stations with a valid observation in the hour.
    """

    hour: np.datetime64
    values: dict[str, float]
    distance: float
    flags: tuple[str, ...]
    stream: str
    revision: int
    count: int


def find_cell(cube: xr.Dataset, lon: float, lat: float, where: str | Location) -> Cell:
    """Find the cell that holds a point; its western and southern edge belong to it.

    Raises
    ------
    ProductError
        When the point lies outside the grid.
    """
    names = [str(name) for name in cube["pm2p5"].dims[1:]]
    x, y = _to_axes(cube, lon, lat)
    rows, columns = (cube[f"{name}_bnds"].values for name in names)
    row, column = _index(rows, y), _index(columns, x)
    if row is None or column is None:
        edges = f"{names[1]} {columns[0, 0]:g} to {columns[-1, 1]:g}, {names[0]} {rows[0, 0]:g} to {rows[-1, 1]:g}"
        raise ProductError(f"{where}: expected a point inside the grid ({edges}); found {lon:g} E, {lat:g} N")
    corners = [(columns[column, i], rows[row, j]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))]
    at = {names[0]: row, names[1]: column}
    lon, lat = (float(cube[name].isel({dim: at[dim] for dim in map(str, cube[name].dims)})) for name in ("lon", "lat"))
    return Cell(row, column, lon, lat, _to_degrees(cube, np.array(corners)))


def _index(bounds: NDArray[np.float64], value: float) -> int | None:
    """Interval (first edge included) of ascending ones that holds a value; the last one holds its end, too."""
    at = int(np.searchsorted(bounds[:, 0], value, side="right")) - 1
    inside = at >= 0 and (value < bounds[at, 1] or value == bounds[-1, 1])
    return at if inside else None


def _projection(cube: xr.Dataset) -> CRS | None:
    return None if cube["pm2p5"].dims[1:] == ("lat", "lon") else CRS.from_cf(cube["crs"].attrs)


def _to_axes(cube: xr.Dataset, lon: float, lat: float) -> tuple[float, float]:
    crs = _projection(cube)
    if crs is None:
        west = float(cube["lon_bnds"].values[0, 0])
        return (lon - west) % 360 + west, lat
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    return float(x), float(y)


def _to_degrees(cube: xr.Dataset, at: NDArray[np.float64]) -> NDArray[np.float64]:
    crs = _projection(cube)
    if crs is None:
        return at
    return np.stack(Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*at.T), axis=-1)


def read_published(cube: xr.Dataset, cell: Cell, hour: np.datetime64, where: str | Location) -> Published:
    """Read what is published of a cell in an hour.

    Raises
    ------
    ProductError
        When the cube has no such hour, the hour was never produced, or the cell is at sea.
    """
    known = cube["time"].values.astype("M8[h]")
    if hour not in known:
        reach = f"{known[0]} to {known[-1] + HOUR}"
        raise ProductError(f"{where}: expected an hour of the cube ({reach} UTC); found {hour}")
    at = cube.isel(time=int(np.searchsorted(known, hour))).isel(
        dict(zip(cube["pm2p5"].dims[1:], (cell.row, cell.column), strict=True))
    )
    if int(at["stream"]) == FILL["stream"]:
        said = f"{cube.attrs.get('time_coverage_start')} to {cube.attrs.get('time_coverage_end')}"
        raise ProductError(f"{where}: expected an hour that a run produced (from {said}); {hour} never was")
    flags = tuple(name for name, bit in QUALITY_BITS.items() if int(at["quality_flag"]) & bit)
    if "sea" in flags:
        raise ProductError(
            f"{where}: expected a cell with land; the cell of {cell.lon:g} E, {cell.lat:g} N is at sea and has no value"
        )
    return Published(
        hour=hour,
        values={name: float(at[name]) for name in VALUES},
        distance=float(at["nearest_observation_distance"]),
        flags=flags,
        stream=_STREAM_NAMES[int(at["stream"])],
        revision=int(at["revision"]),
        count=int(at["observation_count"]),
    )
