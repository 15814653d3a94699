"""Who a station's neighbours are, what they report, and what the station's own last days were like.

All of it looks back only. Nothing depends on columns that report nothing: two cubes with the same values in them, one
with more silent stations than the other, give the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pipeline.qc.flags import Float

#: Neighbours stand within this distance and difference of height (m); the nearest so many that report are heard.
RADIUS, HEIGHT, NEAREST = 100e3, 500.0, 10
#: With fewer neighbours that report there is no neighbourhood to be compared with.
LEAST = 3
#: How far (m) a station's clock is compared where it has no neighbours: daily cycles are alike at that distance.
AFAR = 300e3
#: Of so many neighbours one may be at fault: the second lowest and second highest count then.
MANY = 6
#: Nearest columns that are looked at. Only where fewer than `NEAREST` of so many report can a farther one be missed.
_COLUMNS = 96
_EARTH_RADIUS = 6371e3

#: Hours of a station's own record that it is compared with: the week that ends where the UTC day begins.
HISTORY_HOURS = 168


@dataclass(frozen=True)
class Around:
    """What the neighbours of each station report, (T, S), NaN where there is no such value.

    ``median`` of `LEAST` or more; ``low`` and ``high`` are their extremes, of `MANY` or more those but for one.
    """

    median: Float
    low: Float
    high: Float


def nearest_columns(cube: xr.Dataset, radius: float = RADIUS, height: float = HEIGHT) -> NDArray[np.int64]:
    """Columns (S, K) of each station's neighbours, nearest first; filled up with S, the number of stations.

    Parameters
    ----------
    radius, height : distance and difference of height (m) that a neighbour may have.
    """
    points = _sphere(cube["lon"].to_numpy(), cube["lat"].to_numpy())
    count = len(points)
    ranks = np.arange(1, min(_COLUMNS + 1, count) + 1)
    distance, found = cKDTree(points).query(points, ranks, distance_upper_bound=radius)
    level = np.append(cube["elevation"].to_numpy(), np.nan)
    near = np.abs(level[found] - level[:count, None]) <= height
    own = found == np.arange(count)[:, None]
    found = np.where(near & ~own, found, count)
    order = np.argsort(np.where(found == count, np.inf, distance), axis=1, kind="stable")
    found = np.take_along_axis(found, order, axis=1)
    return found[:, : max(int((found < count).sum(axis=1).max(initial=0)), 1)]


def _sphere(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (S, 3) on a sphere, m: at 100 km chord and arc differ by a metre."""
    lam, phi = np.radians(lon), np.radians(lat)
    return _EARTH_RADIUS * np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def around(values: Float, near: NDArray[np.int64]) -> Around:
    """Median and extremes, hour by hour, of the nearest neighbours that report.

    Parameters
    ----------
    values : (T, S), NaN where not reported or not to be trusted.
    near : (S, K) from `nearest_columns`, or some rows of it.
    """
    padded = np.concatenate([values, np.full((len(values), 1), np.nan, values.dtype)], axis=1)
    hours = [_around_hour(hour[near]) for hour in padded]
    return Around(*(np.stack(part) for part in zip(*hours, strict=True)))


def _around_hour(heard: Float) -> tuple[Float, Float, Float]:
    """Median, low and high of (S, K) neighbours, each (S,)."""
    rank = np.cumsum(np.isfinite(heard), axis=1)
    heard[rank > NEAREST] = np.nan
    count = np.minimum(rank[:, -1], NEAREST)
    heard = np.sort(heard, axis=1)  # NaN last
    last, inner = np.maximum(count - 1, 0), (count >= MANY).astype("int64")
    middle = (_at(heard, last // 2) + _at(heard, (last + 1) // 2)) / 2
    median = np.where(count >= LEAST, middle, np.float32(np.nan))
    return median, _at(heard, inner), _at(heard, last - inner)


def _at(values: Float, column: NDArray[np.int64]) -> Float:
    return np.take_along_axis(values, column[:, None], axis=1)[:, 0]


def filled_from_afar(cube: xr.Dataset, logs: Float, median: Float) -> Float:
    """The neighbours' median, (T, S), from stations within `AFAR` at any height where there are too few neighbours."""
    lonely = np.flatnonzero((np.isnan(median) & np.isfinite(logs)).any(axis=0))
    result = median.copy()
    if len(lonely):
        wide = around(logs, nearest_columns(cube, AFAR, np.inf)[lonely]).median
        result[:, lonely] = np.where(np.isnan(median[:, lonely]), wide, median[:, lonely])
    return result


def days(time: NDArray[np.datetime64]) -> Iterator[tuple[slice, slice]]:
    """Rows of each UTC day, and rows of the `HISTORY_HOURS` before it that there are."""
    day = time.astype("datetime64[D]")
    for begin in np.flatnonzero(np.append(True, day[1:] != day[:-1])):
        midnight = int(begin) - int((time[begin] - day[begin]) / np.timedelta64(1, "h"))
        rows = slice(int(begin), min(midnight + 24, len(time)))
        yield rows, slice(max(midnight - HISTORY_HOURS, 0), max(midnight, 0))


def median_of(values: Float, at_least: int) -> Float:
    """Median (S,) over the hours of (T, S), NaN where fewer than `at_least` hours have a value."""
    if not len(values):
        return np.full(values.shape[1], np.nan, values.dtype)
    ordered = np.sort(np.ascontiguousarray(values.T), axis=1)
    count = np.isfinite(ordered).sum(axis=1)
    last = np.maximum(count - 1, 0)
    middle = (_at(ordered, last // 2) + _at(ordered, (last + 1) // 2)) / 2
    return np.where(count >= at_least, middle, np.float32(np.nan)).astype(values.dtype)


def by_day(time: NDArray[np.datetime64], values: Float, measure: Callable[[Float], Float]) -> Float:
    """`measure` of the week before each UTC day, given to all hours of the day; (T, S)."""
    result = np.full(values.shape, np.nan, dtype="float32")
    for rows, history in days(time):
        result[rows] = measure(values[history])
    return result


def recent_median(values: Float, hours: int, at_least: int = 2) -> Float:
    """Median (T, S) of the `hours` before each one, NaN where fewer than `at_least` of them have a value."""
    padded = np.concatenate([np.full((hours, values.shape[1]), np.nan, values.dtype), values[:-1]])
    windows = np.lib.stride_tricks.sliding_window_view(padded, hours, axis=0)
    ordered = np.sort(windows, axis=-1)
    count = np.isfinite(ordered).sum(axis=-1)
    last = np.maximum(count - 1, 0)
    pick = [np.take_along_axis(ordered, k[..., None], axis=-1)[..., 0] for k in (last // 2, (last + 1) // 2)]
    return np.where(count >= at_least, (pick[0] + pick[1]) / 2, np.float32(np.nan))
