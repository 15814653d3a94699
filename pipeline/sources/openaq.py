"""OpenAQ: the archive's files, ``location-<id>-<YYYYMMDD>.csv.gz``, one a location and local day.

``datetime`` is local time with its offset, the **end** of the averaging period. Every row has its own unit. Layout:
OpenAQ, About Open Data on AWS. Files of the API and of other tools have no location id, no coordinates or no declared
end of the period, and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.contract import POLLUTANTS
from pipeline.sources import columns, hourly, longform
from pipeline.sources.archive import RawFile
from pipeline.sources.columns import TEXT
from pipeline.sources.csvfile import CsvFile, Truncated
from pipeline.sources.longform import Readings
from pipeline.sources.sites import SiteList
from pipeline.sources.source import CONVENTIONS, Source, Span

CONVENTION = CONVENTIONS["openaq"]

#: Parameter -> pollutant; others (bc, no, nox, pm1, um003, temperature and so on) are passed over.
PARAMETERS = {"pm25": "pm2p5", "pm10": "pm10", "so2": "so2", "no2": "no2", "o3": "o3", "co": "co"}

_TEXTS = ("location_id", "datetime", "parameter", "units")
_NUMBERS = ("lat", "lon", "value")
_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:?\d\d|[+-]\d\d)"
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)?$")
_NAME = re.compile(r"loc(?:ation)?-\d+-(\d{4})(\d{2})(\d{2})\.csv(\.gz)?", re.IGNORECASE)


def parse(raw: RawFile, _sites: SiteList | None, truncated: Truncated) -> Iterator[pd.DataFrame]:
    """Yield the StationTable of one archive file; see `pipeline.sources.source.Source`."""
    file = CsvFile(raw.where, raw.data)
    header = columns.require(file, (*_TEXTS, *_NUMBERS), "an OpenAQ archive file")
    sensor = "sensors_id" if "sensors_id" in header else "sensor_id"  # in the files, and in the documentation
    columns.require(file, (sensor,), "an OpenAQ archive file")
    types = dict.fromkeys(_TEXTS, TEXT) | dict.fromkeys(_NUMBERS, pa.float64()) | {sensor: pa.int64()}
    yield _station_table(file, file.read(types, truncated, CONVENTION.missing), sensor, name_span(raw.base))


def _station_table(file: CsvFile, table: pa.Table, sensor: str, span: Span | None) -> pd.DataFrame:
    pollutant = columns.coded(table, "parameter").map(_pollutant)
    value = columns.numbers(file, table, "value", CONVENTION.missing, pollutant >= 0)
    pollutant[np.isnan(value)] = -1
    rows = pollutant >= 0
    value *= columns.factors(file, table, "units", pollutant, CONVENTION.celsius)
    end = _times(file, table, rows)
    places, names = columns.identifiers(file, table, "location_id", rows, "an OpenAQ location id")
    lon = columns.degrees(file, table, "lon", 180, rows)
    lat = columns.degrees(file, table, "lat", 90, rows)
    sensors = table[sensor].fill_null(-1).to_numpy()
    columns.refuse(file, table, sensor, rows & (sensors < 0), "an OpenAQ sensor id")
    index = _latest(np.flatnonzero(rows), places, sensors, pollutant, end)
    own, different = pd.factorize(sensors[index])
    key, pairs = pd.factorize((places[index] * len(POLLUTANTS) + pollutant[index]) * max(len(different), 1) + own)
    means = _hourly(file, key, len(pairs), end[index], value[index])
    last = index[means.last]
    inside = columns.in_span(file, means.hour, span)
    last, hour, mean = last[inside], means.hour[inside], means.mean[inside, 0]
    readings = Readings(
        time=hour,
        station=columns.named(places[last], [f"openaq:{name}" for name in names]),
        pollutant=pollutant[last],
        value=mean,
        line=file.lines(table.num_rows)[last],
        lon=lon[last],
        lat=lat[last],
        elevation=np.full(len(last), np.nan),
    )
    return longform.to_table(readings, -sensors[last])  # of several sensors the lowest id counts, the oldest


def _pollutant(parameter: str) -> int:
    name = PARAMETERS.get(parameter)
    return -1 if name is None else POLLUTANTS.index(name)


def _latest(index: NDArray[np.int64], *columns: NDArray[np.generic]) -> NDArray[np.int64]:
    """Rows of `index` without those that a later row repeats (same place, sensor, pollutant and time), sorted."""
    again = pd.DataFrame({i: column[index] for i, column in enumerate(columns)}).duplicated(keep="last")
    return index[~again.to_numpy()]


def _times(file: CsvFile, table: pa.Table, rows: NDArray[np.bool_]) -> NDArray[np.datetime64]:
    """UTC seconds (N,) of the ends of the averaging periods; NaT outside `rows`."""
    codes, texts = columns.coded(table, "datetime")
    text = pd.Series([*texts, ""], dtype="object")
    good = text.str.fullmatch(_TIME).to_numpy(dtype=bool) & np.array([_near(t) for t in text])
    time = pd.to_datetime(text.where(good), utc=True, format="ISO8601", errors="coerce")
    time = time.where(time.dt.year.isin(columns.YEARS)).dt.tz_localize(None)
    found = time.to_numpy("M8[s]")[codes]
    columns.refuse(file, table, "datetime", rows & np.isnat(found), "YYYY-MM-DDThh:mm:ss+hh:mm")
    return np.where(rows, found, np.datetime64("NaT"))


def _near(text: str) -> bool:
    """Whether an offset is one that a zone has, UTC-12 to UTC+14 (all are multiples of 15 minutes)."""
    if not (found := _OFFSET.search(text)):
        return text.endswith("Z")
    minutes = int(found[1] + "1") * (60 * int(found[2]) + int(found[3] or 0))
    return -720 <= minutes <= 840 and minutes % 15 == 0


def _hourly(
    file: CsvFile, key: NDArray[np.int64], keys: int, end: NDArray[np.datetime64], value: NDArray[np.float64]
) -> hourly.Means:
    """Hourly means of each sensor's samples, by the time from one sample to the next; at most an hour."""
    hourly.refuse_longer(file, "datetime", key, keys, end, hours=24)
    seconds = np.fmin(np.nan_to_num(hourly.cadences(key, end), nan=3600.0), 3600.0)
    ahead = seconds if CONVENTION.label == "end" else np.zeros(len(seconds))
    return hourly.hourly_means(file, key, end - ahead.astype("m8[s]"), seconds, value[:, None])


def name_span(name: str) -> Span | None:
    """UTC hours that a file of this name can hold: its day in any zone; None when the name has no day."""
    if not (found := _NAME.fullmatch(name)):
        return None
    try:
        day = np.datetime64(f"{found[1]}-{found[2]}-{found[3]}T00", "h")
    except ValueError:
        return None
    return day - np.timedelta64(15, "h"), day + np.timedelta64(36, "h")


SOURCE = Source(conventions=(CONVENTION,), parse=parse, suffixes=(".csv", ".csv.gz"), span=name_span)
