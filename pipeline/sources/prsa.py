"""UCI Beijing Multi-Site Air Quality (UCI 501): twelve stations, hourly, 2013-03 to 2017-02, one CSV a station.

The hour is in Beijing time and labels its averaging hour by its **end**, as the Beijing centre publishes it: the
fireworks at midnight of the four Spring Festivals first show under label 1, not 0 (docs/reference/sources.md).
Zhang et al. 2017, Proc. R. Soc. A 473, 20170457.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.contract import line_column
from pipeline.errors import InputError
from pipeline.sources.archive import RawFile
from pipeline.sources.columns import YEARS, refuse, require
from pipeline.sources.csvfile import CsvFile, Truncated
from pipeline.sources.sites import SiteList, read_list
from pipeline.sources.source import CONVENTIONS, Source, Span
from pipeline.sources.units import factor

CONVENTION = CONVENTIONS["prsa"]

COLUMNS = {"PM2.5": "pm2p5", "PM10": "pm10", "SO2": "so2", "NO2": "no2", "O3": "o3", "CO": "co"}
TIME = ("year", "month", "day", "hour")

_FILE = re.compile(r"PRSA_Data_\w+_(\d{4})(\d{2})(\d{2})-(\d{4})(\d{2})(\d{2})\.csv", re.IGNORECASE)


def parse(raw: RawFile, sites: SiteList | None, truncated: Truncated) -> Iterator[pd.DataFrame]:
    """Yield the StationTable of one station's file; see `pipeline.sources.source.Source`."""
    file = CsvFile(raw.where, raw.data)
    require(file, (*TIME, *COLUMNS, "station"), "hourly PRSA data")
    _require_once(file, (*TIME, *COLUMNS, "station"))
    if sites is None:
        raise InputError(f"{file.where}: expected a station list, because the file has no coordinates; found none")
    # Text first: SO2 has cells of one blank, which are missing and which no number parser takes.
    table = file.read(dict.fromkeys((*TIME, *COLUMNS, "station"), pa.string()), truncated, CONVENTION.missing)
    lines = file.lines(table.num_rows)
    starts = _starts(file, table)
    values = np.column_stack([_values(file, table, column) for column in COLUMNS])
    yield _table(file, sites, table, starts, values, lines)


def _table(
    file: CsvFile,
    sites: SiteList,
    table: pa.Table,
    starts: NDArray[np.datetime64],
    values: NDArray[np.float32],
    lines: NDArray[np.int32],
) -> pd.DataFrame:
    """Rows that have a value and whose station the list has; values (N, P), the others (N,)."""
    reports = np.isfinite(values).any(axis=1)
    codes, names = pd.factorize(table["station"].to_pandas())
    for row in np.flatnonzero(reports & (codes < 0))[:1]:
        raise InputError(f"{file.where}, line {lines[row]}, column 'station': expected a station; found none")
    _check_once(file, codes, starts, lines)
    used = np.isin(np.arange(len(names)), codes[reports])
    places = sites.coordinates([str(name) for name in names], used, file.where)
    keep = reports & np.append(places["lon"].notna().to_numpy(), False)[codes]
    station = codes[keep]
    found: dict[str, object] = {
        "time": starts[keep].astype("M8[ns]"),
        "station": pd.Categorical.from_codes(station, pd.Index([f"prsa:{name}" for name in names])),
    }
    found |= {name: places[name].to_numpy("float64")[station] for name in ("lon", "lat", "elevation")}
    values = values[keep]
    lines = np.where(np.isnan(values), 0, lines[keep][:, None]).astype("int32")
    found |= dict(zip(COLUMNS.values(), values.T, strict=True))
    return pd.DataFrame(found | dict(zip(map(line_column, COLUMNS.values()), lines.T, strict=True)))


def _check_once(
    file: CsvFile, codes: NDArray[np.intp], starts: NDArray[np.datetime64], lines: NDArray[np.int32]
) -> None:
    twice = pd.DataFrame({"station": codes, "time": starts}).duplicated().to_numpy()
    for row in np.flatnonzero(twice)[:1]:
        where = f"{file.where}, line {lines[row]}"
        raise InputError(f"{where}: expected each hour once; found the hour of {starts[row]} UTC twice")


def _starts(file: CsvFile, table: pa.Table) -> NDArray[np.datetime64]:
    """UTC start of each row's hour; a date that the calendar does not have is an error."""
    year, month, day, hour = (_numbers(file, table, column, "a whole number") for column in TIME)
    for column, values, low, high in (
        ("year", year, YEARS[0], YEARS[-1]),
        ("month", month, 1, 12),
        ("hour", hour, 0, 23),
    ):
        bad = ~((values >= low) & (values <= high) & (values == np.floor(values)))
        refuse(file, table, column, bad, f"a whole number in {low}..{high}")
    first = (year.astype("int64") - 1970).astype("M8[Y]").astype("M8[M]") + (month.astype("int64") - 1)
    length = ((first + 1).astype("M8[D]") - first.astype("M8[D]")).astype("int64")
    refuse(file, table, "day", ~((day >= 1) & (day <= length) & (day == np.floor(day))), "a day of the month")
    return (
        first.astype("M8[D]") + (day.astype("int64") - 1) + hour.astype("m8[h]") - CONVENTION.to_start.astype("m8[h]")
    )


def _values(file: CsvFile, table: pa.Table, column: str) -> NDArray[np.float32]:
    """Concentrations of a column in the contract's unit, NaN where missing."""
    pollutant = COLUMNS[column]
    assert CONVENTION.units != "each"
    scale = factor(pollutant, CONVENTION.units[pollutant], CONVENTION.celsius)
    values = _numbers(file, table, column, "a number") * (np.nan if scale is None else scale)
    refuse(file, table, column, np.abs(values) > np.finfo("float32").max, "a concentration")
    return values.astype("float32")


def _numbers(file: CsvFile, table: pa.Table, column: str, expected: str) -> NDArray[np.float64]:
    """Cells of a column as numbers, NaN where missing."""
    cells = pc.utf8_trim_whitespace(table[column])
    cells = pc.if_else(pc.is_in(cells, pa.array(CONVENTION.missing)), None, cells)
    try:
        numbers = pc.cast(cells, pa.float64())
    except pa.ArrowInvalid:
        values = pd.to_numeric(cells.to_pandas(), errors="coerce")
        refuse(file, table, column, (values.isna() & cells.to_pandas().notna()).to_numpy(), expected)
        raise
    return numbers.to_numpy()


def _require_once(file: CsvFile, names: tuple[str, ...]) -> None:
    header = file.header()
    for name in names:
        if (times := header.count(name)) > 1:
            raise InputError(f"{file.where}, line 1: expected the column '{name}' once; found it {times} times")


def span(name: str) -> Span | None:
    """UTC hours that a file of this name can hold; None when its name does not say."""
    if (found := _FILE.fullmatch(name)) is None:
        return None
    try:
        first, last = (np.datetime64("-".join(found.groups()[i : i + 3]), "h") for i in (0, 3))
    except ValueError:
        return None
    shift = CONVENTION.to_start.astype("m8[h]")
    return first - shift, last + np.timedelta64(24, "h") - shift


SOURCE = Source(
    conventions=(CONVENTION,),
    parse=parse,
    span=span,
    site_names=("stations.csv",),
    read_sites=partial(read_list, code="station"),
    sites_needed=True,
)
