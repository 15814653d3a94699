"""China National Environmental Monitoring Centre: the wide archive files and the present API's hourly files.

Both are in Beijing time (UTC+8, no summer time) and label an averaging hour by its **end**, so the hour labelled
``h`` of day ``D`` starts at ``D + h - 9 h`` UTC. That the label is the end shows in the files' own running daily
maximum of 8-hour ozone (``O3_8h_24h``): it starts anew at label 01, the first hour of the Beijing day, not at 00.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.contract import POLLUTANTS, line_column
from pipeline.errors import InputError
from pipeline.sources.archive import RawFile
from pipeline.sources.csvfile import CsvFile, Truncated, matrix, shown
from pipeline.sources.sites import SiteList, read_list
from pipeline.sources.source import CONVENTIONS, Source

log = logging.getLogger("aqnet")

#: From an hour's label to its UTC start: 8 h of zone and 1 h because the label is the end.
CONVENTION = CONVENTIONS["cnemc"]

#: `type` of the wide files -> pollutant; running means (``_24h``, ``_8h``) and AQI are not observations.
TYPES = {"PM2.5": "pm2p5", "PM10": "pm10", "SO2": "so2", "NO2": "no2", "O3": "o3", "CO": "co"}
API_COLUMNS = {"pm2_5": "pm2p5", "pm10": "pm10", "so2": "so2", "no2": "no2", "o3": "o3", "co": "co"}

#: Dates and labels there can be, each of a whole number of digits.
_DATES = 19700101, 21991231
_LABEL = r"(?:19[7-9]|20[0-9]|21[0-9])[0-9]-[0-9]{2}-[0-9]{2}T[0-9]{2}00"

_DAY_FILE = re.compile(r"china_sites_(\d{4})(\d{2})(\d{2})\.csv", re.IGNORECASE)
_HOUR_FILE = re.compile(r"(\d{4})-(\d{2})-(\d{2})T(\d{2})\.csv", re.IGNORECASE)


def parse(raw: RawFile, sites: SiteList | None, truncated: Truncated) -> Iterator[pd.DataFrame]:
    """Yield the StationTable of one file, archive or API layout; see `pipeline.sources.source.Source`."""
    file = CsvFile(raw.where, raw.data)
    yield _layout(file)(file, sites, truncated)


_Layout = Callable[[CsvFile, SiteList | None, Truncated], pd.DataFrame]


def _layout(file: CsvFile) -> _Layout:
    header = file.header()
    if header[:3] == ["date", "hour", "type"]:
        return _read_wide
    if {"timepoint", "stationcode", "longitude", "latitude", "pm2_5"} <= set(header):
        return _read_api
    raise InputError(
        f"{file.where}: expected a header date,hour,type,<codes> or timepoint,stationcode,longitude,latitude,...,pm2_5;"
        f" found {shown(','.join(header[:5]))}"
    )


def _read_wide(file: CsvFile, sites: SiteList | None, truncated: Truncated) -> pd.DataFrame:
    if sites is None:
        raise InputError(f"{file.where}: expected a station list, because the file has no coordinates; found none")
    codes = list(dict.fromkeys(name for name in file.header()[3:] if name))
    if not codes:
        raise InputError(f"{file.where}, line 1: expected station codes after date,hour,type; found none")
    values, lines, hours = _wide_values(file, codes, truncated)  # (T, S, P), (T, P), (T,)
    reports = np.logical_or.reduce(np.isfinite(values[:, :, 0]), axis=0)
    places = sites.coordinates(codes, reports, file.where)
    keep = np.isfinite(values).any(axis=2) & places["lon"].notna().to_numpy()
    at_hour, at_station = np.nonzero(keep)
    table = {
        "time": hours[at_hour],
        "station": _station_names(at_station, codes),
        "lon": places["lon"].to_numpy()[at_station],
        "lat": places["lat"].to_numpy()[at_station],
    }
    return _with_values(table, values[keep], lines[at_hour])


def _with_values(table: dict[str, object], values: NDArray[np.float32], lines: NDArray[np.int32]) -> pd.DataFrame:
    """Add values and lines, both (N, P), to the columns of a StationTable."""
    lines = np.where(np.isnan(values), 0, lines).astype("int32")
    table |= dict(zip(POLLUTANTS, values.T, strict=True))
    return pd.DataFrame(table | dict(zip(map(line_column, POLLUTANTS), lines.T, strict=True)))


def _wide_values(
    file: CsvFile, codes: list[str], truncated: Truncated
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.datetime64]]:
    """Values (hour, code, pollutant), their lines (hour, pollutant) and the UTC hour starts of a wide file."""
    keys = {"date": pa.int32(), "hour": pa.int32(), "type": pa.string()}
    table = file.read(keys | dict.fromkeys(codes, pa.float32()), truncated)
    starts = _wide_starts(file, table)
    kind = pd.Series(table["type"].to_pylist(), dtype=object).map(
        {name: POLLUTANTS.index(pollutant) for name, pollutant in TYPES.items()}
    )
    wanted = kind.notna().to_numpy()
    if len(wanted) and not wanted.any():
        raise InputError(f"{file.where}, column 'type': expected {', '.join(TYPES)}; found '{shown(table['type'][0])}'")
    hours, row_hour = np.unique(starts[wanted], return_inverse=True)
    values = np.full((len(hours), len(codes), len(POLLUTANTS)), np.nan, dtype="float32")
    lines = np.zeros((len(hours), len(POLLUTANTS)), dtype="int32")
    at = row_hour, kind[wanted].to_numpy("int64")
    values[at[0], :, at[1]] = matrix(table.select(codes))[wanted]
    lines[at] = file.lines(table.num_rows)[wanted]
    return values, lines, hours


def _wide_starts(file: CsvFile, table: pa.Table) -> NDArray[np.datetime64]:
    """UTC starts (row,) of a wide table's hours."""
    date, hour = (table[name].to_pandas() for name in ("date", "hour"))
    day = pd.to_datetime(date.astype("Int64").astype("string"), format="%Y%m%d", errors="coerce")
    # A date that lost a digit reads as another one: pandas takes 2019121 for the first of December.
    _refuse(file, "date", day.isna() | ~date.between(*_DATES), "a date as YYYYMMDD", date)
    _refuse(file, "hour", ~hour.between(0, 23), "an hour in 0..23", hour)
    return day.to_numpy("datetime64[ns]") + hour.to_numpy("timedelta64[h]") - CONVENTION.to_start


def _read_api(file: CsvFile, _sites: SiteList | None, truncated: Truncated) -> pd.DataFrame:
    keys = {"timepoint": pa.string(), "stationcode": pa.string(), "longitude": pa.float64(), "latitude": pa.float64()}
    frame = file.read(keys | dict.fromkeys(API_COLUMNS, pa.float32()), truncated).to_pandas()
    texts = frame["timepoint"]
    label = pd.to_datetime(texts, format="%Y-%m-%dT%H%M", errors="coerce")
    strict = texts.str.fullmatch(_LABEL).fillna(False).astype(bool)  # pandas takes T050 for 05:00, too
    _refuse(file, "timepoint", label.isna() | ~strict, "YYYY-MM-DDThh00", texts)
    values = frame.reindex(columns=list(API_COLUMNS)).rename(columns=API_COLUMNS)[list(POLLUTANTS)].to_numpy("float32")
    reports = np.isfinite(values).any(axis=1)
    _refuse(file, "stationcode", frame["stationcode"].isna() & reports, "a station code", frame["stationcode"])
    for column, limit in (("longitude", 180), ("latitude", 90)):
        bad = ~frame[column].between(-limit, limit) & reports
        _refuse(file, column, bad, f"the station's degrees in [{-limit}, {limit}]", frame[column])
    codes, names = pd.factorize(frame["stationcode"])
    table = {
        "time": (label.to_numpy("datetime64[ns]") - CONVENTION.to_start)[reports],
        "station": _station_names(codes[reports], list(names)),
        "lon": frame["longitude"].to_numpy()[reports],
        "lat": frame["latitude"].to_numpy()[reports],
    }
    lines = np.broadcast_to(file.lines(len(frame))[:, None], values.shape)
    return _last_of_each(_with_values(table, values[reports], lines[reports]), file.where)


def _last_of_each(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """One row a station and hour, the last; a warning where there were more."""
    again = table.duplicated(["time", "station"], keep="last").to_numpy()
    if again.any():
        log.warning(
            "%s: %d rows give a station and hour that a later row gives again; the last counts", where, again.sum()
        )
    return table[~again].reset_index(drop=True)


def _refuse(file: CsvFile, column: str, bad: pd.Series, expected: str, values: pd.Series) -> None:
    for row in np.flatnonzero(bad)[:1]:
        where = f"{file.where}, line {file.line_at(row)}, column '{column}'"
        raise InputError(f"{where}: expected {expected}; found '{shown(values[row])}'")


def _station_names(at_station: NDArray[np.intp], codes: list[str]) -> pd.Series:
    return pd.Series(pd.Categorical.from_codes(at_station, pd.Index([f"cnemc:{code}" for code in codes])))


def span(name: str) -> tuple[np.datetime64, np.datetime64] | None:
    """UTC hours that a file of this name can hold; None when its name does not say."""
    if day := _DAY_FILE.fullmatch(name):
        first, hours = f"{day[1]}-{day[2]}-{day[3]}T00", 24
    elif hour := _HOUR_FILE.fullmatch(name):
        first, hours = f"{hour[1]}-{hour[2]}-{hour[3]}T{hour[4]}", 1
    else:
        return None
    try:
        start = np.datetime64(first, "h") - CONVENTION.to_start.astype("m8[h]")
    except ValueError:
        return None
    return start, start + np.timedelta64(hours, "h")


SOURCE = Source(
    conventions=(CONVENTION,),
    parse=parse,
    span=span,
    site_names=("stations.csv",),
    read_sites=read_list,
)
