"""China National Environmental Monitoring Centre: the wide archive files and the present API's hourly files.

Both are in Beijing time (UTC+8, no summer time) and label an averaging hour by its **end**, so the hour labelled
``h`` of day ``D`` starts at ``D + h - 9 h`` UTC. That the label is the end shows in the files' own running daily
maximum of 8-hour ozone (``O3_8h_24h``): it starts anew at label 01, the first hour of the Beijing day, not at 00.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.contract import POLLUTANTS
from pipeline.errors import InputError
from pipeline.sources.archive import Member, contents, members
from pipeline.sources.csvfile import CsvFile, Truncated

log = logging.getLogger("aqnet")

#: From an hour's label to its UTC start: 8 h of zone and 1 h because the label is the end.
TO_START = np.timedelta64(9, "h")

#: `type` of the wide files -> pollutant; running means (``_24h``, ``_8h``) and AQI are not observations.
TYPES = {"PM2.5": "pm2p5", "PM10": "pm10", "SO2": "so2", "NO2": "no2", "O3": "o3", "CO": "co"}
API_COLUMNS = {"pm2_5": "pm2p5", "pm10": "pm10", "so2": "so2", "no2": "no2", "o3": "o3", "co": "co"}

STATION_LIST = "stations.csv"
#: Above this share of reporting codes that the station list does not have, the list is the wrong one.
MAX_UNKNOWN_SHARE = 0.05

_DAY_FILE = re.compile(r"china_sites_(\d{4})(\d{2})(\d{2})\.csv", re.IGNORECASE)
_HOUR_FILE = re.compile(r"(\d{4})-(\d{2})-(\d{2})T(\d{2})\.csv", re.IGNORECASE)


@dataclass(frozen=True)
class StationList:
    """Coordinates by code; `lon`, `lat` are WGS84 degrees, NaN where the list has none."""

    file: CsvFile
    frame: pd.DataFrame  # index code; columns lon, lat, row

    def coordinates(self, codes: list[str], reports: NDArray[np.bool_], where: str) -> tuple[pd.DataFrame, list[str]]:
        """Coordinates of `codes` (NaN for one the list does not have), and the reporting codes it does not have.

        Raises
        ------
        InputError
            When a reporting code stands in the list without coordinates, or the list lacks more than 5 % of them.
        """
        found = self.frame.reindex(codes)
        lost = found.index[reports & found["lon"].isna().to_numpy()]
        for code in lost.intersection(self.frame.index, sort=False):
            line = self.file.line_at(int(self.frame["row"][code]))
            raise InputError(
                f"{self.file.where}, line {line}: expected lon and lat of station {code}, which reports in {where};"
                " found none; fill them in, or remove the line to leave the station out"
            )
        if len(lost) > MAX_UNKNOWN_SHARE * reports.sum():
            raise InputError(
                f"{self.file.where}: expected a line for each station that reports in {where};"
                f" found none for {len(lost)} of {reports.sum()}: {_some(lost)}"
            )
        return found, list(lost)


def station_list_path(path: Path, stations: Path | None) -> Path | None:
    """Return the station list that a read of `path` uses: `stations`, else ``stations.csv`` in or beside it."""
    beside = (path if path.is_dir() else path.parent) / STATION_LIST
    return stations or (beside if beside.exists() else None)


def read_stations(path: Path) -> StationList:
    """Read a station list: CSV with columns ``code,lon,lat`` (degrees); others are passed over.

    Raises
    ------
    InputError
        When the file or a column is missing, or a coordinate is not a number or out of range, naming the line.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a station list (CSV with code, lon, lat); found no such file")
    file = CsvFile(str(path), path.read_bytes())
    header = file.header()
    for column in ("code", "lon", "lat"):
        if column not in header:
            raise InputError(f"{path}: expected the columns code, lon, lat; '{column}' is missing")
    frame = file.read({"code": pa.string(), "lon": pa.float64(), "lat": pa.float64()}).to_pandas()
    for column, low, high in (("lon", -180, 360), ("lat", -90, 90)):
        for row in np.flatnonzero(frame[column].notna() & ~frame[column].between(low, high))[:1]:
            where, found = f"{path}, line {file.line_at(row)}, column '{column}'", frame[column][row]
            raise InputError(f"{where}: expected degrees in [{low}, {high}]; found {found}")
    frame["row"] = np.arange(len(frame))
    frame.loc[frame[["lon", "lat"]].isna().any(axis=1), ["lon", "lat"]] = np.nan
    return StationList(file, frame.dropna(subset="code").drop_duplicates("code", keep="last").set_index("code"))


def find_members(path: Path, start: np.datetime64, end: np.datetime64, ignore: Path | None = None) -> list[Member]:
    """List the CSVs whose name does not rule out hours in [start, end) UTC, in the order of their hours.

    Of dated files with one name (the same day in two archives) the last in sorted order counts.

    Raises
    ------
    InputError
        When no file covers the period, naming the period that the files cover.
    """
    found = members(path, ignore={STATION_LIST, *([ignore.name] if ignore else [])})
    spans = {member: _span(member.base) for member in found}
    dated = {member.base: member for member in found if spans[member]}
    kept = [member for member in found if dated.get(member.base, member) == member]
    wanted = [m for m in kept if (span := spans[m]) is None or (span[0] < end and span[1] > start)]
    if not wanted:
        first, last = min(span[0] for span in spans.values() if span), max(span[1] for span in spans.values() if span)
        raise InputError(f"{path}: expected files for {start} to {end} UTC; found files for {first} to {last} UTC only")
    return sorted(wanted, key=lambda member: spans[member] or (start, end))


def read(
    path: Path, stations: Path | None, start: np.datetime64, end: np.datetime64, truncated: Truncated
) -> Iterator[pd.DataFrame]:
    """Yield one StationTable a file; see `pipeline.sources.read`. Files are opened one at a time."""
    list_path = station_list_path(path, stations)
    station_list = read_stations(list_path) if list_path else None
    unknown: dict[str, str] = {}
    for member, file in contents(find_members(path, start, end, list_path)):
        layout = _layout(file)
        table, lost = layout(file, station_list, truncated)
        unknown |= dict.fromkeys(lost, member.label)
        yield table.assign(
            source_file=pd.Categorical.from_codes(np.zeros(len(table), "int8"), pd.Index([member.label]))
        )
    if unknown:
        codes = list(unknown)
        log.warning("%s: no line for %d codes, left out: %s", list_path, len(codes), _some(codes))


_Layout = Callable[[CsvFile, StationList | None, Truncated], tuple[pd.DataFrame, list[str]]]


def _layout(file: CsvFile) -> _Layout:
    header = file.header()
    if header[:3] == ["date", "hour", "type"]:
        return _read_wide
    if {"timepoint", "stationcode", "longitude", "latitude", "pm2_5"} <= set(header):
        return _read_api
    raise InputError(
        f"{file.where}: expected a header date,hour,type,<codes> or timepoint,stationcode,longitude,latitude,...,pm2_5;"
        f" found {','.join(header[:5])}"
    )


def _read_wide(file: CsvFile, stations: StationList | None, truncated: Truncated) -> tuple[pd.DataFrame, list[str]]:
    if stations is None:
        raise InputError(f"{file.where}: expected a station list, because the file has no coordinates; found none")
    codes = list(dict.fromkeys(name for name in file.header()[3:] if name))
    if not codes:
        raise InputError(f"{file.where}, line 1: expected station codes after date,hour,type; found none")
    values, hours = _wide_values(file, codes, truncated)  # (T, S, P), (T,)
    reports = np.logical_or.reduce(np.isfinite(values[:, :, 0]), axis=0)
    places, lost = stations.coordinates(codes, reports, file.where)
    keep = np.isfinite(values).any(axis=2) & places["lon"].notna().to_numpy()
    at_hour, at_station = np.nonzero(keep)
    table = {
        "time": hours[at_hour],
        "station": _station_names(at_station, codes),
        "lon": places["lon"].to_numpy()[at_station],
        "lat": places["lat"].to_numpy()[at_station],
    }
    return pd.DataFrame(table | dict(zip(POLLUTANTS, values[keep].T, strict=True))), lost


def _wide_values(
    file: CsvFile, codes: list[str], truncated: Truncated
) -> tuple[NDArray[np.float32], NDArray[np.datetime64]]:
    """Values (hour, code, pollutant) and the UTC hour starts of a wide file."""
    keys = {"date": pa.int32(), "hour": pa.int32(), "type": pa.string()}
    table = file.read(keys | dict.fromkeys(codes, pa.float32()), truncated)
    starts = _wide_starts(file, table)
    kind = pd.Series(table["type"].to_pylist(), dtype=object).map(
        {name: POLLUTANTS.index(pollutant) for name, pollutant in TYPES.items()}
    )
    wanted = kind.notna().to_numpy()
    if len(wanted) and not wanted.any():
        raise InputError(f"{file.where}, column 'type': expected {', '.join(TYPES)}; found {table['type'][0]}")
    hours, row_hour = np.unique(starts[wanted], return_inverse=True)
    values = np.full((len(hours), len(codes), len(POLLUTANTS)), np.nan, dtype="float32")
    matrix = np.column_stack([table[code].to_numpy() for code in codes])[wanted]
    values[row_hour, :, kind[wanted].to_numpy("int64")] = matrix
    return values, hours


def _wide_starts(file: CsvFile, table: pa.Table) -> NDArray[np.datetime64]:
    """UTC starts (row,) of a wide table's hours."""
    date, hour = (table[name].to_pandas() for name in ("date", "hour"))
    day = pd.to_datetime(date.astype("Int64").astype("string"), format="%Y%m%d", errors="coerce")
    _refuse(file, "date", day.isna(), "a date as YYYYMMDD", date)
    _refuse(file, "hour", ~hour.between(0, 23), "an hour in 0..23", hour)
    return day.to_numpy("datetime64[ns]") + hour.to_numpy("timedelta64[h]") - TO_START


def _read_api(file: CsvFile, _stations: StationList | None, truncated: Truncated) -> tuple[pd.DataFrame, list[str]]:
    keys = {"timepoint": pa.string(), "stationcode": pa.string(), "longitude": pa.float64(), "latitude": pa.float64()}
    frame = file.read(keys | dict.fromkeys(API_COLUMNS, pa.float32()), truncated).to_pandas()
    label = pd.to_datetime(frame["timepoint"], format="%Y-%m-%dT%H%M", errors="coerce")
    _refuse(file, "timepoint", label.isna() | (label.dt.minute != 0), "YYYY-MM-DDThh00", frame["timepoint"])
    table = frame.rename(columns=API_COLUMNS | {"longitude": "lon", "latitude": "lat"})
    table = table.reindex(columns=["lon", "lat", *POLLUTANTS]).astype(dict.fromkeys(POLLUTANTS, "float32"))
    codes, names = pd.factorize(frame["stationcode"])
    table.insert(0, "time", label.to_numpy("datetime64[ns]") - TO_START)
    table.insert(1, "station", _station_names(codes, list(names)))
    for column, limit in (("lon", 180), ("lat", 90)):
        bad = ~table[column].between(-limit, limit) & table["pm2p5"].notna()
        _refuse(file, column, bad, f"the station's degrees in [{-limit}, {limit}]", table[column])
    return table[table[list(POLLUTANTS)].notna().any(axis=1) & table["lon"].notna()].reset_index(drop=True), []


def _refuse(file: CsvFile, column: str, bad: pd.Series, expected: str, values: pd.Series) -> None:
    for row in np.flatnonzero(bad)[:1]:
        where = f"{file.where}, line {file.line_at(row)}, column '{column}'"
        raise InputError(f"{where}: expected {expected}; found '{values[row]}'")


def _station_names(at_station: NDArray[np.intp], codes: list[str]) -> pd.Series:
    return pd.Series(pd.Categorical.from_codes(at_station, pd.Index([f"cnemc:{code}" for code in codes])))


def _span(name: str) -> tuple[np.datetime64, np.datetime64] | None:
    """UTC hours that a file of this name can hold; None when its name does not say."""
    if day := _DAY_FILE.fullmatch(name):
        first, hours = f"{day[1]}-{day[2]}-{day[3]}T00", 24
    elif hour := _HOUR_FILE.fullmatch(name):
        first, hours = f"{hour[1]}-{hour[2]}-{hour[3]}T{hour[4]}", 1
    else:
        return None
    try:
        start = np.datetime64(first, "h") - TO_START
    except ValueError:
        return None
    return start, start + np.timedelta64(hours, "h")


def _some(codes: list[str] | pd.Index) -> str:
    return ", ".join(codes[:5]) + (", ..." if len(codes) > 5 else "")
