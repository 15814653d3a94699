"""Conformal calibration of the intervals: how much wider or narrower they must be at each distance to cover 90 %.

Split conformal prediction (Lei et al. 2018, doi:10.1080/01621459.2017.1307116) with the interval's own half-widths as
scale, blocked in space: residuals come from stations that were left out of training by whole cities and one by one,
since those of one city are alike (Roberts et al. 2017, doi:10.1111/ecog.02881).

Shapes: N pairs of a held-out observation and its estimate, L quantile levels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from model.aqnet import WIDEN_KM, AQNet
from model.windows import LEVELS, Float, to_z

#: Lower edges of the classes of distance, km, each of which holds one of `WIDEN_KM`.
EDGES = (0.0, 5.0, 15.0, 40.0, 80.0, 150.0)

#: A class with fewer pairs takes the factor of the next that has enough.
FEWEST = 2000

#: Share of the truth that the outermost quantiles are to hold.
COVERAGE = LEVELS[-1] - LEVELS[0]


def fit(truth: Float, quantiles: NDArray[np.float32], km: Float) -> tuple[float, ...]:
    """Factors of the width at `WIDEN_KM`.

    Parameters
    ----------
    truth : (N,) ug m-3.
    quantiles : (L, N) of estimates that did not see the station, ug m-3.
    km : (N,) to the nearest station that the estimate saw.

    Returns
    -------
    tuple
        1 everywhere without any class of `FEWEST` pairs.
    """
    needed, which = _needed(truth, quantiles), np.digitize(km, EDGES) - 1
    found = np.full(len(WIDEN_KM), np.nan)
    for number in range(len(WIDEN_KM)):
        inside = needed[which == number]
        if len(inside) >= FEWEST:
            found[number] = np.quantile(inside, COVERAGE)
    known = np.flatnonzero(~np.isnan(found))
    if not len(known):
        return (1.0,) * len(WIDEN_KM)
    next_known = known[np.abs(np.arange(len(found))[:, None] - known).argmin(axis=1)]
    return tuple(round(float(factor), 4) for factor in found[next_known])


def _needed(truth: Float, quantiles: NDArray[np.float32]) -> Float:
    """Factor (N,) by which each interval would just reach its observation, in z."""
    z, (low, median, high) = _z(truth), _z(quantiles[[0, len(LEVELS) // 2, -1]])
    half = np.where(z > median, high - median, median - low)
    return np.abs(z - median) / np.maximum(half, 1e-6)


def widened(quantiles: NDArray[np.float32], factor: Float) -> NDArray[np.float32]:
    """Widen quantiles (L, ...) about the median by a factor (...), in z."""
    z = _z(quantiles)
    median = z[len(LEVELS) // 2]
    return (np.maximum(median + factor * (z - median), 0.0) ** 3).astype(np.float32)


def factor_at(km: Float, widen: tuple[float, ...]) -> Float:
    """Factor (...) at distances, as `model.aqnet.widening` has it."""
    return np.interp(np.log1p(km), np.log1p(WIDEN_KM), widen)


def calibrated(network: AQNet, widen: tuple[float, ...]) -> AQNet:
    """Give a network factors of the width, in place; they are among its weights."""
    network.head.widen.copy_(torch.tensor(widen))
    return network


def _z(values: Float) -> Float:
    return to_z(torch.from_numpy(np.asarray(values, np.float64))).numpy()
