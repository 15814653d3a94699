"""StationTables to one StationCube: every hour present, one column a station and place, float32, NaN where missing."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from pyproj import Geod

from pipeline.contract import HOUR, POLLUTANTS, STANDARD_NAMES, UNITS, check_station_cube, line_column
from pipeline.errors import InputError
from pipeline.grid import terrain

log = logging.getLogger("aqnet")

_LONG_NAMES = {"pm2p5": "PM2.5", "pm10": "PM10", "so2": "SO2", "no2": "NO2", "o3": "O3", "co": "CO"}
_PLACE = ("lon", "lat", "elevation")
#: Decimal degrees and metres below which coordinates have not changed (1 m, the last digit networks publish).
_CHANGED = (1e-5, 1e-5, 1.0)

#: A station whose coordinates change by more than this has moved; by less, they were published more exactly.
MOVED_KM = 1.0
_GEOD = Geod(ellps="WGS84")


@dataclass(frozen=True)
class Origins:
    """Where each value of a StationCube was read; P pollutants in the order of `POLLUTANTS`.

    Attributes
    ----------
    files : names of the files, as in ``source_file``.
    file : int32 (T, S, P), index into `files`; -1 where there is no value.
    line : int32 (T, S, P), as `pipeline.sources.source.Source` says; 0 where not known.
    """

    files: list[str]
    file: NDArray[np.int32]
    line: NDArray[np.int32]


@dataclass(frozen=True)
class _Rows:
    """The rows of all tables as arrays: hour (N,) from the cube's first, station (N,), values (N, P), place (N, 3)."""

    hour: NDArray[np.int64]
    station: NDArray[np.int64]
    values: NDArray[np.float32]
    place: NDArray[np.float64]
    names: list[str]

    @property
    def found(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Where there are values: row and pollutant, and the cell (hour, station) of the cube; repeated ones in order.

        Pollutants may come in rows apart.
        """
        row, pollutant = np.nonzero(np.isfinite(self.values))
        return row, pollutant, (self.hour * len(self.names) + self.station)[row]


def utc_hour(time: np.datetime64 | datetime) -> np.datetime64:
    """Return the hour that holds `time`, as datetime64[h]; a time without zone is in UTC."""
    stamp = pd.Timestamp(time)
    naive = stamp.tz_convert("UTC").tz_localize(None) if stamp.tzinfo else stamp
    return np.datetime64(naive.floor("h").to_pydatetime(), "h")


def to_cube(
    tables: Iterable[pd.DataFrame], start: np.datetime64 | datetime, end: np.datetime64 | datetime
) -> xr.Dataset:
    """Put StationTables on a full (hour, station) grid.

    Parameters
    ----------
    tables : StationTables (see `pipeline.contract`); rows outside the period are passed over. Of two values of
        one station, hour and pollutant the last counts.
    start, end : whole hours, UTC, half open.

    Returns
    -------
    StationCube
        Dims ``(time, station)``, stations sorted by identifier; float32 values as reported, negative ones too (quality
        control flags them). A station whose coordinates change by up to `MOVED_KM` has its latest. One that moves
        farther has a column for each place: the plain code for the first, ``code@YYYY-MM-DDTHH`` (the first hour
        there, UTC) for a later one. Longitudes lie in [-180, 180]; an elevation that no table gives is the terrain's.

    Raises
    ------
    InputError
        When the tables hold no row of the period.
    """
    first, last = utc_hour(start), utc_hour(end)
    return _cube(_divide_moved(_collect(tables, first, last), first), np.arange(first, last, HOUR))


def to_traced_cube(
    tables: Iterable[pd.DataFrame], start: np.datetime64 | datetime, end: np.datetime64 | datetime
) -> tuple[xr.Dataset, Origins]:
    """As `to_cube`, and say at which file and line each value of it was read.

    Raises
    ------
    InputError
        When the tables hold no row of the period.
    """
    first, last = utc_hour(start), utc_hour(end)
    held = list(tables)
    rows, hours = _divide_moved(_collect(held, first, last), first), np.arange(first, last, HOUR)
    files, file, line = _lines(held, first, last)
    shape = (len(hours), len(rows.names), len(POLLUTANTS))
    row, pollutant, cell = rows.found
    at = np.stack([np.full(shape, -1, "int32"), np.zeros(shape, "int32")]).reshape(2, -1, shape[2])
    at[0, cell, pollutant], at[1, cell, pollutant] = file[row], line[row, pollutant]
    return _cube(rows, hours), Origins(files, *at.reshape(2, *shape))


def _lines(
    tables: list[pd.DataFrame], start: np.datetime64, end: np.datetime64
) -> tuple[list[str], NDArray[np.int32], NDArray[np.int32]]:
    """Names of the files; file (N,) and lines (N, P) of the rows that `_collect` finds, in its order."""
    inside = [table[_within(table, start, end)] for table in tables]
    names = [table.get("source_file", pd.Series("", table.index)).astype(str) for table in inside]
    codes, files = pd.factorize(np.concatenate([name.to_numpy(object) for name in names]))
    columns = [line_column(name) for name in POLLUTANTS]
    lines = [table.reindex(columns=columns, fill_value=0).to_numpy("int32") for table in inside]
    return [str(name) for name in files], codes.astype("int32"), np.concatenate(lines)


def _within(table: pd.DataFrame, start: np.datetime64, end: np.datetime64) -> NDArray[np.bool_]:
    return np.asarray((table["time"] >= start) & (table["time"] < end))


def _cube(rows: _Rows, hours: NDArray[np.datetime64]) -> xr.Dataset:
    values = _on_grid(rows, len(hours) * len(rows.names)).reshape(len(hours), len(rows.names), -1)
    return check_station_cube(_dataset(values, hours, rows.names, _places(rows)))


def _on_grid(rows: _Rows, size: int) -> NDArray[np.float32]:
    """Values (size, P) by hour, then station; of those repeated the last stays."""
    cube = np.full((size, len(POLLUTANTS)), np.nan, dtype="float32")
    row, pollutant, cell = rows.found
    cube[cell, pollutant] = rows.values[row, pollutant]
    if repeated := len(row) - int(np.isfinite(cube).sum()):
        log.warning("station tables: %d values repeat a station, hour and pollutant; the last of each counts", repeated)
    return cube


def _collect(tables: Iterable[pd.DataFrame], start: np.datetime64, end: np.datetime64) -> _Rows:
    parts = [_part(table, start, end) for table in tables]
    parts = [part for part in parts if len(part[0])]
    if not parts:
        raise InputError(f"station tables: expected observations for {start} to {end} UTC; found none")
    hour, codes, names, values, place = zip(*parts, strict=True)
    every = sorted(set().union(*names))
    number = {name: i for i, name in enumerate(every)}
    station = [np.array([number[n] for n in known])[code] for code, known in zip(codes, names, strict=True)]
    where = np.concatenate(place)
    where[:, 0] = np.where(where[:, 0] > 180, where[:, 0] - 360, where[:, 0])
    return _Rows(np.concatenate(hour), np.concatenate(station), np.concatenate(values), where, every)


def _part(
    table: pd.DataFrame, start: np.datetime64, end: np.datetime64
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str], NDArray[np.float32], NDArray[np.float64]]:
    """Hour, station code, the names those codes stand for, values and place of a table's rows of the period."""
    inside = table[_within(table, start, end)]
    hour = (inside["time"].to_numpy("datetime64[h]") - start).astype("int64")
    codes, names = pd.factorize(inside["station"])
    values = inside.reindex(columns=list(POLLUTANTS)).to_numpy("float32")
    place = inside.reindex(columns=list(_PLACE)).to_numpy("float64")
    return hour, codes.astype("int64"), [str(name) for name in names], values, place


def _divide_moved(rows: _Rows, start: np.datetime64) -> _Rows:
    """Give a station that moved a name of its own for each place after the first; names are sorted again."""
    order = np.argsort(rows.hour, kind="stable")
    names, station = list(rows.names), rows.station.copy()
    for moved in _changing(rows, _CHANGED):
        own = order[rows.station[order] == moved]
        for first, members in _later_places(rows.place[own, :2]):
            stamp = np.datetime_as_string(start + rows.hour[own[first]] * HOUR, "h")
            station[own[members]] = len(names)
            names.append(f"{rows.names[moved]}@{stamp}")
    if len(names) == len(rows.names):
        return rows
    log.warning("station tables: stations moved by more than %g km: %s", MOVED_KM, ", ".join(names[len(rows.names) :]))
    every = sorted(set(names))
    number = {name: i for i, name in enumerate(every)}
    return replace(rows, station=np.array([number[name] for name in names])[station], names=every)


def _changing(rows: _Rows, limits: tuple[float, float, float]) -> NDArray[np.int64]:
    """Stations some of whose rows lie farther than `limits` from another row of theirs."""
    last = np.empty((len(rows.names), 3))
    last[rows.station] = rows.place
    return np.unique(rows.station[(np.abs(rows.place - last[rows.station]) > limits).any(axis=1)])


def _later_places(place: NDArray[np.float64]) -> list[tuple[int, NDArray[np.int64]]]:
    """First row and all rows of each place after the first; (N, 2) lon, lat of one station's rows in order of time.

    A row belongs to the nearest place seen before it, unless that is more than `MOVED_KM` away.
    """
    distinct, first, member = np.unique(place, axis=0, return_index=True, return_inverse=True)
    centres: list[int] = []
    of = np.empty(len(distinct), dtype="int64")
    for k in np.argsort(first):
        far = [_GEOD.inv(*distinct[k], *distinct[c])[2] / 1000 for c in centres]
        if not far or min(far) > MOVED_KM:
            centres.append(int(k))
            of[k] = len(centres) - 1
        else:
            of[k] = int(np.argmin(far))
    where = of[member.ravel()]
    return [(int(first[centre]), np.flatnonzero(where == n)) for n, centre in enumerate(centres) if n]


def _places(rows: _Rows) -> NDArray[np.float64]:
    """Longitude, latitude and elevation (S, 3) of each station's latest hour."""
    order = np.argsort(rows.hour, kind="stable")
    latest = np.empty((len(rows.names), 3))
    latest[rows.station[order]] = rows.place[order]
    changed = _changing(rows, _CHANGED)
    if len(changed):
        some = ", ".join(rows.names[i] for i in changed[:5])
        log.warning("station tables: %d stations change coordinates; the latest count: %s", len(changed), some)
    return latest


def _dataset(
    values: NDArray[np.float32], hours: NDArray[np.datetime64], names: list[str], place: NDArray[np.float64]
) -> xr.Dataset:
    lon, lat, elevation = place.T
    data = {
        name: (
            ("time", "station"),
            np.ascontiguousarray(values[:, :, i]),
            {"standard_name": STANDARD_NAMES[name], "long_name": _LONG_NAMES[name], "units": UNITS[name]},
        )
        for i, name in enumerate(POLLUTANTS)
    }
    height = _elevation(lon, lat, elevation)
    coords = {
        "time": ("time", hours.astype("datetime64[ns]"), {"standard_name": "time", "long_name": "start of hour, UTC"}),
        "station": ("station", np.array(names, dtype=object), {"long_name": "station", "cf_role": "timeseries_id"}),
        "lon": ("station", lon, {"standard_name": "longitude", "units": "degrees_east"}),
        "lat": ("station", lat, {"standard_name": "latitude", "units": "degrees_north"}),
        "elevation": ("station", height, {"standard_name": "surface_altitude", "units": "m"}),
    }
    return xr.Dataset(data, coords=coords, attrs={"featureType": "timeSeries"})


def _elevation(lon: NDArray[np.float64], lat: NDArray[np.float64], given: NDArray[np.float64]) -> NDArray[np.float64]:
    missing = np.isnan(given)
    if not missing.any():
        return given
    filled = given.copy()
    filled[missing] = terrain(lon[missing], lat[missing])
    return filled
