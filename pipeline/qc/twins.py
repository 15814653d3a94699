"""Two codes that report one series: which pairs, from when to when, and which of the two to doubt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pipeline.qc.flags import Float, Mask

#: Hours looked back, share of those both report that must be identical, and how many different values they must hold.
WINDOW, IDENTICAL, DISTINCT = 24, 20 / 24, 6
#: Hours that both must report: of PM2.5, and of another pollutant for it to be compared.
_HOURS, _OTHER_HOURS = 12, 6
#: Whole days with so few differences hold a block of this many hours, counted from 00 UTC, without one.
_BLOCK = 4
#: More columns than this that share a block share it by its poverty (all ones, say), not by being one station.
_CROWD = 40
#: The station that fits its neighbours worse by this much (log) is the copy; else the later code is.
_WORSE = 0.01


def duplicates(time: NDArray[np.datetime64], values: Mapping[str, Float], misfit: Float) -> Mask:
    """Hours (T, S) in which a station repeats another's series of the trailing day and fits its place less.

    Parameters
    ----------
    values : pollutant -> (T, S), NaN where missing.
    misfit : (T, S) how far each station is from what is usual for it beside its neighbours (log).
    """
    doubted = np.zeros(misfit.shape, dtype=bool)
    for (one, other), ends in candidates(time, values["pm2p5"]).items():
        same = _same_series(values, one, other) & _holds_block(ends, len(time))
        if same.any():
            worse = _worse(misfit[:, one], misfit[:, other])
            doubted[:, one] |= same & worse
            doubted[:, other] |= same & ~worse
    return doubted


def candidates(time: NDArray[np.datetime64], values: Float) -> dict[tuple[int, int], list[int]]:
    """Pairs of columns that share all values of some block of hours, and the last hour of each such block.

    Comparing all pairs of 1,500 stations hour by hour would take minutes; a copy always shares blocks.
    """
    pairs: dict[tuple[int, int], list[int]] = defaultdict(list)
    lead = int(time[0].astype("datetime64[h]").astype("int64")) % _BLOCK
    for first in range(-lead % _BLOCK, len(values) - _BLOCK + 1, _BLOCK):
        for pair in _pairs_of_block(values[first : first + _BLOCK].T):
            pairs[pair].append(first + _BLOCK - 1)
    return pairs


def _holds_block(ends: list[int], hours: int) -> Mask:
    """Hours (T,) whose trailing day holds a whole block that ends at one of `ends`."""
    marks = np.zeros(hours, dtype=bool)
    marks[ends] = True
    return _trailing(marks, WINDOW - _BLOCK + 1) > 0


def _pairs_of_block(block: Float) -> set[tuple[int, int]]:
    """Pairs of rows of (S, hours) that are equal, complete, and not constant."""
    usable = np.flatnonzero(np.isfinite(block).all(axis=1) & (block != block[:, :1]).any(axis=1))
    order = usable[np.lexsort(block[usable].T)]
    equal = (block[order[1:]] == block[order[:-1]]).all(axis=1)
    groups = np.split(order, np.flatnonzero(~equal) + 1)
    return {pair for group in groups if 1 < len(group) <= _CROWD for pair in combinations(sorted(group.tolist()), 2)}


def _same_series(values: Mapping[str, Float], one: int, other: int) -> Mask:
    """Hours (T,) at which the trailing day of two columns is one series, in PM2.5 and in another pollutant if any."""
    pair = {name: (series[:, one], series[:, other]) for name, series in values.items()}
    first, second = pair.pop("pm2p5")
    _, same = _compare(first, second, _HOURS)
    if not same.any():
        return same
    same &= _distinct(np.where(first == second, first, np.nan)) >= DISTINCT
    compared = [_compare(*series, _OTHER_HOURS) for series in pair.values()]
    some, agree = (np.any(part, axis=0) for part in zip(*compared, strict=True))
    return same & (agree | ~some)


def _compare(one: Float, other: Float, least: int) -> tuple[Mask, Mask]:
    """Whether both report `least` hours of the trailing day, and whether these agree; (T,) each."""
    both, equal = _trailing(np.isfinite(one) & np.isfinite(other)), _trailing(one == other)
    some = both >= least
    return some, some & (equal >= IDENTICAL * both)


def _trailing(what: Mask, window: int = WINDOW) -> NDArray[np.int64]:
    """Count of True in the `window` hours that end with each."""
    total = np.concatenate([np.zeros(window, dtype="int64"), np.cumsum(what)])
    return total[window:] - total[:-window]


def _distinct(series: Float) -> NDArray[np.int64]:
    """Different values in the `WINDOW` hours that end with each; NaN counts as none."""
    padded = np.concatenate([np.full(WINDOW - 1, np.nan), series])
    ordered = np.sort(np.lib.stride_tricks.sliding_window_view(padded, WINDOW), axis=1)
    return (np.diff(ordered, axis=1) > 0).sum(axis=1) + np.isfinite(ordered[:, 0])


def _worse(one: Float, other: Float) -> Mask:
    """Whether the first fits its neighbours worse over the trailing day; without a clear difference the later code."""
    return _mean(one) > _mean(other) + _WORSE


def _mean(series: Float) -> NDArray[np.float64]:
    """Mean over the `WINDOW` hours that end with each."""
    padded = np.concatenate([np.full(WINDOW - 1, np.nan), series])
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)
    return np.nansum(windows, axis=1) / np.maximum(np.isfinite(windows).sum(axis=1), 1)
