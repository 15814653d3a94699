"""Fill the gaps of a station record, so that estimates with fixed weights can be taken from it.

Shapes: T hours, S stations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Below this share of valid stations an hour's gaps are filled along time and not across space.
_THIN = 0.1

#: e-folding time with which a station's departure from its neighbours is carried into a gap, hours.
_MEMORY = 12.0

#: Steps of the conjugate gradients that fill gaps; by then estimates are within 0.01 % of their end.
_FILL_STEPS = 40


def fill_gaps(values: Array, system: Array, causal: bool) -> Array:
    """Fill the gaps of a record; observed values stay.

    An hour's gaps are kriged from its other stations, plus the station's own departure from such an estimate in the
    last (and, unless causal, the next) valid hour, which fades with `_MEMORY`. Hours of few stations go along time.

    Parameters
    ----------
    values : (T, S), NaN where missing; the first hour has an observation.
    system : (S, S) kriging precision of the values, zero row sums.
    causal : whether a gap may be filled from earlier hours only.
    """
    valid = ~np.isnan(values)
    kriged = _krige_gaps(values, system)
    departure = np.where(valid, (kriged @ system) / np.diag(system), 0.0)
    filled = np.where(valid, values, kriged + _carry(departure, valid, causal))
    return np.where(valid, values, _along_time(filled, _dense(valid), causal))


def _dense(valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Hours (T,) with enough stations to fill the others across space; before the first of them, with any at all."""
    share = valid.mean(axis=1)
    dense = share >= _THIN
    return dense | ((np.cumsum(dense) == 0) & (share > 0))


def _krige_gaps(values: Array, system: Array) -> Array:
    """Solve system[m, m] x_m = -system[m, o] x_o for each hour's missing stations m by conjugate gradients."""
    valid = ~np.isnan(values)
    count = valid.sum(axis=1, keepdims=True)
    x = np.where(valid, values, np.nansum(values, axis=1, keepdims=True) / np.maximum(count, 1))
    scale, free = np.diag(system), ~valid & (count > 0)
    r = -(x @ system) * free
    p = r / scale
    energy = (r * p).sum(axis=1, keepdims=True)
    for _ in range(_FILL_STEPS):
        a = (p @ system) * free
        step = energy / np.maximum((p * a).sum(axis=1, keepdims=True), 1e-30)
        x, r = x + step * p, r - step * a
        before, energy = energy, (r * r / scale).sum(axis=1, keepdims=True)
        p = r / scale + energy / np.maximum(before, 1e-30) * p
    return x


def _carry(departure: Array, valid: NDArray[np.bool_], causal: bool) -> Array:
    """Departure of the last valid hour, faded; two-sided, the mean of an Ornstein-Uhlenbeck bridge to the next one."""
    past, fade = _last(departure, valid)
    if causal:
        return fade * past
    future, rise = (x[::-1] for x in _last(departure[::-1], valid[::-1]))
    apart = np.maximum(1.0 - (fade * rise) ** 2, 1e-9)
    return (fade * (1.0 - rise**2) * past + rise * (1.0 - fade**2) * future) / apart


def _last(x: Array, valid: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Value of each station's last valid hour and exp(-age / `_MEMORY`), 0 where there is none; (T, S) each."""
    hour = np.arange(len(x))[:, None]
    last = np.maximum.accumulate(np.where(valid, hour, -1), axis=0)
    fade = np.where(last >= 0, np.exp(-(hour - last) / _MEMORY), 0.0)
    return np.take_along_axis(x, np.maximum(last, 0), axis=0), fade


def _along_time(x: Array, good: NDArray[np.bool_], causal: bool) -> Array:
    """Replace hours that are not good by the last good one; two-sided, by interpolation to the next."""
    hour = np.arange(len(x))
    last = np.maximum.accumulate(np.where(good, hour, -1))
    after = np.minimum.accumulate(np.where(good, hour, len(x))[::-1])[::-1]
    if causal:
        return x[np.maximum(last, 0)]
    after = np.where(after < len(x), after, last)
    part = np.where(after > last, (hour - last) / np.maximum(after - last, 1), 0.0)[:, None]
    return (1.0 - part) * x[last] + part * x[after]
