"""Files with one row a station, hour and quantity: checked columns, hourly means, and StationTable rows."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.contract import POLLUTANTS, line_column
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

#: Share of an hour's expected samples that its mean needs, and share of a sample that may reach over the hour's edge.
COMPLETE, OVERHANG = 0.75, 0.1


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


def cadences(key: NDArray[np.int64], time: NDArray[np.datetime64]) -> NDArray[np.float64]:
    """Seconds from one sample to the next (N,): the median of each key's gaps; NaN where a key has one time only."""
    order = np.lexsort((time, key))
    gap = np.diff(time[order]).astype("m8[s]").astype("float64")
    gap[(np.diff(key[order]) != 0) | (gap == 0)] = np.nan
    median = pd.Series(gap).groupby(key[order][1:]).median()
    return pd.Series(key).map(median).to_numpy("float64")


def named(codes: NDArray[np.int64], names: Sequence[str]) -> pd.Categorical:
    """Name of each row (N,) by its code, 0 or more; categories sorted, each once."""
    at, unique = pd.factorize(np.array(names, dtype="object"), sort=True)
    return pd.Categorical.from_codes(at[codes], pd.Index(unique))


def refuse_longer(
    file: CsvFile, column: str, key: NDArray[np.int64], keys: int, time: NDArray[np.datetime64], hours: int
) -> None:
    """Raise InputError when all times (N,) of each of the `keys` keys are multiples of `hours` apart: longer means.

    A file in which no key has two times tells nothing, and passes.
    """
    first = np.full(keys, np.iinfo("int64").max)
    seconds = time.astype("M8[s]").astype("int64")
    np.minimum.at(first, key, seconds)
    after = seconds - first[key]
    if (after > 0).any() and not (after % (3600 * hours)).any():
        kind = "a daily file" if not (after % 86400).any() else f"means of {hours} hours or more"
        raise InputError(
            f"{file.where}, column '{column}': expected hourly or shorter means; found {kind}: all times of each sensor"
            f" are multiples of {hours} h apart, such as {time[np.argmax(after > 0)]} UTC"
        )


class Means(NamedTuple):
    """Hourly means: `hour` UTC start (M,), `mean` (M, K), and `last` (M,), the index of each mean's last sample."""

    hour: NDArray[np.datetime64]
    mean: NDArray[np.float64]
    last: NDArray[np.int64]


def hourly_means(
    file: CsvFile,
    key: NDArray[np.int64],
    start: NDArray[np.datetime64],
    seconds: NDArray[np.float64],
    value: NDArray[np.float64],
) -> Means:
    """Mean of the samples of each key and UTC hour; how many hours are left out goes to the log.

    Parameters
    ----------
    key : what belongs together, such as a sensor (N,).
    start, seconds : start and length of each sample's averaging period (N,).
    value : finite (N, K).

    Notes
    -----
    A sample counts for the hour its middle lies in, unless more than a tenth of it lies outside. An hour needs 75 % of
    the samples that fit into it, as European rules ask of hourly means (Directive 2008/50/EC, annex XI).
    """
    middle = start + (seconds / 2).astype("m8[s]")
    hour = middle.astype("M8[h]")
    before = (hour.astype("M8[s]") - start.astype("M8[s]")).astype("float64")
    within = np.maximum(before, seconds - before - 3600) <= OVERHANG * seconds
    index = np.flatnonzero(within)
    index = index[np.lexsort((start[index], hour[index], key[index]))]
    new = np.ones(len(index), dtype=bool)
    new[1:] = (np.diff(key[index]) != 0) | (np.diff(hour[index]).astype("int64") != 0)
    first = np.flatnonzero(new)
    count = np.diff(np.append(first, len(index)))
    keep = np.add.reduceat(seconds[index], first) >= COMPLETE * 3600 if len(first) else np.zeros(0, dtype=bool)
    total = np.add.reduceat(value[index], first) if len(first) else value[:0]
    left_out(file, int((~within).sum()), "samples that reach over the edge of a UTC hour")
    left_out(file, int((~keep).sum()), f"hours with less than {COMPLETE:.0%} of their samples")
    last = index[first + count - 1][keep]
    return Means(hour[last], (total / count[:, None])[keep], last)


@dataclass(frozen=True)
class Readings:
    """Values as a file lists them, each array of shape (N,).

    Attributes
    ----------
    time : datetime64, UTC start of the averaging hour, whole hours.
    station : ``network:code``, any sequence of strings; a Categorical is fastest.
    pollutant : index in `pipeline.contract.POLLUTANTS`.
    value : float, in the contract's units; NaN for missing.
    line : line of the file.
    lon, lat, elevation : WGS84 degrees and metres (NaN where not known).
    """

    time: NDArray[np.datetime64]
    station: NDArray[np.object_] | pd.Categorical
    pollutant: NDArray[np.int64]
    value: NDArray[np.float64]
    line: NDArray[np.integer]
    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    elevation: NDArray[np.float64]


def to_table(readings: Readings, precedence: NDArray[np.int64] | None = None) -> pd.DataFrame:
    """Put readings into a StationTable with lines, sorted by time and station.

    Missing values are left out. Of two values of one station, hour and pollutant the one of higher `precedence` (N,)
    counts, and of equal ones the later line. A row has the coordinates of the last of its values in that order.
    """
    r = readings
    keep = np.flatnonzero(np.isfinite(r.value))
    order = (r.line[keep],) if precedence is None else (r.line[keep], precedence[keep])
    keep = keep[np.lexsort(order)]
    codes, names = pd.factorize(r.station[keep], sort=True)
    hour = r.time[keep].astype("M8[h]").astype("int64")
    first = hour.min(initial=0) if len(hour) else 0
    key, row = np.unique((hour - first) * max(len(names), 1) + codes, return_inverse=True)
    values = np.full((len(key), len(POLLUTANTS)), np.nan, dtype="float32")
    lines = np.zeros((len(key), len(POLLUTANTS)), dtype="int32")
    values[row, r.pollutant[keep]] = r.value[keep]
    lines[row, r.pollutant[keep]] = r.line[keep]
    hour, station = np.divmod(key, max(len(names), 1))
    latest = np.empty(len(key), dtype="int64")
    latest[row] = keep
    table = {
        "time": (hour + first).astype("M8[h]").astype("M8[ns]"),
        "station": pd.Categorical.from_codes(station, pd.Index([str(name) for name in names])),
        "lon": r.lon[latest],
        "lat": r.lat[latest],
        "elevation": r.elevation[latest],
    }
    table |= {name: values[:, i] for i, name in enumerate(POLLUTANTS)}
    table |= {line_column(name): lines[:, i] for i, name in enumerate(POLLUTANTS)}
    return pd.DataFrame(table)
