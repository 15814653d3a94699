"""Observations already in StationTable columns, as Parquet or CSV; and the points that an estimate is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.contract import POLLUTANTS, TABLE_REQUIRED, line_column
from pipeline.errors import InputError
from pipeline.sources.archive import Member, RawFile, contents
from pipeline.sources.csvfile import CsvFile, Truncated, shown
from pipeline.sources.sites import SiteList
from pipeline.sources.source import CONVENTIONS, Source

_NUMBERS = ("lon", "lat", "elevation", *POLLUTANTS)
_BATCH_ROWS = 1_000_000

#: Times as text: date, hour, and what more there is of minutes, seconds and offset; and years that nanoseconds hold.
_TIME = (
    r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}[T ][0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2}(?:\.[0-9]{1,9})?)?)?"
    r" ?(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)?"
)
_YEARS = range(1900, 2262)


def parse(raw: RawFile, _sites: SiteList | None, truncated: Truncated) -> Iterator[pd.DataFrame]:
    """Yield one StationTable a CSV, or a million rows of a Parquet file; see `pipeline.sources.source.Source`."""
    for found in _parse(raw, truncated):
        yield found.astype({"station": "category"})


def read_table(path: Path, truncated: Truncated = "error") -> pd.DataFrame:
    """Read a StationTable from Parquet or CSV.

    Parameters
    ----------
    path : ``.parquet`` or ``.csv`` file with the columns ``time, station, lon, lat, pm2p5`` and any of ``elevation,
        pm10, so2, no2, o3, co`` (degrees, m, ug m-3, CO mg m-3). ``time`` is the start of the averaging hour; a time
        with an offset is converted to UTC, one without is in UTC.
    truncated : what to do with a CSV row that does not have every column, ``error`` or ``keep`` (the whole rows).

    Returns
    -------
    DataFrame, rows as in the file, with ``time`` naive in UTC.

    Raises
    ------
    InputError
        Naming the file and the line (CSV) or row (Parquet), the column, what was expected and what was found.
    """
    tables = [table for _, raw in contents([Member(_require_file(path))]) for table in _parse(raw, truncated)]
    if not sum(map(len, tables)):
        raise InputError(f"{path}: expected at least one observation; found no rows")
    return pd.concat(tables, ignore_index=True)


def read_points(path: Path) -> pd.DataFrame:
    """Read the points to estimate at: CSV with ``station, lon, lat`` and optionally ``elevation`` (degrees, m).

    Raises
    ------
    InputError
        Naming the line and column that is missing, empty, out of range or, for ``station``, there twice.
    """
    file = CsvFile(str(path), _require_file(path).read_bytes())
    _require(file.where, file.header(), ("station", "lon", "lat"))
    numbers = dict.fromkeys(("lon", "lat", "elevation"), pa.float64())
    points = file.read({"station": pa.string()} | numbers).to_pandas()
    if points.empty:
        raise InputError(f"{path}: expected at least one point; found the header only")
    place = _line_of(file)
    _check_places(points, place)
    _refuse(points["station"], points["station"].duplicated(), "each station once", place)
    return points


def _parse(raw: RawFile, truncated: Truncated) -> Iterator[pd.DataFrame]:
    if raw.base.lower().endswith(".parquet"):
        yield from _read_parquet(raw)
    else:
        yield _read_csv(CsvFile(raw.where, raw.data), truncated)


def _read_parquet(raw: RawFile) -> Iterator[pd.DataFrame]:
    try:
        with pq.ParquetFile(pa.BufferReader(raw.data)) as file:
            columns = _columns(raw.where, file.schema_arrow)
            done = 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                batch.validate(full=True)
                rows = np.arange(done + 1, done + 1 + batch.num_rows, dtype="int32")
                frame = batch.replace_schema_metadata(None).to_pandas()  # pandas' own metadata may be broken, too
                yield _checked(frame, rows, _row_of(raw.where, done))
                done += batch.num_rows
            if done != (rows_said := file.metadata.num_rows):  # Arrow stops at a damaged column without a word
                raise InputError(f"{raw.where}: expected {rows_said} rows, as its footer says; found {done}")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{raw.where}: expected a Parquet file; found {shown(error)}") from error


def _columns(where: str, schema: pa.Schema) -> list[str]:
    """The columns of a Parquet file to read, after making sure that each is there once and of a type that can be it."""
    columns = _require(where, schema.names)
    for name in columns:
        expected, fits = _TYPES.get(name, ("numbers", _is_number))
        found = [str(field.type) for field in schema if field.name == name]
        if len(found) > 1 or not fits(schema.field(name).type):
            raise InputError(f"{where}, column '{name}': expected {expected}; found {shown(' and '.join(found))}")
    return columns


def _read_csv(file: CsvFile, truncated: Truncated) -> pd.DataFrame:
    columns = _require(file.where, file.header())
    types = {name: pa.float64() if name in _NUMBERS else pa.string() for name in columns}
    frame = file.read(types, truncated).to_pandas()
    return _checked(frame, file.lines(len(frame)), _line_of(file))


#: From a row of the frame to its name in an error.
_Place = Callable[[int], str]


def _line_of(file: CsvFile) -> _Place:
    return lambda row: f"{file.where}, line {file.line_at(row)}"


def _row_of(where: str, first: int) -> _Place:
    return lambda row: f"{where}, row {first + row + 1}"


def _checked(frame: pd.DataFrame, lines: NDArray[np.int32], place: _Place) -> pd.DataFrame:
    """The frame as a StationTable: times in UTC, numbers as numbers, every row with a station, place and hour."""
    time = _utc(frame["time"])
    _refuse(frame["time"], time.isna(), "an ISO 8601 time with its hour", place)
    _refuse(frame["time"], time != time.dt.floor("h"), "the start of an hour", place)
    numbers = frame.columns.intersection(list(_NUMBERS))
    frame = frame.astype(dict.fromkeys(numbers, "float64"))
    for name in numbers:
        limit = np.finfo("float32").max
        _refuse(frame[name], frame[name].abs() > limit, f"a number up to {limit:.3g}", place)
    _check_places(frame, place)
    types = {name: "float32" if name in POLLUTANTS else "float64" for name in _NUMBERS if name in frame}
    found = {line_column(name): np.where(frame[name].isna(), 0, lines) for name in POLLUTANTS if name in frame}
    return frame.astype({"station": "str"} | types).assign(time=time, **found)


def _check_places(frame: pd.DataFrame, place: _Place) -> None:
    _refuse(frame["station"], frame["station"].isna(), "a station identifier", place)
    _refuse(frame["lon"], ~frame["lon"].between(-180, 360), "degrees east in [-180, 360]", place)
    _refuse(frame["lat"], ~frame["lat"].between(-90, 90), "degrees north in [-90, 90]", place)


def _utc(time: pd.Series) -> pd.Series:
    """Naive datetime64 in UTC, NaT where it cannot be read, has no hour (a daily file's) or is in no such year."""
    if not pd.api.types.is_datetime64_any_dtype(time):
        # pandas takes more for ISO 8601: a year, a date, an hour of one digit, ``now``.
        time = time.astype("str").where(time.astype("str").str.fullmatch(_TIME))
    utc = pd.to_datetime(time, utc=True, format="ISO8601", errors="coerce").dt.tz_localize(None)
    return utc.where(utc.dt.year.isin(_YEARS)).dt.as_unit("ns")


def _refuse(column: pd.Series, bad: pd.Series, expected: str, place: _Place) -> None:
    for row in np.flatnonzero(bad)[:1]:
        raise InputError(
            f"{place(row)}, column '{column.name}': expected {expected}; found '{shown(column.iloc[row])}'"
        )


def _is_text(kind: pa.DataType) -> bool:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return text or (pa.types.is_dictionary(kind) and _is_text(kind.value_type))


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)


#: What a column of a Parquet file must hold, and whether an Arrow type does.
_TYPES: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "time": ("times or text", lambda kind: pa.types.is_timestamp(kind) or _is_text(kind)),
    "station": ("text or whole numbers", lambda kind: pa.types.is_integer(kind) or _is_text(kind)),
}


def _require(where: str, found: list[str], needed: tuple[str, ...] = TABLE_REQUIRED) -> list[str]:
    """The columns to read, after making sure that the needed ones are there."""
    for name in needed:
        if name not in found:
            raise InputError(f"{where}: expected the columns {', '.join(needed)}; '{name}' is missing")
    return [name for name in ("time", "station", *_NUMBERS) if name in found]


def _require_file(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path}: expected a file; found none")
    return path


SOURCE = Source(conventions=(CONVENTIONS["table"],), parse=parse, suffixes=(".parquet", ".csv"))
