"""Stations whose clock is off: lag correlation with the neighbours' median over the trailing week.

A wrong time zone, or an hour labelled by its end instead of its beginning, moves a whole series. Shared weather and
the daily cycles of O3 and NO2 then fit the neighbours best at that lag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.qc.flags import Float, Mask
from pipeline.qc.neighbours import days

#: Hours by which a station may be off, either way; positive when its times are late.
LAGS = np.arange(-12, 13)
#: Hours that must be known of a station and of its neighbours in the week, for a pollutant to count.
_LEAST_HOURS = 72
#: By how much the fit at the best lag must exceed the fit at none, in the unit of `shift`: from 3 hours on, below (that
#: fronts take time to pass explains an hour or two), and with only one pollutant to go by.
MARGIN, MARGIN_NEAR, MARGIN_ONE = 0.12, 0.25, 0.4
#: Hours up to which a lag may be weather, and the least fit at the best lag.
NEAR_HOURS, LEAST_FIT = 2, 0.35


@dataclass(frozen=True)
class Shift:
    """Per station (S,): best lag in hours, fit there, fit without a shift, and pollutants that count."""

    lag: NDArray[np.int64]
    best: Float
    unshifted: Float
    pollutants: NDArray[np.int64]

    @property
    def clear(self) -> Mask:
        """Whether the best lag is clearly not 0."""
        margin = np.where(np.abs(self.lag) > NEAR_HOURS, MARGIN, MARGIN_NEAR)
        margin = np.where(self.pollutants > 1, margin, MARGIN_ONE)
        return (self.lag != 0) & (self.best > LEAST_FIT) & (self.best - self.unshifted > margin)


def time_shifts(time: NDArray[np.datetime64], logs: Mapping[str, Float], medians: Mapping[str, Float]) -> Mask:
    """Hours (T, S) of UTC days before which a station ran ahead of or behind its neighbours for a week."""
    shifted = np.zeros((len(time), next(iter(logs.values())).shape[1]), dtype=bool)
    for rows, week in days(time):
        found = shift({k: v[week] for k, v in logs.items()}, {k: v[week] for k, v in medians.items()})
        shifted[rows] = found.clear
    return shifted


def shift(series: Mapping[str, Float], reference: Mapping[str, Float]) -> Shift:
    """Find the lag at which series fit references best, all pollutants together.

    The fit is the mean over pollutants of -log(1 - rho^2), rho the correlation where positive: the log likelihood
    ratio per hour, twice, of a linear relation between two normal series.

    Parameters
    ----------
    series, reference : pollutant -> (hours, S), NaN where missing.
    """
    fits = np.stack([_fit(series[name], reference[name]) for name in series])
    count = np.isfinite(fits[:, 0]).sum(axis=0)
    fit = np.nansum(fits, axis=0) / np.maximum(count, 1)
    best = fit.argmax(axis=0)
    none = int(np.flatnonzero(LAGS == 0)[0])
    return Shift(LAGS[best], fit.max(axis=0).astype("float32"), fit[none].astype("float32"), count)


def _fit(series: Float, reference: Float) -> NDArray[np.float64]:
    """-log(1 - rho^2) at each of `LAGS`, (lags, S); NaN where too few hours are known."""
    edge, hours = int(LAGS.max()), len(series)
    if hours <= 2 * edge:
        return np.full((len(LAGS), series.shape[1]), np.nan)
    own, known = _anomalies(series[edge : hours - edge])
    others, heard = _anomalies(reference)
    size = (own**2).sum(axis=0)
    fits = np.full((len(LAGS), series.shape[1]), np.nan)
    for n, lag in enumerate(LAGS):
        moved = others[edge - lag : hours - edge - lag]
        both = heard[edge - lag : hours - edge - lag] & known
        fits[n] = _likelihood(own, moved, size, both)
    return fits


def _anomalies(values: Float) -> tuple[NDArray[np.float64], Mask]:
    """Values less their mean, 0 where missing, and where they are known."""
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(axis=0, dtype="float64")
    mean = total / np.maximum(known.sum(axis=0), 1)
    return np.where(known, values - mean, 0.0), known


def _likelihood(
    own: NDArray[np.float64], moved: NDArray[np.float64], size: NDArray[np.float64], both: Mask
) -> NDArray[np.float64]:
    count = both.sum(axis=0)
    mean = moved.sum(axis=0) / len(moved)
    product = (own * moved).sum(axis=0)
    spread = size * np.maximum((moved**2).sum(axis=0) - len(moved) * mean**2, 0)
    rho = np.clip(product / np.sqrt(np.where(spread > 0, spread, np.inf)), 0, 0.98)
    return np.where(count >= _LEAST_HOURS, -np.log1p(-(rho**2)), np.nan)
