"""Rows of observations as arrays, and the one rule that merges those of several files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.contract import POLLUTANTS, line_column

PLACE = ("lon", "lat", "elevation")


@dataclass(frozen=True)
class Rows:
    """Rows of station and hour; N rows, P pollutants in the order of `POLLUTANTS`.

    Attributes
    ----------
    stations, files : names that `station` and `file` point into, sorted; a file is named by its SHA-256.
    hour : hours since 1970-01-01 UTC, int64 (N,); start of the averaging hour.
    station : int32 (N,).
    file : int32 (N,) where every value of a row comes from one file; (N, P), -1 where missing, where not.
    place : lon, lat in WGS84 degrees and elevation in m, float64 (N, 3); NaN elevation where not known.
    values : float32 (N, P), NaN for missing, units of `pipeline.contract.UNITS`.
    lines : line of the file, int32 (N, P), 0 for missing.
    """

    stations: list[str]
    files: list[str]
    hour: NDArray[np.int64]
    station: NDArray[np.int32]
    file: NDArray[np.int32]
    place: NDArray[np.float64]
    values: NDArray[np.float32]
    lines: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.hour)

    @property
    def key(self) -> NDArray[np.int64]:
        """One number for station and hour, ascending in hour, then station; (N,)."""
        return self.hour * len(self.stations) + self.station

    def take(self, at: NDArray[np.intp] | NDArray[np.bool_]) -> Rows:
        """Rows at the positions or where the mask is true."""
        return replace(
            self,
            hour=self.hour[at],
            station=self.station[at],
            file=self.file[at],
            place=self.place[at],
            values=self.values[at],
            lines=self.lines[at],
        )


def from_table(table: pd.DataFrame, file: str) -> Rows:
    """Rows of one file's StationTable; those without any value are left out."""
    values = table.reindex(columns=list(POLLUTANTS)).to_numpy("float32")
    keep = np.isfinite(values).any(axis=1)
    lines = table.reindex(columns=[line_column(name) for name in POLLUTANTS], fill_value=0)
    codes, names = pd.factorize(table["station"], sort=True)
    rows = Rows(
        stations=[str(name) for name in names],
        files=[file],
        hour=table["time"].to_numpy("M8[h]").astype("int64"),
        station=codes.astype("int32"),
        file=np.zeros(len(table), dtype="int32"),
        place=table.reindex(columns=list(PLACE)).to_numpy("float64"),
        values=values,
        lines=np.where(np.isnan(values), 0, lines.to_numpy("int32")).astype("int32"),
    )
    return rows if keep.all() else rows.take(keep)


def aligned(parts: Sequence[Rows]) -> list[Rows]:
    """The same rows over common lists of stations and files."""
    stations = sorted(set().union(*(part.stations for part in parts)))
    files = sorted(set().union(*(part.files for part in parts)))
    at, of = ({name: i for i, name in enumerate(names)} for names in (stations, files))
    return [
        replace(
            part,
            stations=stations,
            files=files,
            station=_renumbered(part.station, part.stations, at),
            file=_renumbered(part.file, part.files, of),
        )
        for part in parts
    ]


def concatenate(parts: Sequence[Rows]) -> Rows:
    """All rows, in the order given; at least one part, and `file` of one shape in all."""
    same = aligned(parts)
    return Rows(
        same[0].stations,
        same[0].files,
        np.concatenate([part.hour for part in same]),
        np.concatenate([part.station for part in same]),
        np.concatenate([part.file for part in same]),
        np.concatenate([part.place for part in same]),
        np.concatenate([part.values for part in same]),
        np.concatenate([part.lines for part in same]),
    )


def merge(rows: Rows, precedence: NDArray[np.int64]) -> tuple[Rows, Rows]:
    """Let one value count for each station, hour and pollutant.

    Parameters
    ----------
    rows : rows of any number of files, `file` (N,); in any order.
    precedence : (files,); the value of the file with the highest counts, of one file's the one on the last line.
        Below 0 the file is superseded and none of its values counts.

    Returns
    -------
    observed : one row a station and hour, by hour, then station; `file` (N, P).
    contested : all rows, as they were, of station-hours of which more than one row speaks, and of superseded files.
        With these, a later merge does not depend on the order in which files came.
    """
    rows = _ordered(rows)
    first = np.flatnonzero(np.diff(rows.key, prepend=-1))
    counts = np.diff(first, append=len(rows))
    superseded = precedence[rows.file] < 0
    open_ = np.repeat(counts > 1, counts) | superseded
    if not open_.any():
        return _by_value(rows), rows.take(open_)
    settled = _settle(rows.take(open_ & ~superseded), precedence)
    observed = concatenate([_by_value(rows.take(~open_)), settled])
    return observed.take(np.argsort(observed.key, kind="stable")), rows.take(open_)


def _ordered(rows: Rows) -> Rows:
    """Rows by hour, station, then file and line: in an order that does not depend on the one they come in."""
    if (np.diff(rows.key) > 0).all():
        return rows
    return rows.take(np.lexsort((rows.lines.max(axis=1, initial=0), rows.file, rows.key)))


def _by_value(rows: Rows) -> Rows:
    """The same rows with `file` (N, P)."""
    return replace(rows, file=np.where(np.isnan(rows.values), np.int32(-1), rows.file[:, None]))


def of_one_file(observed: Rows, contested: Rows) -> Rows:
    """Rows of `observed` of which one file alone speaks, `file` (N,): with `contested`, all that was ever put in."""
    observed, contested = aligned([observed, contested])
    alone = observed.take(~np.isin(observed.key, contested.key))
    return replace(alone, file=alone.file.max(axis=1, initial=-1))


def _settle(rows: Rows, precedence: NDArray[np.int64]) -> Rows:
    """One row a station and hour out of rows with several, `file` (N, P); sorted by key."""
    key, at = np.unique(rows.key, return_inverse=True)
    row, pollutant = np.nonzero(np.isfinite(rows.values))
    order = np.lexsort((rows.lines[row, pollutant], precedence[rows.file[row]]))
    row, pollutant = row[order], pollutant[order]  # of values for one cell the last written stays: the one that counts
    shape = len(key), rows.values.shape[1]
    values, lines = np.full(shape, np.nan, dtype="float32"), np.zeros(shape, dtype="int32")
    file, place = np.full(shape, -1, dtype="int32"), np.full((len(key), len(PLACE)), np.nan)
    cell = at[row], pollutant
    values[cell], lines[cell] = rows.values[row, pollutant], rows.lines[row, pollutant]
    file[cell], place[at[row]] = rows.file[row], rows.place[row]
    hour, station = np.divmod(key, max(len(rows.stations), 1))
    return replace(rows, hour=hour, station=station.astype("int32"), file=file, place=place, values=values, lines=lines)


def _renumbered(codes: NDArray[np.int32], names: list[str], numbers: dict[str, int]) -> NDArray[np.int32]:
    """Codes into `names` as codes of `numbers`; -1 stays -1."""
    return np.array([*(numbers[name] for name in names), -1], dtype="int32")[codes]
