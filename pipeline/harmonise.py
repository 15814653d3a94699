"""StationTables to one StationCube: every hour present, one column a station, float32, NaN where missing."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipeline.contract import HOUR, POLLUTANTS, STANDARD_NAMES, UNITS, check_station_cube
from pipeline.errors import InputError
from pipeline.grid import terrain

log = logging.getLogger("aqnet")

_LONG_NAMES = {"pm2p5": "PM2.5", "pm10": "PM10", "so2": "SO2", "no2": "NO2", "o3": "O3", "co": "CO"}
_PLACE = ("lon", "lat", "elevation")
#: Decimal degrees and metres below which a station has not moved (1 m, the last digit networks publish).
_MOVED = (1e-5, 1e-5, 1.0)


@dataclass(frozen=True)
class _Rows:
    """The rows of all tables as arrays: hour (N,) from the cube's first, station (N,), values (N, P), place (N, 3)."""

    hour: NDArray[np.int64]
    station: NDArray[np.int64]
    values: NDArray[np.float32]
    place: NDArray[np.float64]
    names: list[str]


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
    tables : StationTables (see `pipeline.contract`); rows outside the period are passed over. Of two rows of one
        station and hour the last counts.
    start, end : whole hours, UTC, half open.

    Returns
    -------
    StationCube
        Dims ``(time, station)``, stations sorted by identifier; float32 values as reported, negative ones too (quality
        control flags them). A station whose coordinates change has its latest; longitudes lie in [-180, 180];
        an elevation that no table gives is the terrain's.

    Raises
    ------
    InputError
        When the tables hold no row of the period.
    """
    first, last = utc_hour(start), utc_hour(end)
    rows = _collect(tables, first, last)
    hours = np.arange(first, last, HOUR)
    cube = np.full((len(hours) * len(rows.names), len(POLLUTANTS)), np.nan, dtype="float32")
    cell = rows.hour * len(rows.names) + rows.station
    cube[cell] = rows.values  # a repeated cell keeps its last row
    _report_duplicates(cell, len(cube))
    place = _places(rows)
    return check_station_cube(_dataset(cube.reshape(len(hours), len(rows.names), -1), hours, rows.names, place))


def _collect(tables: Iterable[pd.DataFrame], start: np.datetime64, end: np.datetime64) -> _Rows:
    parts = [_part(table, start, end) for table in tables]
    parts = [part for part in parts if len(part[0])]
    if not parts:
        raise InputError(f"station tables: expected observations for {start} to {end} UTC; found none")
    hour, codes, names, values, place = zip(*parts, strict=True)
    every = sorted(set().union(*names))
    number = {name: i for i, name in enumerate(every)}
    station = [np.array([number[n] for n in known])[code] for code, known in zip(codes, names, strict=True)]
    return _Rows(np.concatenate(hour), np.concatenate(station), np.concatenate(values), np.concatenate(place), every)


def _part(
    table: pd.DataFrame, start: np.datetime64, end: np.datetime64
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str], NDArray[np.float32], NDArray[np.float64]]:
    """Hour, station code, the names those codes stand for, values and place of a table's rows of the period."""
    inside = table[((table["time"] >= start) & (table["time"] < end)).to_numpy()]
    hour = (inside["time"].to_numpy("datetime64[h]") - start).astype("int64")
    codes, names = pd.factorize(inside["station"])
    values = inside.reindex(columns=list(POLLUTANTS)).to_numpy("float32")
    place = inside.reindex(columns=list(_PLACE)).to_numpy("float64")
    return hour, codes.astype("int64"), [str(name) for name in names], values, place


def _report_duplicates(cell: NDArray[np.int64], size: int) -> None:
    filled = np.zeros(size, dtype=bool)
    filled[cell] = True
    if repeated := len(cell) - int(filled.sum()):
        log.warning("station tables: %d rows repeat a station and hour; the last of each counts", repeated)


def _places(rows: _Rows) -> NDArray[np.float64]:
    """Longitude, latitude and elevation (S, 3) of each station's latest hour."""
    place = rows.place.copy()
    place[:, 0] = np.where(place[:, 0] > 180, place[:, 0] - 360, place[:, 0])
    order = np.argsort(rows.hour, kind="stable")
    latest = np.empty((len(rows.names), 3))
    latest[rows.station[order]] = place[order]
    moved = np.unique(rows.station[(np.abs(place - latest[rows.station]) > _MOVED).any(axis=1)])
    if len(moved):
        some = ", ".join(rows.names[i] for i in moved[:5])
        log.warning("station tables: %d stations change coordinates; the latest count: %s", len(moved), some)
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
