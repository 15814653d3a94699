"""The arrays that go in and come out of every method, and the windows of them that the network reads.

Shapes: P pollutants, T hours, S stations, Q points, L quantile levels, F input features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Float = NDArray[np.floating]

#: Order in which `Observations.values` stacks the pollutants (ug m-3, CO in mg m-3).
POLLUTANTS = ("pm2p5", "pm10", "so2", "no2", "o3", "co")

#: Quantile levels of every probabilistic estimate; the product publishes 0.05, 0.5 and 0.95.
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

#: Periods of the cyclic time encoding, hours: day and week. No year: a year of record cannot tell season from trend.
CYCLES = (24.0, 168.0)

FEATURES = 2 * len(POLLUTANTS) + 2 * len(CYCLES)

#: Hour 0 of the week of the cyclic encoding: 1970-01-05T00 UTC, a Monday.
_MONDAY = 96


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


class Window(NamedTuple):
    """What the encoder reads of S stations over consecutive hours.

    `features` (S, T, F), `z` (S, T) log(PM2.5 + 1) with 0 where missing, `valid` (S, T) bool.
    """

    features: Tensor
    z: Tensor
    valid: Tensor


def normalisation(values: Float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of log(value + 1) of each pollutant; `values` (P, T, S) of training hours only."""
    logs = [np.log1p(values[p][np.isfinite(values[p])].clip(min=0)) for p in range(len(POLLUTANTS))]
    return tuple(float(x.mean()) for x in logs), tuple(float(x.std()) for x in logs)


def window(
    observations: Observations,
    hours: slice,
    stations: NDArray[np.int64],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Window:
    """Cut the hours of some stations out of a record and scale them for the encoder.

    Features, in order: the scaled logarithms of the six pollutants (0 where missing), their six validity marks, and
    sine and cosine of each of `CYCLES` in local solar time (UTC + lon / 15 h), so that they mean the same anywhere.
    """
    values = torch.from_numpy(np.ascontiguousarray(observations.values[:, hours][:, :, stations])).float()
    valid = torch.isfinite(values)
    logs = torch.where(valid, values, 0.0).clamp(min=0).log1p().permute(2, 1, 0)  # (S, T, P)
    mark = valid.permute(2, 1, 0)
    scaled = torch.where(mark, (logs - torch.tensor(mean)) / torch.tensor(std), 0.0)
    cycles = [cyclic(observations.hours[hours], observations.lon[stations], period) for period in CYCLES]
    return Window(torch.cat([scaled, mark.float(), *cycles], dim=-1), logs[..., 0] * mark[..., 0], mark[..., 0])


def cyclic(hours: NDArray[np.int64], lon: Float, period: float) -> Tensor:
    """Sine and cosine (N, T, 2) of local solar time at `lon` (N,) for `hours` (T,) since 1970."""
    phase = (np.asarray(hours) - _MONDAY)[None] % period + np.asarray(lon)[:, None] / 15.0
    angle = torch.from_numpy(2 * np.pi * phase / period).float()
    return torch.stack([angle.sin(), angle.cos()], dim=-1)
