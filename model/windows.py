"""The arrays that go in and come out of every method: AQ-Net and its baselines share these three classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating]

#: Order in which `Observations.values` stacks the pollutants (ug m-3, CO in mg m-3).
POLLUTANTS = ("pm2p5", "pm10", "so2", "no2", "o3", "co")

#: Quantile levels of every probabilistic estimate; the product publishes 0.05, 0.5 and 0.95.
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Observations:
    """Hourly observations of one network.

    Attributes
    ----------
    hours : (T,) int64, consecutive hours since 1970-01-01T00 UTC (hour starts).
    values : (P, T, S) float32, pollutants as in `POLLUTANTS`, NaN where missing or flagged.
    lon, lat : (S,) WGS84 degrees.
    elevation : (S,) metres.
    """

    hours: NDArray[np.int64]
    values: Float
    lon: Float
    lat: Float
    elevation: Float


@dataclass(frozen=True)
class Points:
    """Places to estimate at: `lon`, `lat` (Q,) WGS84 degrees, `elevation` (Q,) metres."""

    lon: Float
    lat: Float
    elevation: Float


@dataclass(frozen=True)
class Estimate:
    """PM2.5 at points, ug m-3.

    Attributes
    ----------
    mean : (T, Q) float32, conditional mean (NaN where no estimate is possible).
    quantiles : (L, T, Q) float32 at `LEVELS`, non-decreasing along L; None for a method without a distribution.
    """

    mean: Float
    quantiles: Float | None
