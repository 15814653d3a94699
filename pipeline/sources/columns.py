"""Columns of a CSV file, checked: text, numbers, degrees, times, units; each error names line, column and cell."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.contract import POLLUTANTS
from pipeline.errors import InputError
from pipeline.sources import csvfile
from pipeline.sources.csvfile import CsvFile
from pipeline.sources.source import Span
from pipeline.sources.units import factor

log = logging.getLogger("aqnet")

#: Type of a text column: Arrow then holds each distinct text once.
TEXT = pa.dictionary(pa.int32(), pa.string())

#: No concentration, coordinate or time is as large; what is larger is a broken number.
MAX_NUMBER = 1e9

#: Years that a measurement can have; 1900 stands for a time without a date.
YEARS = range(1950, 2200)

_IDENTIFIER = re.compile(r"[0-9A-Za-z._-]{1,32}")


class Coded(NamedTuple):
    """A text column: `codes` (N,) are indices in `texts`, -1 where missing."""

    codes: NDArray[np.int64]
    texts: list[str]

    def map(self, function: Callable[[str], int]) -> NDArray[np.int64]:
        """Integer of each row (N,), by a function of its text; -1 where the text is missing."""
        found = np.array([*(function(text) for text in self.texts), -1], dtype="int64")
        return found[self.codes]


def coded(table: pa.Table, column: str) -> Coded:
    """Codes and distinct texts of a column that was read as `TEXT`."""
    whole = table[column].unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], TEXT)
    codes = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return Coded(codes.astype("int64"), whole.dictionary.to_pylist())


def refuse(file: CsvFile, table: pa.Table, column: str, bad: NDArray[np.bool_], expected: str) -> None:
    """Raise InputError for the first bad row (N,), naming line, column, what was expected and what was found."""
    for row in np.flatnonzero(bad)[:1]:
        found = table[column][int(row)].as_py() if column in table.column_names else None
        where = f"{file.where}, line {file.line_at(int(row))}, column '{column}'"
        raise InputError(f"{where}: expected {expected}; found '{shown(found)}'")


def identifiers(file: CsvFile, table: pa.Table, column: str, rows: NDArray[np.bool_], what: str) -> Coded:
    """Codes of a text column that holds identifiers: ASCII letters, digits and ``._-``; of `rows` (N,) none other."""
    found = coded(table, column)
    good = found.map(lambda text: _IDENTIFIER.fullmatch(text) is not None)
    refuse(file, table, column, rows & (good != 1), f"{what}: letters and digits")
    return found


def shown(found: object) -> str:
    """Text of a cell for an error: one printable line, not long; nothing for None."""
    return csvfile.shown("" if found is None else found)


def require(file: CsvFile, needed: Sequence[str], what: str) -> list[str]:
    """Return the header after making sure that it has the needed columns; `what` names the layout in the error."""
    header = file.header()
    for name in needed:
        if name not in header:
            raise InputError(
                f"{file.where}, line 1: expected {what}, with the column '{name}'; found {shown(','.join(header[:8]))}"
            )
    return header


def numbers(
    file: CsvFile, table: pa.Table, column: str, missing: Sequence[str] = (), rows: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Numbers of a float column (N,), NaN where missing.

    Parameters
    ----------
    missing : marks of a missing value; those that are numbers count however they are written (``-999.0``).
    rows : rows that are needed (N,); None for all. Others are not checked.

    Raises
    ------
    InputError
        Naming the line of a number that is infinite or beyond `MAX_NUMBER`.
    """
    found = table[column].to_numpy().astype("float64", copy=True)
    with np.errstate(invalid="ignore"):
        bad = np.abs(found) > MAX_NUMBER
    refuse(file, table, column, bad if rows is None else bad & rows, "a finite number")
    marks = [float(mark) for mark in missing if mark.lstrip("-").isdigit()]
    found[np.isin(found, marks)] = np.nan
    return found


def degrees(
    file: CsvFile, table: pa.Table, column: str, limit: float, rows: NDArray[np.bool_], blank: bool = False
) -> NDArray[np.float64]:
    """Coordinates of a float column (N,) within +-`limit` degrees; InputError for one that is not, or is missing.

    `blank` allows a missing one (NaN); `rows` (N,) are the rows that count.
    """
    found = table[column].to_numpy().astype("float64", copy=False)
    bad = rows & ~(np.abs(found) <= limit) & ~(np.isnan(found) & blank)
    refuse(file, table, column, bad, f"degrees in [{-limit:g}, {limit:g}]")
    return found


def clock_times(
    file: CsvFile, table: pa.Table, date: str, time: str, pattern: str, rows: NDArray[np.bool_]
) -> NDArray[np.datetime64]:
    """Seconds (N,) of two text columns, a date in `pattern` of strptime and a time as HH:MM; NaT outside `rows`.

    Raises
    ------
    InputError
        Naming the line of a date or time that is not written so, digit for digit.
    """
    days, clock = coded(table, date), coded(table, time)
    day = np.array([*(_stamp(text, pattern) for text in days.texts), np.datetime64("NaT")], dtype="M8[s]")[days.codes]
    hour = np.array([*(_stamp(text, "%H:%M") for text in clock.texts), np.datetime64("NaT")], dtype="M8[s]")
    hour = hour[clock.codes] - np.datetime64("1900-01-01", "s")
    written = datetime(2001, 2, 3).strftime(pattern)
    refuse(file, table, date, rows & np.isnat(day), f"a date written as {written} (3 February 2001)")
    refuse(file, table, time, rows & np.isnat(hour), "a time as HH:MM")
    return np.where(rows, day + hour, np.datetime64("NaT"))


def _stamp(text: str, pattern: str) -> np.datetime64:
    try:
        found = datetime.strptime(text, pattern)
    except ValueError:
        return np.datetime64("NaT")
    # strptime takes a digit fewer; a lost digit must not become another day.
    whole = found.strftime(pattern) == text and found.year in (1900, *YEARS)
    return np.datetime64(found, "s") if whole else np.datetime64("NaT")


def in_span(file: CsvFile, time: NDArray[np.datetime64], span: Span | None) -> NDArray[np.bool_]:
    """Rows (N,) within the hours that the file's name allows; how many others there are goes to the log."""
    inside = ~np.isnat(time)
    if span is not None:
        inside &= (time >= span[0]) & (time < span[1])
        left_out(file, int((~np.isnat(time) & ~inside).sum()), f"outside the file's hours, {span[0]} to {span[1]} UTC")
    return inside


def left_out(file: CsvFile, count: int, why: str) -> None:
    """Log how many values of a file were left out, and why; nothing where there were none."""
    if count:
        log.warning("%s: left out %d values: %s", file.where, count, why)


def factors(
    file: CsvFile, table: pa.Table, column: str, pollutant: NDArray[np.int64], celsius: float | None
) -> NDArray[np.float64]:
    """What to multiply each value by (N,) to get its contract unit; NaN where `pollutant` (N,) is -1.

    Raises
    ------
    InputError
        Naming the line of a unit that is not known for its pollutant.
    """
    units = coded(table, column)
    matrix = [[_factor(name, unit, celsius) for unit in (*units.texts, "")] for name in POLLUTANTS]
    found = np.array(matrix)[pollutant, units.codes]
    found[pollutant < 0] = np.nan
    for row in np.flatnonzero((pollutant >= 0) & np.isnan(found))[:1]:
        mixing = "" if celsius is None else ", or a gas in ppb or ppm"
        bad = np.arange(len(found)) == row
        refuse(file, table, column, bad, f"a unit of {POLLUTANTS[pollutant[row]]}: ug/m3, mg/m3{mixing}")
    return found


def _factor(pollutant: str, unit: str, celsius: float | None) -> float:
    found = factor(pollutant, unit, celsius)
    return np.nan if found is None else found


def named(codes: NDArray[np.int64], names: Sequence[str]) -> pd.Categorical:
    """Name of each row (N,) by its code, 0 or more; categories sorted, each once."""
    at, unique = pd.factorize(np.array(names, dtype="object"), sort=True)
    return pd.Categorical.from_codes(at[codes], pd.Index(unique))
