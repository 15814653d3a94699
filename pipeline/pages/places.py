"""Places of a run whose series are shown: its largest cities, or clusters of stations, each by one cell of the grid."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pyproj import Transformer
from scipy.spatial import KDTree

from pipeline.grid import KM_PER_DEGREE, Grid
from pipeline.pages.map_view import degrees_text

log = logging.getLogger("aqnet")

Float = NDArray[np.float64]

#: Places shown, and the radius (km) within which stations without a named city are one cluster.
COUNT, CLUSTER_KM = 6, 25.0
#: Places stand at least this share of the domain's diagonal apart.
_APART = 0.04
_EARTH_KM = KM_PER_DEGREE * 180 / np.pi


@dataclass(frozen=True)
class Place:
    """A cell of the grid and the stations in it.

    Attributes
    ----------
    name : city, or where it lies.
    row, column : of the cell; `lon`, `lat` are its centre, degrees.
    stations : names of the city's stations that stand in the cell.
    of : number of stations of the city or cluster.
    """

    name: str
    row: int
    column: int
    lon: float
    lat: float
    stations: tuple[str, ...]
    of: int


def summed(months: Sequence[xr.DataArray]) -> pd.DataFrame:
    """Stations of all months: ``lon``, ``lat`` (the latest), ``sum`` and ``hours`` of their valid PM2.5.

    Parameters
    ----------
    months : (time, station) each, ug m-3, NaN where not valid, with ``lon`` and ``lat``.
    """
    parts = [_summed(month) for month in months]
    how = {"lon": "last", "lat": "last", "sum": "sum", "hours": "sum"}
    return pd.concat(parts).groupby(level=0, sort=False).agg(how)


def _summed(month: xr.DataArray) -> pd.DataFrame:
    columns = {"lon": month["lon"], "lat": month["lat"], "sum": month.sum("time"), "hours": month.notnull().sum("time")}
    return pd.DataFrame({name: part.values for name, part in columns.items()}, month["station"].values)


def city_names(listed: Path | None) -> dict[str, str]:
    """City by station code, from a station list that has the columns ``code`` and ``city``; empty without one."""
    if listed is None or not listed.is_file() or listed.suffix.lower() != ".csv":
        return {}
    try:
        found = pd.read_csv(listed, dtype=str, usecols=lambda name: name in ("code", "city"))
    except (ValueError, UnicodeDecodeError) as problem:
        log.info("%s: no names of cities: %s", listed, problem)
        return {}
    if set(found.columns) != {"code", "city"}:
        return {}
    named = found.dropna().set_index("code")["city"]
    return {str(code): str(city) for code, city in named.items() if city}


def choose(stations: pd.DataFrame, grid: Grid, cities: Mapping[str, str], count: int = COUNT) -> list[Place]:
    """The `count` largest cities or clusters on the grid that stand well apart, the largest first.

    Parameters
    ----------
    stations : from `summed`.
    cities : city by station code, the station's name without its network; a station in none joins a cluster.
    """
    row, column = cells(grid, stations["lon"].to_numpy(), stations["lat"].to_numpy())
    inside = stations.assign(row=row, column=column)[row >= 0]
    inside = inside.assign(city=[cities.get(_code(name), "") for name in inside.index])
    chosen: list[Place] = []
    for name, members in _by_size(inside):
        place = _place(name, members, grid)
        if all(_km_apart(place, other) >= _apart(grid) for other in chosen):
            chosen.append(place)
        if len(chosen) == count:
            break
    return chosen


def cells(grid: Grid, lon: Float, lat: Float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of the cell that each point lies in, -1 both where it is off the grid."""
    x, y = lon, lat
    if grid.projected:
        x, y = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True).transform(lon, lat)
    else:
        x = (lon - grid.x[0] + grid.resolution / 2) % 360 + grid.x[0] - grid.resolution / 2
    row, column = (np.floor((at - axis[0]) / grid.resolution + 0.5) for at, axis in ((y, grid.y), (x, grid.x)))
    rows, columns = grid.shape
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return np.where(inside, row, -1).astype(np.int64), np.where(inside, column, -1).astype(np.int64)


def _code(station: str) -> str:
    """Code in the network's list: ``cnemc:1001A@2019-03-01T00``, a station that moved, is 1001A."""
    return str(station).partition(":")[2].partition("@")[0]


def _by_size(stations: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Cities and clusters, those with the most stations that reported first."""
    named = stations[stations["city"] != ""]
    groups = [(str(name), members) for name, members in named.groupby("city", sort=False)]
    groups += [("", members) for members in _clusters(stations[stations["city"] == ""])]
    return sorted(groups, key=lambda group: ((group[1]["hours"] > 0).sum(), len(group[1])), reverse=True)


def _clusters(stations: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Stations within `CLUSTER_KM` of the one that has the most around it, then the same of those left."""
    if stations.empty:
        return
    tree = KDTree(_on_sphere(stations["lon"].to_numpy(), stations["lat"].to_numpy()))
    around: Any = tree.query_ball_point(tree.data, CLUSTER_KM / _EARTH_KM)
    free = np.ones(len(stations), bool)
    for middle in np.argsort([-len(near) for near in around], kind="stable"):
        if free[middle]:
            members = [n for n in around[middle] if free[n]]
            free[members] = False
            yield stations.iloc[members]


def _on_sphere(lon: Float, lat: Float) -> Float:
    """Points of the unit sphere, (N, 3)."""
    east, north = np.radians(lon), np.radians(lat)
    return np.stack([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)], axis=-1)


def _place(name: str, members: pd.DataFrame, grid: Grid) -> Place:
    """The cell in which most of the stations that reported stand."""
    reported = members[members["hours"] > 0] if (members["hours"] > 0).any() else members
    counts = reported[["row", "column"]].value_counts(sort=False)
    row, column = counts.index.to_frame().to_numpy()[int(counts.to_numpy().argmax())].tolist()
    own = reported[(reported["row"] == row) & (reported["column"] == column)]
    lon, lat = (float(axis[row, column]) for axis in grid.lon_lat())
    return Place(name or _where(lon, lat), row, column, lon, lat, tuple(map(str, own.index)), len(members))


def _where(lon: float, lat: float) -> str:
    return f"{degrees_text(round(lat, 2), 'NS')}, {degrees_text(round(lon, 2), 'EW')}"


def _km_apart(one: Place, other: Place) -> float:
    a, b = _on_sphere(np.array([one.lon, other.lon]), np.array([one.lat, other.lat]))
    return float(_EARTH_KM * np.linalg.norm(a - b))


def _apart(grid: Grid) -> float:
    west, south, east, north = grid.bbox
    corners = _on_sphere(np.array([west, east]), np.array([south, north]))
    return float(_APART * _EARTH_KM * np.linalg.norm(corners[0] - corners[1]))
