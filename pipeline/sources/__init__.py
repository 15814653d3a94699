"""One module a network: raw files to StationTables. Each network declares its zone and hour label; `read` is for all.

`SOURCES` is the register. `read` clips what a network's reader yields to the period and the bounding box.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.contract import HOUR, UNITS, check_station_table
from pipeline.errors import ConfigError, InputError
from pipeline.harmonise import utc_hour
from pipeline.sources import cnemc, table
from pipeline.sources.archive import Member, digests
from pipeline.sources.csvfile import Truncated
from pipeline.sources.table import read_points, read_table

__all__ = ["SOURCES", "Source", "Truncated", "input_digests", "read", "read_points", "read_table"]

BBox = tuple[float, float, float, float]
_Reader = Callable[[Path, Path | None, np.datetime64, np.datetime64, Truncated], Iterator[pd.DataFrame]]


@dataclass(frozen=True)
class Source:
    """One network: its reader and what its files' times and values mean.

    Attributes
    ----------
    reader : ``(path, stations, start, end, truncated)`` -> StationTables, not yet clipped.
    find : ``(path, start, end)`` -> the files such a read uses.
    zone : hours east of UTC of the files' times.
    label : whether a file's time is the ``begin`` or the ``end`` of its averaging hour.
    units : unit of each pollutant in the files.
    station_list : ``(path, stations)`` -> the station list that a read uses, or None where files hold coordinates.
    """

    reader: _Reader
    find: Callable[[Path, np.datetime64, np.datetime64], list[Member]]
    zone: int
    label: Literal["begin", "end"]
    units: dict[str, str]
    station_list: Callable[[Path, Path | None], Path | None]


SOURCES = {
    "cnemc": Source(
        cnemc.read, cnemc.find_members, zone=8, label="end", units=UNITS, station_list=cnemc.station_list_path
    ),
    "table": Source(table.read, table.find_members, zone=0, label="begin", units=UNITS, station_list=lambda *_: None),
}


def read(
    source: str,
    path: Path,
    stations: Path | None,
    start: np.datetime64 | datetime,
    end: np.datetime64 | datetime,
    bbox: BBox | None,
    truncated: Truncated = "error",
    around: BBox | None = None,
) -> Iterator[pd.DataFrame]:
    """Read the observations of [start, end) as StationTables, one a file.

    Parameters
    ----------
    source : name in `SOURCES`.
    path : file, zip or folder.
    stations : station list (CSV ``code,lon,lat``) for layouts without coordinates; None looks for ``stations.csv``
        in or beside `path`.
    start, end : whole hours, UTC, half open.
    bbox : west, south, east, north in degrees, edges included; None takes every station.
    truncated : what to do with a CSV row that does not have every column: ``error``, or ``keep`` the whole rows.
    around : a wider box than `bbox` whose stations are read too; one inside `bbox` is needed all the same.

    Yields
    ------
    StationTable
        Pollutants float32; ``station`` and ``source_file`` categorical.

    Raises
    ------
    InputError
        When an input is not what was declared, no file covers the period, or no station lies inside `bbox`.
    """
    spec = _source(source)
    first, last = utc_hour(start), utc_hour(end)
    seen = _Seen(Path(path), first, last, bbox, around or bbox)
    for found in spec.reader(Path(path), stations and Path(stations), first, last, truncated):
        clipped = seen.clip(check_station_table(found, str(path)))
        if len(clipped):
            yield clipped.reset_index(drop=True)
    seen.check()


def input_digests(
    source: str,
    path: Path,
    start: np.datetime64 | datetime,
    end: np.datetime64 | datetime,
    stations: Path | None = None,
) -> dict[str, str]:
    """SHA-256 of the files (of a zip: its members' own bytes) that a read of [start, end) uses, by name, sorted.

    The station list is one of them, where the network has one.
    """
    spec, path = _source(source), Path(path)
    found = digests(spec.find(path, utc_hour(start), utc_hour(end)))
    listed = spec.station_list(path, stations)
    if listed is not None and listed.is_file():
        found[listed.name] = hashlib.sha256(listed.read_bytes()).hexdigest()
    return dict(sorted(found.items()))


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ConfigError(f"source: expected one of {', '.join(SOURCES)}; found '{name}'")
    return SOURCES[name]


class _Seen:
    """Clips tables to period and box, and remembers what it saw so that an empty result can say why."""

    def __init__(
        self, path: Path, start: np.datetime64, end: np.datetime64, bbox: BBox | None, around: BBox | None
    ) -> None:
        self.path, self.start, self.end, self.bbox, self.around = path, start, end, bbox, around
        self.times: list[np.datetime64] = []
        self.in_period = self.in_both = 0

    def clip(self, found: pd.DataFrame) -> pd.DataFrame:
        time = found["time"].to_numpy()
        self.times += [time.min(), time.max()] if len(time) else []
        timely = (time >= self.start) & (time < self.end)
        self.in_period += int(timely.sum())
        self.in_both += int((timely & _inside(found, self.bbox)).sum())
        return found[timely & _inside(found, self.around)]

    def check(self) -> None:
        period = f"{self.start} to {self.end} UTC"
        if not self.in_period:
            held = f"{np.min(self.times)} to {np.max(self.times) + HOUR} UTC only" if self.times else "none at all"
            raise InputError(f"{self.path}: expected observations for {period}; found {held}")
        if not self.in_both:
            raise InputError(f"{self.path}: expected stations inside bbox {self.bbox} in {period}; found none there")


def _inside(found: pd.DataFrame, bbox: BBox | None) -> NDArray[np.bool_]:
    if bbox is None:
        return np.ones(len(found), dtype=bool)
    west, south, east, north = bbox
    # Modulo 360, so that 0..360 and -180..180 longitudes, and a box across the date line, all work.
    eastward = (found["lon"].to_numpy() - west) % 360 <= east - west
    return eastward & found["lat"].between(south, north).to_numpy()
