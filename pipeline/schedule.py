"""Which hours of a cube are due: those nobody has made, and those whose observations changed since they were made.

A cube that scheduled runs keep says in its attributes up to which ingest of the observation store its hours are made,
one number a stream (`MADE_TO`). An ingest after that names hours that it changed (`pipeline.store.ledger`); what looks
back on them, or in the final stream ahead to them, is made again. Whatever the order in which files arrive, the cube
then holds what one run over all of them makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xarray as xr
from numpy.typing import NDArray

from pipeline import analyse
from pipeline.contract import HOUR, STREAMS
from pipeline.cube import revisions
from pipeline.cube.layout import to_hours
from pipeline.location import Location
from pipeline.products import downloads
from pipeline.store import layout, ledger

Hours = NDArray[np.int64]
Period = tuple[np.datetime64, np.datetime64]

DAY = 24

#: Global attributes of a cube: the ingest up to which all its hours of a stream are made.
MADE_TO = {"interim": "interim_hours_made_to_ingest", "final": "final_hours_made_to_ingest"}

#: Days after which a day is made final; the observations that it looks ahead to are then three days old.
FINAL_AFTER_DAYS = 5


@dataclass(frozen=True)
class Due:
    """What is due in a stream.

    Attributes
    ----------
    stream : ``interim`` or ``final``.
    periods : hours to make ``[first, end)``, UTC, in order; none where nothing is due.
    ingest : the store's ingest; once they are made the stream is made up to it. None where that is not said.
    """

    stream: str
    periods: list[Period]
    ingest: int | None

    def attrs(self, period: Period) -> dict[str, str]:
        """Global attributes of the run that makes a period: the last one completes the stream."""
        if self.ingest is None or period != self.periods[-1]:
            return {}
        return {MADE_TO[self.stream]: str(self.ingest)}


def interim(store: Path, cube: xr.Dataset | None, start: np.datetime64, now: np.datetime64) -> Due:
    """Hours from `start` on that are due in the interim stream.

    Parameters
    ----------
    store : observation store.
    cube : the published cube, None before there is one.
    start : first hour of the cube, UTC.
    now : the present, UTC. Hours that have not ended are never due, nor are those after the store's last observation.

    Raises
    ------
    InputError
        When there is no store.
    """
    manifest = layout.require(store)
    begin, end = to_hours(start), min(to_hours(now), _last(store, manifest) + 1)
    if cube is None:
        return Due("interim", _periods(np.arange(begin, end)), manifest.ingest)
    hours, stream = _hours(cube), cube["stream"].values
    analysed = np.isin(stream, [STREAMS["interim"], STREAMS["final"]])
    fresh = np.setdiff1d(np.arange(begin, end), hours[analysed])
    again = hours[(stream == STREAMS["interim"]) & _touched(hours, _changed(store, cube, "interim"), "interim")]
    return Due("interim", _periods(np.union1d(again, fresh)), manifest.ingest)


def final(store: Path, cube: xr.Dataset | None, now: np.datetime64, after_days: int = FINAL_AFTER_DAYS) -> Due:
    """Hours of a cube that are due in the final stream: whole days old enough, and final ones that changed.

    Parameters
    ----------
    store, cube, now : see `interim`.
    after_days : a UTC day is old enough when so many days, counted from its own, have begun since.
    """
    manifest = layout.require(store)
    if cube is None:
        return Due("final", [], manifest.ingest)
    hours, stream = _hours(cube), cube["stream"].values
    old = hours < (to_hours(now) // DAY - after_days + 1) * DAY
    again = (stream == STREAMS["final"]) & _touched(hours, _changed(store, cube, "final"), "final")
    due = hours[(old & (stream == STREAMS["interim"])) | again]
    return Due("final", _periods(due), manifest.ingest)


def unfinished(products: Path, cube: xr.Dataset, place: Location) -> Due | None:
    """What the newest revision's run made, where it was killed before its downloads were offered; None where it ended.

    A revision that a person accepted is left to ``aqnet accept``, for its run would be stopped again.

    Parameters
    ----------
    products : folder of what is cut from the cube.
    cube, place : the published cube, and where it lies.
    """
    newest = str(cube.attrs["revision"])
    if downloads.any_of(products, newest):
        return None
    made = revisions.newest(place)
    if made is None or made.name != newest or made.accepted or not made.hours:
        return None
    start, end = (np.datetime64(made.hours[name], "h") for name in ("start", "end"))
    stream = made.config["stream"]
    known = cube.attrs.get(MADE_TO[stream])
    return Due(stream, [(start, end)], None if known is None else int(known))


def _changed(store: Path, cube: xr.Dataset, stream: str) -> Hours:
    """Hours whose observations changed since the stream was made."""
    made: Mapping[str, object] = cube.attrs
    done = made.get(MADE_TO[stream], made.get(ledger.INGEST_ATTR, 0))
    return np.unique(_hour(ledger.since(store, int(str(done)))["time"].to_numpy("datetime64[h]")))


def _touched(hours: Hours, changed: Hours, stream: str) -> NDArray[np.bool_]:
    """Whether the estimate of each hour can depend on an observation of any of the changed hours.

    It reads values from `analyse.first_used` on, up to `analyse.last_used`, and their flags look back
    `pipeline.qc.LOOKBACK_HOURS` more.
    """
    time: Any = hours.astype("datetime64[h]")  # both take arrays as they take an hour
    reads: tuple[Any, Any] = analyse.first_hour(time), analyse.last_used(time + HOUR, stream)
    first, last = map(_hour, reads)
    return np.asarray(np.searchsorted(changed, last) > np.searchsorted(changed, first))


def _last(store: Path, manifest: layout.Manifest) -> int:
    """Last hour of which the store holds a row; one before all others where it is empty."""
    parts = [part for part in manifest.partitions if part.observations]
    newest = [part for part in parts if part.month == max(part.month for part in parts)]
    ends = [pq.read_table(store / part.observations, columns=["time"])["time"].to_numpy().max() for part in newest]
    return max(map(to_hours, ends), default=-(1 << 40))


def _hours(cube: xr.Dataset) -> Hours:
    return _hour(cube["time"].values)


def _hour(time: NDArray[np.datetime64]) -> Hours:
    """Whole hours since 1970-01-01T00 UTC."""
    return np.asarray(time, "datetime64[h]").astype(np.int64)


def _periods(hours: Hours) -> list[Period]:
    """Hours as periods ``[first, end)``, in order."""
    if not len(hours):
        return []
    breaks = np.flatnonzero(np.diff(hours) != 1)
    first, last = hours[np.r_[0, breaks + 1]], hours[np.r_[breaks, len(hours) - 1]] + 1
    return list(zip(first.astype("M8[h]"), last.astype("M8[h]"), strict=True))
