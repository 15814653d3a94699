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

#: Of the other pollutants, their validity marks and the cycles; what PM2.5 says, the encoder adds.
FEATURES = 2 * (len(POLLUTANTS) - 1) + 2 * len(CYCLES)

#: Columns of `terrain_features`.
TERRAIN_FEATURES = 5

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
    relief : (S, 4) metres: height above the mean of the terrain around (within about 30 and 80 km), and its standard
        deviation there; None where unknown, which counts as flat.
    """

    hours: NDArray[np.int64]
    values: Float
    lon: Float
    lat: Float
    elevation: Float
    relief: Float | None = None


@dataclass(frozen=True)
class Points:
    """Places to estimate at: `lon`, `lat` (Q,) degrees, `elevation` (Q,), `relief` (Q, 4) as of `Observations`."""

    lon: Float
    lat: Float
    elevation: Float
    relief: Float | None = None


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

    `features` (S, T, F), `z` (S, T) of PM2.5, see `to_z`, 0 where missing, `valid` (S, T) bool.
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

    Features, in order: the scaled logarithms of the other pollutants (0 where missing), their validity marks, and
    sine and cosine of each of `CYCLES` in local solar time (UTC + lon / 15 h), so that they mean the same anywhere.

    All are rounded from float64: what torch makes of a float32 depends on where in an array it stands, and so on which
    hours are cut out with it.
    """
    values = torch.from_numpy(np.ascontiguousarray(observations.values[:, hours][:, :, stations])).double()
    known = torch.isfinite(values)
    values = torch.where(known, values, 0.0).clamp(min=0).permute(2, 1, 0)  # (S, T, P)
    mark = known.permute(2, 1, 0)
    centre, spread = (torch.tensor(part, dtype=torch.float64) for part in (mean, std))
    scaled = torch.where(mark, (values.log1p() - centre) / spread, 0.0).clamp(-4, 4).float()
    cycles = [cyclic(observations.hours[hours], observations.lon[stations], period) for period in CYCLES]
    features = torch.cat([scaled[..., 1:], mark[..., 1:].float(), *cycles], dim=-1)
    return Window(features, (to_z(values[..., 0]) * mark[..., 0]).float(), mark[..., 0])


def to_z(pm2p5: Tensor) -> Tensor:
    """Cube root of PM2.5 (ug m-3): errors are about as large at any level, more nearly than those of the logarithm."""
    return pm2p5.clamp(min=0) ** (1 / 3)


def from_z(z: Tensor) -> Tensor:
    """PM2.5 (ug m-3) of z, not below 0."""
    return z.clamp(min=0) ** 3


def terrain_features(place: Observations | Points) -> Tensor:
    """Elevation in km and relief in 300 m, (N, G): what kriging and the head know of a place but its position."""
    elevation = np.asarray(place.elevation, np.float64)[:, None] / 1000
    flat = np.zeros((len(elevation), TERRAIN_FEATURES - 1))
    relief = flat if place.relief is None else np.asarray(place.relief) / 300
    return torch.from_numpy(np.clip(np.concatenate([elevation, relief], axis=1), -5, 5)).float()


def cyclic(hours: NDArray[np.int64], lon: Float, period: float) -> Tensor:
    """Sine and cosine (N, T, 2) of local solar time at `lon` (N,) for `hours` (T,) since 1970."""
    east = (np.asarray(lon) + 180.0) % 360.0 - 180.0  # however a longitude is written
    phase = (np.asarray(hours) - _MONDAY)[None] % period + east[:, None] / 15.0
    angle = torch.from_numpy(2 * np.pi * phase / period)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).float()
