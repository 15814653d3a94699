"""AirNow (US EPA, with Canada, Mexico and US embassies): HourlyData, HourlyAQObs and the list of monitoring sites.

Both are in GMT and label an averaging hour by its **beginning**. HourlyData has no header and no coordinates;
HourlyAQObs has both. Values are preliminary. Layouts: the fact sheets of the AirNow API (HourlyDataFactSheet,
HourlyAQObsFactSheet, MonitoringSiteFactSheet); non-ASCII site names are in Latin-1, and no name is read.
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
from pipeline.sources import columns, longform
from pipeline.sources.archive import RawFile
from pipeline.sources.columns import TEXT
from pipeline.sources.csvfile import CsvFile, Truncated
from pipeline.sources.longform import Readings
from pipeline.sources.sites import SiteList, site_list
from pipeline.sources.source import CONVENTIONS, Source, Span, base_name

DATA, OBS = CONVENTIONS["airnow-hourly-data"], CONVENTIONS["airnow-aqobs"]

#: Columns of HourlyData, which has no header.
COLUMNS = ("date", "time", "AQSID", "site name", "GMT offset", "parameter", "reporting units", "value", "data source")

#: Parameter of HourlyData -> pollutant; meteorology, NO, NOX and others are passed over.
PARAMETERS = {"PM2.5": "pm2p5", "PM10": "pm10", "SO2": "so2", "NO2": "no2", "OZONE": "o3", "CO": "co"}

#: Column of HourlyAQObs -> pollutant; its unit stands in ``<column>_Unit``.
OBS_COLUMNS = {"PM25": "pm2p5", "PM10": "pm10", "SO2": "so2", "NO2": "no2", "OZONE": "o3", "CO": "co"}

#: Columns of the old site list, which has no header; Monitoring_Site_Locations_V2.dat has one.
SITE_COLUMNS = (
    *("AQSID", "Parameter", "SiteCode", "SiteName", "Status", "AgencyID", "AgencyName", "EPARegion", "Latitude"),
    *("Longitude", "Elevation", "GMTOffset", "CountryFIPS", "CMSACode", "CMSAName", "MSACode", "MSAName"),
    *("StateAQSCode", "StateAbbreviation", "CountyAQSCode", "CountyName", "CityCode", "CityName"),
)

_NAME = re.compile(r"Hourly(?:Data|AQObs)_(\d{4})(\d{2})(\d{2})(\d{2})\.dat", re.IGNORECASE)
_DAILY = re.compile(r"\d\d/\d\d/\d\d(\d\d)?\|[^|]{3,}\|[^|]*\|[^|]*-(24hr|\d+HR|24HR)\|", re.IGNORECASE)


def read_sites(path: Path) -> SiteList:
    """Read the list of monitoring sites, of the generation with a header (V2) or without.

    Of the rows of a site those with coordinates count, active ones before others, and of these the last. A site without
    coordinates (none, or 0 and 0) is taken as not listed.

    Raises
    ------
    InputError
        When the file or a column is missing, or a coordinate is not a number or out of range, naming the line.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected AirNow's list of monitoring sites; found no such file")
    file = CsvFile(str(path), path.read_bytes(), delimiter="|")
    if b"latitude" not in file.data.split(b"\n", 1)[0].lower():
        file = CsvFile(file.where, file.data, delimiter="|", names=SITE_COLUMNS)
    columns.require(file, ("AQSID", "Latitude", "Longitude", "Status"), "AirNow's list of monitoring sites")
    texts = ("AQSID", "FullAQSID", "StationID", "Status")
    numbers = {"Latitude": "lat", "Longitude": "lon", "Elevation": "elevation"}
    table = file.read(dict.fromkeys(texts, pa.string()) | dict.fromkeys(numbers, pa.float64()))
    frame = table.to_pandas().rename(columns=numbers)
    found = site_list(file, _counting(frame, "AQSID"), "AQSID")
    for other in frame.columns.intersection(["FullAQSID", "StationID"]):
        more = site_list(file, _counting(frame, other), other).frame
        found = SiteList(file, pd.concat([found.frame, more[~more.index.isin(found.frame.index)]]))
    return found


def _counting(frame: pd.DataFrame, code: str) -> pd.DataFrame:
    """The rows with their code taken away where another row of the site counts, so that only one kind is left."""
    placed = frame["lon"].notna() & frame["lat"].notna() & ((frame["lon"] != 0) | (frame["lat"] != 0))
    active = placed & (frame["Status"].str.strip().str.lower() == "active")
    has_active = active.groupby(frame[code]).transform("any").fillna(False).astype(bool)
    return frame.assign(**{code: frame[code].where(placed & (active | ~has_active))})


def parse(raw: RawFile, sites: SiteList | None, truncated: Truncated) -> Iterator[pd.DataFrame]:
    """Yield the StationTable of one HourlyData or HourlyAQObs file; see `pipeline.sources.source.Source`."""
    first = next((line for line in raw.data[:1_000_000].splitlines() if line.strip()), b"").decode("latin-1")
    span = name_span(raw.base)
    if _DAILY.match(first):
        kind = first.split("|")[3]
        raise InputError(f"{raw.where}, line 1: expected hourly values; found AirNow's daily file, parameter '{kind}'")
    if first.count("|") == len(COLUMNS) - 1:
        yield _hourly_data(CsvFile(raw.where, raw.data, delimiter="|", names=COLUMNS), sites, truncated, span)
    elif "AQSID" in first and "ValidDate" in first:
        yield _aqobs(CsvFile(raw.where, raw.data), truncated, span)
    else:
        found = columns.shown(first) or "an empty file"
        raise InputError(
            f"{raw.where}, line 1: expected AirNow HourlyData (date|time|AQSID|...|data source) or HourlyAQObs (header"
            f" with AQSID and ValidDate); found {found}"
        )


def _hourly_data(file: CsvFile, sites: SiteList | None, truncated: Truncated, span: Span | None) -> pd.DataFrame:
    if sites is None:
        lists = " or ".join(SOURCE.site_names)
        raise InputError(f"{file.where}: expected a site list ({lists}), because HourlyData has no coordinates")
    texts = ("date", "time", "AQSID", "parameter", "reporting units")
    table = file.read(dict.fromkeys(texts, TEXT) | {"value": pa.float64()}, truncated, DATA.missing)
    pollutant = columns.coded(table, "parameter").map(_pollutant)
    value = columns.numbers(file, table, "value", DATA.missing, pollutant >= 0)
    rows = (pollutant >= 0) & ~np.isnan(value)
    pollutant = np.where(rows, pollutant, -1)
    value = value * columns.factors(file, table, "reporting units", pollutant, DATA.celsius)
    time = columns.clock_times(file, table, "date", "time", "%m/%d/%y", rows) - DATA.to_start
    codes, names = columns.identifiers(file, table, "AQSID", rows, "a site's AQSID")
    rows &= _whole_hours(file, time) & columns.in_span(file, time, span)
    reports = np.bincount(codes[rows], minlength=len(names)) > 0
    places = sites.coordinates(names, reports, file.where)
    place = {name: np.append(places[name].to_numpy("float64"), np.nan)[codes] for name in ("lon", "lat", "elevation")}
    rows &= ~np.isnan(place["lon"])
    line = file.lines(table.num_rows)
    station = columns.named(codes[rows], [f"airnow:{_nine(name)}" for name in names])
    own = {name: column[rows] for name, column in place.items()}
    return longform.to_table(Readings(time[rows], station, pollutant[rows], value[rows], line[rows], **own))


def _pollutant(parameter: str) -> int:
    name = PARAMETERS.get(parameter.strip())
    return -1 if name is None else POLLUTANTS.index(name)


def _nine(aqsid: str) -> str:
    """The nine characters that both layouts share: a full AQSID has three more, the ISO number of the country."""
    return aqsid[3:] if len(aqsid) == 12 and aqsid[:3].isdigit() else aqsid


def _whole_hours(file: CsvFile, time: NDArray[np.datetime64]) -> NDArray[np.bool_]:
    """Rows (N,) whose hour is one of UTC; sites of zones with half hours report others, which no UTC hour can hold."""
    known = ~np.isnat(time)
    whole = known & (time == time.astype("M8[h]"))
    columns.left_out(file, int((known & ~whole).sum()), "their hour does not begin at a whole hour UTC")
    return whole


def _aqobs(file: CsvFile, truncated: Truncated, span: Span | None) -> pd.DataFrame:
    keys = ("AQSID", "ValidDate", "ValidTime")
    needed = (*keys, "Latitude", "Longitude", "PM25", "PM25_Unit")
    held = [name for name in OBS_COLUMNS if name in columns.require(file, needed, "AirNow HourlyAQObs")]
    units = {name: f"{name}_Unit" for name in held}
    columns.require(file, tuple(units.values()), "AirNow HourlyAQObs")
    numbers = dict.fromkeys(("Latitude", "Longitude", "Elevation", *held), pa.float64())
    table = file.read(dict.fromkeys((*keys, *units.values()), TEXT) | numbers, truncated, OBS.missing)
    pieces = [_obs_column(file, table, name, unit) for name, unit in units.items()]
    reports = np.logical_or.reduce([~np.isnan(value) for value in pieces])
    time = columns.clock_times(file, table, "ValidDate", "ValidTime", "%m/%d/%Y", reports) - OBS.to_start
    codes, names = columns.identifiers(file, table, "AQSID", reports, "a site's AQSID")
    lon = columns.degrees(file, table, "Longitude", 180, reports, blank=True)
    lat = columns.degrees(file, table, "Latitude", 90, reports, blank=True)
    placed = ~np.isnan(lon) & ~np.isnan(lat) & ((lon != 0) | (lat != 0))
    columns.left_out(file, int((reports & ~placed).sum()), "rows of sites without coordinates")
    rows = np.flatnonzero(reports & placed & _whole_hours(file, time) & columns.in_span(file, time, span))
    high = table["Elevation"].to_numpy() if "Elevation" in table.column_names else np.full(len(lon), np.nan)
    number, at = np.divmod(np.arange(len(held) * len(rows)), max(len(rows), 1))
    row = rows[at]
    return longform.to_table(
        Readings(
            time=time[row],
            station=columns.named(codes[row], [f"airnow:{_nine(name)}" for name in names]),
            pollutant=np.array([POLLUTANTS.index(OBS_COLUMNS[name]) for name in held], dtype="int64")[number],
            value=np.array(pieces)[number, row],
            line=file.lines(table.num_rows)[row],
            **{"lon": lon[row], "lat": lat[row], "elevation": high[row]},
        )
    )


def _obs_column(file: CsvFile, table: pa.Table, name: str, unit: str) -> NDArray[np.float64]:
    """Values (N,) of one column in contract units."""
    value = columns.numbers(file, table, name, OBS.missing)
    pollutant = np.where(np.isnan(value), -1, POLLUTANTS.index(OBS_COLUMNS[name]))
    return value * columns.factors(file, table, unit, pollutant, OBS.celsius)


def name_span(name: str) -> Span | None:
    """UTC hours that a file of this name can hold: its hour, the two before and the one after; None without an hour."""
    if not (found := _NAME.fullmatch(name)):
        return None
    try:
        hour = np.datetime64("{}-{}-{}T{}".format(*found.groups()), "h")
    except ValueError:
        return None
    return hour - np.timedelta64(2, "h"), hour + np.timedelta64(2, "h")


def rank(label: str) -> int:
    """HourlyAQObs (1) before HourlyData (0): it has one row a site and hour, with the site's own coordinates."""
    return int(base_name(label).lower().startswith("hourlyaqobs"))


SOURCE = Source(
    conventions=(DATA, OBS),
    parse=parse,
    suffixes=(".dat",),
    span=name_span,
    rank=rank,
    site_names=("Monitoring_Site_Locations_V2.dat", "monitoring_site_locations.dat"),
    read_sites=read_sites,
)
