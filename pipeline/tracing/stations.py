"""The stations of a trace: the weight of each, what it reported, and at which file and line that stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.geometry import distance_matrix
from model.outlook_inputs import HISTORY
from model.trace import Parts, as_z
from model.trace_outlook import OutlookParts
from pipeline import qc
from pipeline.tracing.observed import Observed

if TYPE_CHECKING:
    from pipeline.tracing.trace import Trace


@dataclass(frozen=True)
class Observation:
    """One PM2.5 as a station reported it.

    Attributes
    ----------
    time : start of the hour, UTC.
    pm2p5 : as reported, ug m-3.
    flags : names of the quality flags that are set.
    used : whether it is valid.
    file, line : where it stands.
    weight : of its z in the kriging estimate; 0 of one that is not used, NaN where weights are of forecasts.
    """

    time: np.datetime64
    pm2p5: float
    flags: tuple[str, ...]
    used: bool
    file: str
    line: int
    weight: float


@dataclass(frozen=True)
class Station:
    """One station of a trace; `at` is its index in the record, `row` that in the parts."""

    name: str
    lon: float
    lat: float
    km: float
    weight: float
    at: int
    row: int


def stations(trace: Trace) -> list[Station]:
    """Every station that takes part, the one that weighs most first."""
    parts, cube = trace.parts, trace.observed.cube
    if parts is None:
        return []
    weight = parts.weight.sum(axis=1) if isinstance(parts, Parts) else parts.weight
    return [
        Station(
            name=str(cube["station"].values[at]),
            lon=float(cube["lon"].values[at]),
            lat=float(cube["lat"].values[at]),
            km=float(parts.km[row]),
            weight=float(weight[row]),
            at=at,
            row=int(row),
        )
        for row in np.argsort(-importance(parts), kind="stable")
        for at in (int(parts.stations[row]),)
    ]


def importance(parts: Parts | OutlookParts) -> NDArray[np.float64]:
    """Sum of the sizes of the weights of each station, (S,): weights of either sign count."""
    size = np.abs(parts.weight)
    return np.asarray(size.sum(axis=1) if size.ndim == 2 else size, np.float64)


def share(parts: Parts, station: Station, observed: Observed) -> float:
    """What a station's observations give of the kriged z: weight times z over the sum of all."""
    values = observed.pm2p5[parts.hours, station.at]
    used = parts.weight[station.row] != 0
    return float((parts.weight[station.row][used] * as_z(values[used])).sum() / parts.kriged)


def observations(trace: Trace, station: Station) -> list[Observation]:
    """What a station reported in the hours that the value depends on, in order."""
    parts = trace.parts
    if isinstance(parts, Parts):
        hours, weight = parts.hours, parts.weight[station.row]
    else:
        hours = slice(max(trace.hour - HISTORY, 0), trace.hour)
        weight = np.full(hours.stop - hours.start, np.nan)
    found = (observation(trace.observed, hours.start + n, station.at, float(w)) for n, w in enumerate(weight))
    return [one for one in found if one is not None]


def latest(trace: Trace, station: Station) -> Observation | None:
    """What a station reported in the hour; of an outlook, in the last hour before its issue."""
    parts = trace.parts
    if isinstance(parts, Parts):
        weight = float(parts.weight[station.row][trace.hour - parts.hours.start])
        return observation(trace.observed, trace.hour, station.at, weight)
    return observation(trace.observed, trace.hour - 1, station.at, float("nan"))


def observation(observed: Observed, hour: int, at: int, weight: float) -> Observation | None:
    """What a station reported in an hour; None where nothing."""
    where = observed.where(hour, at)
    if where is None:
        return None
    bits = int(observed.flags[hour, at])
    return Observation(
        time=observed.time[hour],
        pm2p5=float(observed.pm2p5[hour, at]),
        flags=tuple(name for name, bit in qc.FLAGS.items() if bits & bit) if bits else (),
        used=not bits & qc.INVALID,
        file=where[0],
        line=where[1],
        weight=weight,
    )


def rejected(trace: Trace, count: int) -> list[tuple[str, float, Observation]]:
    """Name, distance (km) and value of the nearest stations whose value in the hour was flagged as invalid."""
    cube = trace.observed.cube
    hour = min(trace.hour, cube.sizes["time"] - 1)
    bits = trace.observed.flags[hour]
    at = np.flatnonzero((trace.observed.file[hour] >= 0) & ((bits & qc.INVALID) != 0))
    place = np.array([trace.cell.lon]), np.array([trace.cell.lat])
    km = distance_matrix(*place, cube["lon"].values[at], cube["lat"].values[at])[0]
    nearest = np.argsort(km, kind="stable")[:count]
    found = ((int(at[n]), float(km[n]), observation(trace.observed, hour, int(at[n]), 0.0)) for n in nearest)
    return [(str(cube["station"].values[k]), d, one) for k, d, one in found if one is not None]
