"""Whether the observations of a run agree with what is published of the same hours.

A run reads the days before its own for the network's memory, and often its own hours again; the last revision has
estimates of most of them, made from what was then observed. Where clock, unit or coordinates of the input have changed
since, the two disagree in a way of its own: best at another hour, by a factor, or in no pattern.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import Transformer

from pipeline.contract import STREAMS
from pipeline.cube.layout import Group
from pipeline.grid import Grid

Float = NDArray[np.float64]

#: Hours compared at most, so that memory is flat; lags tried, hours, positive when the input is late.
MOST_HOURS = 120
LAGS = tuple(range(-12, 13))
#: Hours and stations that both must know for anything to be said.
LEAST_HOURS, LEAST_STATIONS = 12, 5


@dataclass(frozen=True)
class Agreement:
    """Observations beside the published median of their cells, in log(PM2.5 + 1).

    Attributes
    ----------
    hours, stations : that were compared.
    lag : hours by which the input is late where it fits best.
    fit, fit_unshifted : correlation in time of the stations' anomalies at that lag and at none.
    level : factor, the median over all pairs of observed over published.
    pattern : correlation in space of the hours' anomalies.
    """

    hours: int
    stations: int
    lag: int
    fit: float
    fit_unshifted: float
    level: float
    pattern: float


def compare(observed: xr.DataArray, published: Group | None, grid: Grid) -> Agreement | None:
    """Compare valid PM2.5 (time, station), ug m-3, with a published cube; None where they share too little.

    Parameters
    ----------
    observed : consecutive hours with ``lon`` and ``lat``; the first `MOST_HOURS` count.
    published : root group of the last revision.
    """
    if published is None:
        return None
    part = observed.isel(time=slice(MOST_HOURS))
    row, column = cells(grid, part["lon"].values, part["lat"].values)
    inside = row >= 0
    there = _published(published, part["time"].values, row[inside], column[inside])
    here = np.log1p(part.values[:, inside].astype(np.float64))
    both = np.isfinite(here) & np.isfinite(there)
    if both.any(axis=1).sum() < LEAST_HOURS or both.any(axis=0).sum() < LEAST_STATIONS:
        return None
    fits = dict(_fits(here, there, int(both.sum())))
    lag = max(fits, key=lambda one: (fits[one], -abs(one)))
    level = float(np.exp(np.median((here - there)[both])))
    pattern = correlation(here, there, axis=1)
    hours, stations = int(both.any(axis=1).sum()), int(both.any(axis=0).sum())
    return Agreement(hours, stations, lag, fits[lag], fits.get(0, 0.0), level, pattern)


def cells(grid: Grid, lon: Float, lat: Float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of the cell that each place lies in, -1 for both outside the grid."""
    x, y = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True).transform(lon, lat)
    if not grid.projected:
        x = grid.x[0] - grid.resolution / 2 + (x - grid.x[0] + grid.resolution / 2) % 360
    found = [np.floor((at - axis[0]) / grid.resolution + 0.5) for at, axis in ((y, grid.y), (x, grid.x))]
    inside = np.all([(at >= 0) & (at < size) for at, size in zip(found, grid.shape, strict=True)], axis=0)
    row, column = (np.where(inside, at, -1).astype(np.int64) for at in found)
    return row, column


def _published(group: Group, time: NDArray[np.datetime64], row: NDArray[np.int64], column: NDArray[np.int64]) -> Float:
    """log1p of the published medians of analysed hours at cells, (T, S); NaN where there is none."""
    hours = time.astype("datetime64[h]").astype(np.int64)
    found = np.full((len(hours), len(row)), np.nan)
    at = hours - int(group["time"][0])
    known = np.flatnonzero((at >= 0) & (at < group["time"].shape[0]))
    if len(known):
        rows = slice(int(at[known[0]]), int(at[known[-1]]) + 1)
        analysed = np.isin(group["stream"][rows], [STREAMS["interim"], STREAMS["final"]])
        fields = group["pm2p5_p50"][rows][:, row, column].astype(np.float64)
        found[known] = np.where(analysed[:, None], np.log1p(fields), np.nan)
    return found


def _fits(here: Float, there: Float, pairs: int) -> Iterator[tuple[int, float]]:
    """Correlation in time at each lag at which half as many pairs as without a lag are known."""
    size = len(here)
    for lag in LAGS:
        late = here[max(lag, 0) : size + min(lag, 0)]
        other = there[max(-lag, 0) : size - max(lag, 0)]
        if (np.isfinite(late) & np.isfinite(other)).sum() >= pairs / 2:
            yield lag, correlation(late, other, axis=0)


def correlation(one: Float, other: Float, axis: int) -> float:
    """Correlation of two arrays, each less its means along an axis, over the pairs that both know; 0 without spread."""
    known = np.isfinite(one) & np.isfinite(other)
    a, b = (_anomalies(values, known, axis) for values in (one, other))
    spread = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / spread) if spread > 0 else 0.0


def _anomalies(values: Float, known: NDArray[np.bool_], axis: int) -> Float:
    count = np.maximum(known.sum(axis=axis, keepdims=True), 1)
    mean = np.where(known, values, 0).sum(axis=axis, keepdims=True) / count
    return np.where(known, values - mean, 0.0)
