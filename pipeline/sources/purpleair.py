"""PurpleAir: sensor history as CSV (API and download tool), corrected by the published US-wide formula.

``time_stamp`` is in UTC. Both channels of a sensor are needed, as ``pm2.5_cf_1_a`` and ``pm2.5_cf_1_b``, and its
``humidity``: the correction is fitted to cf_1 and needs both. Coordinates stand in the file or in a sensor list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.contract import POLLUTANTS
from pipeline.errors import InputError
from pipeline.sources import columns, hourly, longform
from pipeline.sources.archive import RawFile
from pipeline.sources.columns import TEXT
from pipeline.sources.csvfile import CsvFile, Truncated
from pipeline.sources.longform import Readings
from pipeline.sources.sites import SiteList, site_list
from pipeline.sources.source import CONVENTIONS, Source

CONVENTION = CONVENTIONS["purpleair"]

#: An hour in which the channels differ by more than both of these counts for nothing: ug m-3, and share of their mean.
MAX_DIFFERENCE, MAX_SHARE = 5.0, 0.61

FEET = 0.3048

#: Before there were such sensors; an earlier time is a broken one.
FIRST, END = np.datetime64("2015-01-01", "s"), np.datetime64(f"{columns.YEARS.stop}-01-01", "s")

_CHANNELS = ("pm2.5_cf_1_a", "pm2.5_cf_1_b", "humidity")
_PLACE = ("latitude", "longitude")
_NAME = re.compile(r"(\d+)(?!\d)[ _.-].*csv", re.IGNORECASE)
_ISO = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,6})?(Z|\+00:?00)"


def corrected(cf_1: NDArray[np.float64], humidity: NDArray[np.float64]) -> NDArray[np.float64]:
    """PM2.5 in ug m-3 of the mean of both channels' cf_1 (ug m-3) and the sensor's relative humidity (%).

    Below 570 ug m-3: Barkjohn, Gantt and Clements 2021, Atmos. Meas. Tech. 14, 4617,
    doi:10.5194/amt-14-4617-2021. Above 611, and blended between: its extension to extreme smoke, Barkjohn, Holder,
    Frederick and Clements 2022, Sensors 22, 9669, doi:10.3390/s22249669.
    """
    usual = 0.524 * cf_1 - 0.0862 * humidity + 5.75
    smoke = 4.21e-4 * cf_1**2 + 0.392 * cf_1 + 3.44
    share = np.clip(0.0244 * cf_1 - 13.9, 0, 1)
    return np.where(cf_1 < 570, usual, np.where(cf_1 < 611, share * smoke + (1 - share) * usual, smoke))


def read_sites(path: Path) -> SiteList:
    """Read a sensor list: CSV with ``sensor_index,latitude,longitude`` and optionally ``altitude`` (feet).

    Raises
    ------
    InputError
        When the file or a column is missing, or a cell is not a number or out of range, naming the line.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a sensor list (CSV with sensor_index, latitude, longitude); found none")
    file = CsvFile(str(path), path.read_bytes())
    columns.require(file, ("sensor_index", *_PLACE), "a PurpleAir sensor list")
    numbers = dict.fromkeys((*_PLACE, "altitude"), pa.float64())
    frame = file.read({"sensor_index": pa.int64()} | numbers).to_pandas()
    frame = frame.rename(columns={"latitude": "lat", "longitude": "lon"})
    if "altitude" in frame:
        frame["elevation"] = frame["altitude"] * FEET
    code = frame["sensor_index"].astype("Int64").astype("string").astype("object")
    return site_list(file, frame.assign(sensor_index=code.where(code.notna(), None)), "sensor_index")


def parse(raw: RawFile, sites: SiteList | None, truncated: Truncated) -> Iterator[pd.DataFrame]:
    """Yield the StationTable of one history file; see `pipeline.sources.source.Source`."""
    file = CsvFile(raw.where, raw.data)
    header = columns.require(file, ("time_stamp",), "a PurpleAir history file")
    if not set(_CHANNELS) <= set(header):
        raise InputError(
            f"{file.where}, line 1: expected the columns {', '.join(_CHANNELS)}, because the correction is for cf_1 and"
            f" needs both channels; found {columns.shown(','.join(header[:8]))}"
        )
    if not set(_PLACE) <= set(header) and sites is None:
        raise InputError(
            f"{file.where}: expected the columns latitude and longitude, or a sensor list ({SOURCE.site_names[0]});"
            " found neither"
        )
    types = {"time_stamp": TEXT, "sensor_index": pa.int64()} | dict.fromkeys((*_CHANNELS, *_PLACE), pa.float64())
    yield _station_table(file, file.read(types, truncated, CONVENTION.missing), sites, raw.base)


def _station_table(file: CsvFile, table: pa.Table, sites: SiteList | None, base: str) -> pd.DataFrame:
    samples = np.column_stack([columns.numbers(file, table, name, CONVENTION.missing) for name in _CHANNELS])  # (N, 3)
    with np.errstate(invalid="ignore"):
        rows = np.isfinite(samples).all(axis=1) & (samples[:, 2] >= 0) & (samples[:, 2] <= 100)
    columns.left_out(file, int((~rows).sum()), "a channel or the humidity is missing, or it is not in 0..100 %")
    sensors = _sensors(file, table, rows, base)
    time = _times(file, table, rows)
    index = np.flatnonzero(rows)
    again = pd.DataFrame({"sensor": sensors[index], "time": time[index]}).duplicated(keep="last").to_numpy()
    index = index[~again]
    key, names = pd.factorize(sensors[index])
    hourly.refuse_longer(file, "time_stamp", key, len(names), time[index], hours=6)
    seconds = np.fmin(np.nan_to_num(hourly.cadences(key, time[index]), nan=3600.0), 3600.0)
    means = hourly.hourly_means(file, key, time[index] - CONVENTION.to_start, seconds, samples[index])
    agree = _agree(file, means.mean[:, 0], means.mean[:, 1])
    last, hour, mean = index[means.last][agree], means.hour[agree], means.mean[agree]
    place = _places(file, table, sites, sensors, rows)
    placed = ~np.isnan(place["lon"][last])
    last, hour, mean = last[placed], hour[placed], mean[placed]
    codes, own = pd.factorize(sensors[last])
    readings = Readings(
        time=hour,
        station=columns.named(codes, [f"purpleair:{sensor}" for sensor in own]),
        pollutant=np.full(len(last), POLLUTANTS.index("pm2p5")),
        value=corrected((mean[:, 0] + mean[:, 1]) / 2, mean[:, 2]),
        line=file.lines(table.num_rows)[last],
        **{name: column[last] for name, column in place.items()},
    )
    return longform.to_table(readings)


def _agree(file: CsvFile, a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Hours (M,) in which the channels agree, by the criterion of Barkjohn et al. 2021 (there for daily means)."""
    apart = np.abs(a - b)
    agree = (apart <= MAX_DIFFERENCE) | (apart <= MAX_SHARE * np.abs(a + b) / 2)
    columns.left_out(
        file, int((~agree).sum()), f"channels A and B differ by more than {MAX_DIFFERENCE:g} ug m-3 and {MAX_SHARE:.0%}"
    )
    return agree


def _sensors(file: CsvFile, table: pa.Table, rows: NDArray[np.bool_], base: str) -> NDArray[np.int64]:
    """Sensor index (N,), of its column or else of the file's name, as the download tool writes it."""
    if "sensor_index" in table.column_names:
        found = table["sensor_index"].fill_null(-1).to_numpy()
        columns.refuse(file, table, "sensor_index", rows & (found < 0), "a sensor's index")
        return found
    if not (name := _NAME.fullmatch(base)) or len(name[1]) > 18:
        raise InputError(
            f"{file.where}, line 1: expected the column sensor_index, or a file name that begins with it; found"
            f" {columns.shown(base)}"
        )
    return np.full(table.num_rows, int(name[1]))


def _times(file: CsvFile, table: pa.Table, rows: NDArray[np.bool_]) -> NDArray[np.datetime64]:
    """UTC seconds (N,) of ``time_stamp``, Unix seconds or ISO 8601 with Z; NaT outside `rows`."""
    codes, texts = columns.coded(table, "time_stamp")
    text = pd.Series([*texts, ""], dtype="object")
    iso = text.str.fullmatch(_ISO).to_numpy(dtype=bool)
    unix = text.str.fullmatch("[0-9]{10}").to_numpy(dtype=bool)
    stamp = pd.to_datetime(text.where(iso), utc=True, format="ISO8601", errors="coerce").dt.tz_localize(None)
    count = pd.to_numeric(text.where(unix, "0")).to_numpy("int64").astype("M8[s]")
    time = np.where(unix, count, stamp.to_numpy("M8[s]"))
    time[(time < FIRST) | (time >= END)] = np.datetime64("NaT")
    found = time[codes]
    columns.refuse(file, table, "time_stamp", rows & np.isnat(found), "Unix seconds, or YYYY-MM-DDThh:mm:ssZ")
    return np.where(rows, found, np.datetime64("NaT"))


def _places(
    file: CsvFile, table: pa.Table, sites: SiteList | None, sensors: NDArray[np.int64], rows: NDArray[np.bool_]
) -> dict[str, NDArray[np.float64]]:
    """``lon``, ``lat`` and ``elevation``, each (N,), of the file's columns or else of the sensor list."""
    if set(_PLACE) <= set(table.column_names):
        lon = columns.degrees(file, table, "longitude", 180, rows)
        lat = columns.degrees(file, table, "latitude", 90, rows)
        return {"lon": lon, "lat": lat, "elevation": np.full(len(lon), np.nan)}
    assert sites is not None  # `parse` made sure
    codes, names = pd.factorize(sensors)
    reports = np.bincount(codes[rows], minlength=len(names)) > 0
    found = sites.coordinates([str(name) for name in names], reports, file.where)
    return {name: found[name].to_numpy("float64")[codes] for name in ("lon", "lat", "elevation")}


SOURCE = Source(
    conventions=(CONVENTION,),
    parse=parse,
    suffixes=(".csv",),
    site_names=("sensors.csv",),
    read_sites=read_sites,
)
