"""Space-time kriging: the record is parted into bands of time scale, and each band is kriged with its own covariance.

For a stationary field the frequencies are uncorrelated, so kriging each band with the covariance of that band is the
best linear estimate from all stations and hours (the spectral form of the space-time kriging equations: Cressie and
Wikle 2011, Statistics for Spatio-Temporal Data, sec. 6.1). Bands of exponential (causal) or Gaussian (two-sided) moving
means approximate it with weights that do not depend on the hour; gaps are filled first.

Shapes: T hours, S stations, Q points, B bands, L quantile levels. Distances in km, heights in m, time scales in hours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.ndimage import gaussian_filter1d
from scipy.signal import lfilter
from scipy.spatial.distance import squareform
from scipy.special import expit, logit, ndtri

from model.gaps import fill_gaps
from model.geometry import distance_matrix, terrain_distance
from model.windows import LEVELS, POLLUTANTS, Estimate, Observations, Points

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Added to PM2.5 before the logarithm, ug m-3: errors at low concentrations are not in proportion to them.
OFFSET = 10.0

#: Stations up to this distance apart are left out together when a model is judged, km.
BLOCK_KM = 60.0

#: e-folding time of the hour's spread, hours, and the power of it that scales the variance.
_SPREAD_MEMORY = 3.0
_SPREAD_POWER = 0.8


@dataclass(frozen=True)
class Band:
    """Covariance of one band: nugget, exponential and powered exponential of the terrain distance.

    Attributes
    ----------
    nugget : variance of a station about the field over that of the field.
    share : part of the exponential structure in the field's variance, 0 to 1.
    ranges : e-folding distances of the exponential and of the powered exponential structure, km.
    power : exponent of the second structure, 0 to 2.
    terrain_factor : km of distance a km of height counts for, see `model.geometry.terrain_distance`.
    """

    nugget: float
    share: float
    ranges: tuple[float, float]
    power: float
    terrain_factor: float

    def covariance(self, d: Array) -> Array:
        """Covariance of the field, of variance 1, at two places `d` km apart; the nugget is not part of it."""
        smooth = np.exp(-((d / self.ranges[1]) ** self.power))
        return self.share * np.exp(-d / self.ranges[0]) + (1.0 - self.share) * smooth

    def to_vector(self) -> Array:
        """Unbounded parameters, (6,)."""
        logs = np.log([self.nugget, *self.ranges, self.terrain_factor])
        return np.array([*logs, logit(self.share), logit(self.power / 2.0)])

    @classmethod
    def from_vector(cls, theta: Array) -> Band:
        """Inverse of `to_vector`, within bounds that keep the systems solvable."""
        low, high = np.log([1e-3, 1.0, 1.0, 1.0]), np.log([1e2, 1e4, 1e4, 1e4])
        nugget, short, long, factor = (float(p) for p in np.exp(np.clip(theta[:4], low, high)))
        return cls(nugget, float(expit(theta[4])), (short, long), float(min(2.0 * expit(theta[5]), 1.95)), factor)


@dataclass(frozen=True)
class SpaceTime:
    """A space-time kriging model of log(PM2.5 + `OFFSET`).

    Attributes
    ----------
    widths : (B - 1,) time scales that part the bands, ascending, hours: e-folding times of causal means, or standard
        deviations of Gaussian ones.
    causal : whether an estimate reads no later hour.
    bands : (B,) fastest first.
    scales : (B + 1,) variance of each band over its unit kriging variance, then a constant.
    z : (L,) quantiles of the standardised residual at `LEVELS`.
    """

    widths: tuple[float, ...]
    causal: bool
    bands: tuple[Band, ...]
    scales: tuple[float, ...]
    z: tuple[float, ...] = tuple(float(z) for z in ndtri(np.array(LEVELS)))


@dataclass(frozen=True)
class Separation:
    """Horizontal distance, km, and difference in height, m, of the places of one set from those of another, (A, B)."""

    d: Array
    dz: Array

    @classmethod
    def of(cls, a: Observations | Points, b: Observations | Points) -> Separation:
        """Separate every place of `a` from every place of `b`."""
        dz = np.asarray(a.elevation, np.float64)[:, None] - np.asarray(b.elevation, np.float64)[None]
        return cls(distance_matrix(a.lon, a.lat, b.lon, b.lat), dz)

    def terrain(self, factor: float) -> Array:
        """Terrain distance, (A, B) km."""
        return terrain_distance(self.d, self.dz, factor)


#: `fit_space_time` on the visible stations of CNEMC 2019 before its test hours, reading no later hour.
CNEMC_2019_CAUSAL = SpaceTime(
    (3.0, 12.0, 48.0, 240.0),
    True,
    (
        Band(0.2937, 0.5633, (44.11, 197.9), 0.8024, 191.7),
        Band(0.03623, 0.5438, (134.2, 432.7), 1.091, 122.0),
        Band(0.02075, 0.2506, (280.2, 732.2), 1.748, 305.5),
        Band(0.03997, 0.367, (131.3, 854.9), 1.572, 133.7),
        Band(0.003632, 0.04557, (662.1, 1208.0), 1.95, 208.0),
    ),
    (0.02925, 0.0, 0.1239, 0.1148, 0.5972, 0.0),
    (-1.703, -1.253, -0.776, -0.465, -0.215, 0.009, 0.232, 0.478, 0.785, 1.254, 1.694),
)

#: The same, reading hours on both sides.
CNEMC_2019_TWO_SIDED = SpaceTime(
    (1.5, 6.0, 24.0, 120.0),
    False,
    (
        Band(0.8035, 0.8655, (12.16, 40.91), 1.088, 48.27),
        Band(0.05432, 0.6872, (73.18, 538.1), 0.8423, 75.55),
        Band(0.03023, 0.4264, (341.3, 326.4), 1.276, 224.9),
        Band(0.007362, 0.249, (448.7, 1283.0), 1.885, 175.8),
        Band(0.00378, 0.04403, (583.5, 1245.0), 1.95, 213.6),
    ),
    (0.01317, 0.02526, 0.1637, 0.0, 0.0, 0.0),
    (-1.697, -1.251, -0.776, -0.465, -0.217, 0.008, 0.232, 0.478, 0.785, 1.256, 1.696),
)


# ---- estimator ----


def space_time_kriging(
    observations: Observations, points: Points, model: SpaceTime = CNEMC_2019_CAUSAL, heteroscedastic: bool = True
) -> Estimate:
    """Estimate every hour of a continuous record by ordinary kriging of its bands, from all stations.

    Parameters
    ----------
    observations : consecutive hours; the first ones have less of a past to read.
    heteroscedastic : scale each hour's variance by how well its stations are estimated from one another.

    Returns
    -------
    Estimate
        NaN before the first hour that has an observation.

    Raises
    ------
    ValueError
        With fewer than two stations: none can then be estimated from the others.
    """
    values = transform(observations)
    if values.shape[1] < 2:
        raise ValueError(f"space-time kriging needs two stations; found {values.shape[1]}")
    start = int(np.argmax((~np.isnan(values)).any(axis=1))) if (~np.isnan(values)).any() else len(values)
    m, s2 = np.full((2, len(values), len(points.lon)), np.nan)
    if start < len(values):
        between, towards = Separation.of(observations, observations), Separation.of(points, observations)
        m[start:], s2[start:] = _krige(values[start:], between, towards, model, heteroscedastic)
    return _distribution(m, s2, model.z)


METHODS: dict[str, Callable[[Observations, Points], Estimate]] = {
    "space_time": partial(space_time_kriging, model=CNEMC_2019_CAUSAL),
    "space_time_two_sided": partial(space_time_kriging, model=CNEMC_2019_TWO_SIDED),
}


def _krige(
    values: Array, between: Separation, towards: Separation, model: SpaceTime, heteroscedastic: bool
) -> tuple[Array, Array]:
    """Estimate and variance (T, Q) of a transformed record that starts with an observation."""
    parts = bands_of(filled(values, between, model), model.widths, model.causal)
    m, unit = np.zeros((len(values), len(towards.d))), []
    for part, band in zip(parts, model.bands, strict=True):
        weights, variance = _weights(band, between, towards)
        m += part @ weights.T
        unit.append(variance)
    s2 = variance_of(model, unit)[None]
    if heteroscedastic:
        systems = [precision(band, between) for band in model.bands]
        left = left_out(parts, systems, blocks_of(between))
        s2 = s2 * hour_scale(left, ~np.isnan(values), model)[:, None]
    return m, np.broadcast_to(s2, m.shape)


def transform(observations: Observations) -> Array:
    """log(PM2.5 + `OFFSET`), (T, S)."""
    return np.log(np.asarray(observations.values[POLLUTANTS.index("pm2p5")], np.float64) + OFFSET)


def back(logarithm: Array) -> Array:
    """PM2.5 of its logarithm, not below 0, ug m-3."""
    return np.maximum(np.exp(logarithm) - OFFSET, 0.0)


def _distribution(m: Array, s2: Array, z: Sequence[float]) -> Estimate:
    s = np.sqrt(s2)
    quantiles = np.stack([back(m + level * s).astype(np.float32) for level in z])
    return Estimate(back(m + s2 / 2.0).astype(np.float32), quantiles)


# ---- bands ----


def filled(values: Array, between: Separation, model: SpaceTime) -> Array:
    """Fill the gaps of a record (T, S) that starts with an observation."""
    return fill_gaps(values, precision_of(_covariance(model, between)), model.causal)


def bands_of(filled: Array, widths: Sequence[float], causal: bool) -> list[Array]:
    """Part a record (T, S) without gaps into len(widths) + 1 bands that add up to it, fastest first."""
    mean = _past_mean if causal else _mean
    smooth = [filled, *(mean(filled, width) for width in widths)]
    return [fast - slow for fast, slow in pairwise(smooth)] + smooth[-1:]


def _mean(x: Array, width: float) -> Array:
    """Gaussian moving mean over three standard deviations on either side."""
    return np.asarray(gaussian_filter1d(x, width, axis=0, mode="nearest", truncate=3.0))


def _past_mean(x: Array, width: float) -> Array:
    """Exponential moving mean of an hour and those before it, as if the first hour had always been."""
    keep = np.exp(-1.0 / width)
    return np.asarray(lfilter([1.0 - keep], [1.0, -keep], x - x[:1], axis=0)) + x[:1]


# ---- systems ----


def precision(band: Band, between: Separation) -> Array:
    """Ordinary kriging precision (S, S) of the stations in one band, see `precision_of`."""
    return precision_of(band.covariance(between.terrain(band.terrain_factor)) + band.nugget * np.eye(len(between.d)))


def precision_of(covariance: Array) -> Array:
    """Q = P - P 1 1' P / 1' P 1 with P the inverse of a covariance: what an unknown mean leaves of it; Q 1 = 0."""
    inverse = np.linalg.inv(covariance)
    ones = inverse.sum(axis=1)
    return np.asarray(inverse - np.outer(ones, ones) / ones.sum())


def _covariance(model: SpaceTime, between: Separation) -> Array:
    """Covariance of the stations' values, all bands together."""
    noise = sum(c * band.nugget for c, band in zip(model.scales, model.bands, strict=False)) + model.scales[-1]
    total = (noise + 1e-6) * np.eye(len(between.d))
    for scale, band in zip(model.scales, model.bands, strict=False):
        total += scale * band.covariance(between.terrain(band.terrain_factor))
    return total


def _weights(band: Band, between: Separation, towards: Separation) -> tuple[Array, Array]:
    """Ordinary kriging weights (Q, S) from all stations, and the variance (Q,) of an observation (unit field)."""
    matrix = band.covariance(between.terrain(band.terrain_factor)) + band.nugget * np.eye(len(between.d))
    c = band.covariance(towards.terrain(band.terrain_factor))
    x_c, x_1 = np.linalg.solve(matrix, c.T).T, np.linalg.solve(matrix, np.ones(len(matrix)))
    mu = (x_c.sum(axis=1) - 1.0) / x_1.sum()
    weights = x_c - mu[:, None] * x_1
    return weights, 1.0 + band.nugget - (weights * c).sum(axis=1) - mu


def variance_of(model: SpaceTime, unit: Sequence[Array]) -> Array:
    """Variance of an observation about the estimate from the unit kriging variances of the bands."""
    scaled = [scale * variance for scale, variance in zip(model.scales, unit, strict=False)]
    return np.asarray(sum(scaled) + model.scales[-1])


# ---- stations estimated from one another ----


def blocks_of(between: Separation) -> list[Index]:
    """Groups of stations at most `BLOCK_KM` across that are left out together; each alone if all were one group."""
    tree = linkage(squareform(between.d, checks=False), "complete")
    label: Index = fcluster(tree, BLOCK_KM, "distance").astype(np.int64)
    if label.max() == 1:  # nothing would be left to estimate from
        label = np.arange(len(label))
    return [np.flatnonzero(label == block) for block in np.unique(label)]


@dataclass(frozen=True)
class LeftOut:
    """Residuals (T, S) of the stations when each, or each block of them, is left out; unit variances (B, S)."""

    residual: Array
    unit: list[Array]


def left_out(parts: Sequence[Array], systems: Sequence[Array], blocks: Sequence[Index]) -> LeftOut:
    """Observed minus estimated at stations left out by blocks, summed over the bands.

    With Q the kriging precision, the residuals of a block g are inverse(Q[g, g]) (Q x)[g] and their covariance is
    inverse(Q[g, g]) (Dubrule 1983, doi:10.1007/BF01033240).
    """
    residual, unit = np.zeros_like(parts[0]), []
    for part, system in zip(parts, systems, strict=True):
        errors, variance = leave_out(part, system, blocks)
        residual += errors
        unit.append(variance)
    return LeftOut(residual, unit)


def leave_out(part: Array, system: Array, blocks: Sequence[Index]) -> tuple[Array, Array]:
    """Residuals (T, S) and unit variances (S,) of one band."""
    operator, variance = np.empty_like(system), np.empty(len(system))
    for block in blocks:
        inverse = np.linalg.inv(system[np.ix_(block, block)])
        operator[block], variance[block] = inverse @ system[block], np.diag(inverse)
    return part @ operator.T, variance


def hour_scale(left: LeftOut, valid: NDArray[np.bool_], model: SpaceTime) -> Array:
    """Scale of the variance in each hour, (T,): how far its stations are from what the others say of them.

    The mean of residual^2 / variance over the hour's valid stations, smoothed over the hours before (and, unless
    causal, after) with `_SPREAD_MEMORY`, to the power `_SPREAD_POWER`, which draws it to 1.
    """
    square = np.where(valid, left.residual**2 / variance_of(model, left.unit), 0.0)
    total, count = square.sum(axis=1), valid.sum(axis=1).astype(float)
    parts = [_spread_mean(x, model.causal) for x in (total, count)]
    return np.asarray(np.maximum(parts[0] / np.maximum(parts[1], 1e-9), 0.05) ** _SPREAD_POWER)


def _spread_mean(x: Array, causal: bool) -> Array:
    return (_past_mean if causal else _mean)(x[:, None], _SPREAD_MEMORY)[:, 0]
