"""EPA Air Quality System (AirData): the pre-generated hourly files, ``hourly_<parameter>_<year>.csv``, in zips.

One row a monitor and hour; ``Date GMT`` and ``Time GMT`` are the beginning of the hour. Layout: EPA, AirData Download
Files Documentation, section Hourly Data Files. Daily, 8-hour and annual files are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyproj import Transformer

from pipeline.contract import POLLUTANTS
from pipeline.errors import InputError
from pipeline.sources import columns, longform
from pipeline.sources.archive import RawFile
from pipeline.sources.columns import TEXT
from pipeline.sources.csvfile import CsvFile, Truncated
from pipeline.sources.longform import Readings
from pipeline.sources.sites import SiteList
from pipeline.sources.source import CONVENTIONS, Source, Span, base_name

CONVENTION = CONVENTIONS["aqs"]

#: Parameter code -> pollutant. 88101 is PM2.5 by a federal reference or equivalent method, 88502 acceptable for the air
#: quality index only: of both at one site 88101 counts.
PARAMETERS = {"88101": "pm2p5", "88502": "pm2p5", "81102": "pm10", "42401": "so2"}
PARAMETERS |= {"42602": "no2", "44201": "o3", "42101": "co"}

#: Columns that only files of another kind have, and what such a file is.
OTHER_FILES = {
    "Daily Mean": "a daily file",
    "Daily Max": "a daily file",
    "Metric Used": "an annual summary",
    "Mean Including All Data": "an 8-hour file",
    "Arithmetic Mean": "a daily summary",
}

#: Datums that are WGS84 to within 2 m, and the one that is not: in the lower 48 states it is up to 100 m off.
NEAR_WGS84, NAD27 = ("", "WGS84", "NAD83", "UNKNOWN"), "NAD27"

#: Hours by which local standard time may differ from that of the longitude: more is a GMT column with a wrong sign.
MAX_ZONE_ERROR = 3.5

_TEXTS = ("State Code", "County Code", "Site Num", "Parameter Code", "Datum", "Units of Measure")
_TIMES = ("Date GMT", "Time GMT", "Date Local", "Time Local")
_NUMBERS = ("POC", "Latitude", "Longitude", "Sample Measurement")
_NAME = re.compile(r"hourly_(\w+)_(\d{4})\.csv", re.IGNORECASE)


def parse(raw: RawFile, _sites: SiteList | None, truncated: Truncated) -> Iterator[pd.DataFrame]:
    """Yield the StationTable of one hourly file; see `pipeline.sources.source.Source`."""
    file = CsvFile(raw.where, raw.data)
    _refuse_other_files(file)
    columns.require(file, (*_TEXTS, *_TIMES, *_NUMBERS), "an EPA AQS hourly file")
    types = dict.fromkeys((*_TEXTS, *_TIMES), TEXT) | dict.fromkeys(_NUMBERS, pa.float64())
    table = file.read(types, truncated, CONVENTION.missing)
    yield _station_table(file, table, name_span(raw.base))


def _refuse_other_files(file: CsvFile) -> None:
    for column in file.header():
        for begin, kind in OTHER_FILES.items():
            if column.startswith(begin):
                raise InputError(
                    f"{file.where}, line 1: expected hourly values, with the column 'Sample Measurement'; found {kind}"
                    f" (column '{columns.shown(column)}')"
                )


def _station_table(file: CsvFile, table: pa.Table, span: Span | None) -> pd.DataFrame:
    parameter = columns.coded(table, "Parameter Code")
    pollutant = parameter.map(_pollutant)
    if table.num_rows and not (pollutant >= 0).any():
        raise InputError(
            f"{file.where}, column 'Parameter Code': expected {', '.join(PARAMETERS)};"
            f" found {columns.shown(', '.join(parameter.texts))}"
        )
    value = columns.numbers(file, table, "Sample Measurement", CONVENTION.missing, pollutant >= 0)
    pollutant[np.isnan(value)] = -1
    rows = pollutant >= 0
    value *= columns.factors(file, table, "Units of Measure", pollutant, CONVENTION.celsius)
    lon, lat = _places(file, table, rows)
    time = _times(file, table, rows, lon)
    station, names = _stations(file, table, rows)
    poc = columns.numbers(file, table, "POC")
    columns.refuse(file, table, "POC", rows & ~(poc >= 0), "a parameter occurrence code, 0 or more")
    reference = columns.coded(table, "Parameter Code").map(lambda code: code != "88502")
    rows &= columns.in_span(file, time, span)
    line = file.lines(table.num_rows)
    readings = Readings(
        time=time[rows],
        station=columns.named(station[rows], names),
        pollutant=pollutant[rows],
        value=value[rows],
        line=line[rows],
        lon=lon[rows],
        lat=lat[rows],
        elevation=np.full(int(rows.sum()), np.nan),
    )
    # The lowest occurrence code counts: a site's first monitor of a pollutant, others are collocated or came later.
    precedence = reference[rows] * (1 << 40) - poc[rows].astype("int64")
    return longform.to_table(readings, precedence)


def _pollutant(code: str) -> int:
    name = PARAMETERS.get(code)
    return -1 if name is None else POLLUTANTS.index(name)


def _times(file: CsvFile, table: pa.Table, rows: NDArray[np.bool_], lon: NDArray[np.float64]) -> NDArray[np.datetime64]:
    """UTC hours (N,) of the GMT columns, after checking them against the local ones: no zone is as far from noon."""
    gmt = columns.clock_times(file, table, "Date GMT", "Time GMT", "%Y-%m-%d", rows)
    local = columns.clock_times(file, table, "Date Local", "Time Local", "%Y-%m-%d", rows)
    columns.refuse(file, table, "Time GMT", rows & (gmt != gmt.astype("M8[h]")), "the beginning of an hour, hh:00")
    ahead = np.where(rows, (local - gmt).astype("m8[s]").astype("int64"), 0) / 3600
    error = (ahead - lon / 15 + 12) % 24 - 12  # across the date line, too
    wrong = rows & ~(np.abs(error) <= MAX_ZONE_ERROR)
    columns.refuse(file, table, "Date GMT", wrong, "a GMT date and time that fit the local ones and the longitude")
    return gmt - CONVENTION.to_start


def _places(file: CsvFile, table: pa.Table, rows: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """WGS84 longitude and latitude (N,); NAD27 is shifted (PROJ, about 10 m without its grids)."""
    lon = columns.degrees(file, table, "Longitude", 180, rows)
    lat = columns.degrees(file, table, "Latitude", 90, rows)
    datum = columns.coded(table, "Datum").map(_datum)
    columns.refuse(file, table, "Datum", rows & (datum == 0), "WGS84, NAD83, NAD27 or UNKNOWN")
    old = np.flatnonzero(rows & (datum == 2))
    if len(old):
        pairs, at = np.unique(np.column_stack([lon[old], lat[old]]), axis=0, return_inverse=True)
        shifted = np.column_stack(_from_nad27().transform(pairs[:, 0], pairs[:, 1]))
        lon, lat = lon.copy(), lat.copy()
        lon[old], lat[old] = shifted[at.ravel()].T
    return lon, lat


@cache
def _from_nad27() -> Transformer:
    return Transformer.from_crs("EPSG:4267", "EPSG:4326", always_xy=True)


def _datum(text: str) -> int:
    return 2 if text == NAD27 else int(text in NEAR_WGS84)


def _stations(file: CsvFile, table: pa.Table, rows: NDArray[np.bool_]) -> tuple[NDArray[np.int64], list[str]]:
    """Code (N,) and name of each row's site, ``aqs:SS-CCC-NNNN``; -1 outside `rows`."""
    code, names = np.zeros(table.num_rows, dtype="int64"), [""]
    for column, width in (("State Code", 2), ("County Code", 3), ("Site Num", 4)):
        part = columns.coded(table, column)
        wide = part.map(_width)
        columns.refuse(file, table, column, rows & (wide != width), f"a code of {width} letters or digits")
        code, pairs = pd.factorize(code * (len(part.texts) + 1) + part.codes + 1)
        before, own = np.divmod(pairs, len(part.texts) + 1)
        names = [f"{names[b]}-{['', *part.texts][o]}" for b, o in zip(before, own, strict=True)]
    return np.where(rows, code, -1), [f"aqs:{name.removeprefix('-')}" for name in names]


def _width(code: str) -> int:
    return len(code) if code.isalnum() and code.isascii() else 0


def name_span(name: str) -> Span | None:
    """UTC hours that a year's file can hold: its year in local time anywhere; None when the name has no year."""
    found = _NAME.fullmatch(name)
    if not found or int(found[2]) not in columns.YEARS:
        return None
    year = int(found[2])
    start, end = np.datetime64(f"{year:04}-01-01T00", "h"), np.datetime64(f"{year + 1:04}-01-01T00", "h")
    return start - np.timedelta64(14, "h"), end + np.timedelta64(12, "h")


def rank(label: str) -> int:
    """Files of PM2.5 by a reference or equivalent method (1, hourly_88101) before those by another (0)."""
    found = _NAME.fullmatch(base_name(label))
    return int(found is not None and found[1] == "88101")


SOURCE = Source(conventions=(CONVENTION,), parse=parse, suffixes=(".csv",), span=name_span, rank=rank)
