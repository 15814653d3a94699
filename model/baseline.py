"""Estimators that AQ-Net must beat: the hourly mean, the nearest station, inverse distance, kriging, interpolation.

Each has the signature ``estimate(observations, points) -> Estimate`` and uses the PM2.5 of the estimated hour alone.
Shapes: T hours, S stations, Q points, K neighbours, L quantile levels. Distances in km, heights in m.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import gridpp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.sparse import csr_array
from scipy.special import ndtri

from model.geometry import TERRAIN_FACTOR, distance_matrix, terrain_distance
from model.windows import LEVELS, POLLUTANTS, Estimate, Observations, Points

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Estimator = Callable[[Observations, Points], Estimate]

#: Edges of the lag classes of the empirical variogram, km.
LAG_EDGES = (0, 2, 4, 6, 8, 10, 15, 20, 30, 40, 50, 65, 80, 100, 125, 150, 175, 200, 250, 300)

#: Covariance added to the diagonal, as a part of the sill, so that two stations at one place stay solvable.
_JITTER = 1e-9

#: Kriging systems solved at once: 48 x 48 float64 each, 19 MB in all.
_BATCH = 1024

#: Closest that inverse distance lets a station be, km; a point at a station takes its value.
_CLOSEST = 1e-6


@dataclass(frozen=True)
class Variogram:
    """Nested exponential variogram: nugget + sum of sill (1 - exp(-d / range)) over two structures.

    Attributes
    ----------
    nugget : variance of an observation about the field (instrument and street scale), in log units squared.
    sills : partial sills of the two structures, same unit.
    ranges : e-folding distances of the two structures, km.
    terrain_factor : km of distance a km of height counts for, see `model.geometry.terrain_distance`.
    """

    nugget: float
    sills: tuple[float, float]
    ranges: tuple[float, float]
    terrain_factor: float = 0.0

    def covariance(self, d: Array) -> Array:
        """Covariance of the field at two places `d` km apart; the nugget is not part of it."""
        return self.sills[0] * np.exp(-d / self.ranges[0]) + self.sills[1] * np.exp(-d / self.ranges[1])

    def semivariance(self, d: Array) -> Array:
        """Half the expected squared difference of two observations `d` km apart."""
        return self.sill - self.covariance(d)

    @property
    def sill(self) -> float:
        """Variance of an observation: nugget and partial sills."""
        return self.nugget + sum(self.sills)


#: `fit_variogram` on the visible stations and training hours of CNEMC 2019, by plain and by terrain distance.
CNEMC_2019 = Variogram(0.04834, (0.04872, 0.5408), (13.28, 612.4))
CNEMC_2019_TERRAIN = Variogram(0.05507, (0.05500, 1.747), (37.60, 2752.0), TERRAIN_FACTOR)


# ---- variogram ----


def fit_variogram(
    observations: Observations, terrain_factor: float = 0.0, lag_edges: tuple[float, ...] = LAG_EDGES
) -> Variogram:
    """Fit the variogram of log(PM2.5 + 1), pooled over hours, by weighted least squares.

    Differences are taken within an hour, so what all stations share drops out. Weights are pairs / semivariance^2
    (Cressie 1985, doi:10.1007/BF01032109).

    Parameters
    ----------
    observations : the visible stations' training hours.
    terrain_factor : 0 for plain distance.
    lag_edges : ascending edges of the lag classes, km.

    Raises
    ------
    ValueError
        With fewer than five filled lag classes: the five parameters need as many.
    """
    lag, semivariance, pairs = empirical_variogram(observations, terrain_factor, lag_edges)
    if len(lag) < 5:
        raise ValueError(f"a variogram needs pairs in 5 lag classes up to {lag_edges[-1]} km; found {len(lag)}")

    def misfit(theta: Array) -> Array:
        return np.sqrt(pairs) * (_variogram(theta, terrain_factor).semivariance(lag) / semivariance - 1.0)

    top = semivariance.max()
    start = np.log([0.2 * top, 0.3 * top, 0.5 * top, 0.1 * lag[-1], lag[-1]])
    bounds = np.log([1e-6 * top] * 3 + [lag[0]] * 2), np.log([10.0 * top] * 3 + [10.0 * lag[-1]] * 2)
    return _variogram(least_squares(misfit, start, bounds=bounds).x, terrain_factor)


def empirical_variogram(
    observations: Observations, terrain_factor: float, lag_edges: tuple[float, ...]
) -> tuple[Array, Array, Array]:
    """Mean lag (km), semivariance of log(PM2.5 + 1) and number of pair-hours of each lag class with a difference.

    In a record of an hour or two all pairs of a class may agree, which tells nothing of the field.
    """
    squares, hours = _pair_differences(np.log1p(_pm2p5(observations)))
    d, pair = _distance(observations, observations, terrain_factor), np.triu_indices(len(hours), 1)
    lag_class, classes = np.digitize(d[pair], lag_edges), len(lag_edges)

    def totals(pairwise: Array) -> Array:
        """Sums over the pairs of each lag class; below the first edge and beyond the last is dropped."""
        return np.bincount(lag_class, pairwise[pair], classes + 1)[1:classes].astype(float)

    count, summed = totals(hours), totals(squares / 2.0)
    filled = summed > 1e-9 * count  # what rounding leaves of equal values
    lag, semivariance = (total[filled] / count[filled] for total in (totals(hours * d), summed))
    return lag, semivariance, count[filled]


def _pair_differences(values: Array) -> tuple[Array, Array]:
    """Sum of squared differences of each pair of stations over the hours both are valid, and how many; (S, S) each."""
    valid = (~np.isnan(values)).astype(float)
    values = np.nan_to_num(values - np.nanmean(values))  # centred for the digits that the subtraction below takes
    squares = (values**2).T @ valid
    return squares + squares.T - 2.0 * values.T @ values, valid.T @ valid


def _variogram(theta: Array, terrain_factor: float) -> Variogram:
    """Variogram of the logarithms of nugget, two sills and two ranges."""
    nugget, sill_a, sill_b, range_a, range_b = (float(p) for p in np.exp(theta))
    return Variogram(nugget, (sill_a, sill_b), (range_a, range_b), terrain_factor)


# ---- estimators ----


def hourly_mean(observations: Observations, points: Points) -> Estimate:
    """Mean of the hour's valid stations, everywhere."""
    values = _pm2p5(observations)
    valid = ~np.isnan(values)
    count = valid.sum(axis=1)
    mean = np.where(count > 0, np.nansum(values, axis=1) / np.maximum(count, 1), np.nan)
    return _deterministic(np.repeat(mean[:, None], len(points.lon), axis=1))


def nearest(observations: Observations, points: Points) -> Estimate:
    """Value of the nearest valid station."""
    return idw(observations, points, k=1)


def idw(observations: Observations, points: Points, k: int = 8, power: float = 1.0) -> Estimate:
    """Inverse distance weighting of the k nearest valid stations: weights proportional to distance^-power.

    Shepard 1968, doi:10.1145/800186.810616.
    """
    d = _distance(points, observations)

    def weigh(chosen: Index) -> Array:
        raw = np.maximum(np.take_along_axis(d, chosen, axis=1), _CLOSEST) ** -power
        return raw / raw.sum(axis=1, keepdims=True)

    values = _pm2p5(observations)
    mean = np.full((len(values), len(points.lon)), np.nan)
    for hours, chosen in _neighbourhoods(values, d, k):
        mean[hours] = _apply(weigh(chosen), chosen, values[hours])
    return _deterministic(mean)


def log_kriging(observations: Observations, points: Points, variogram: Variogram = CNEMC_2019, k: int = 48) -> Estimate:
    """Ordinary kriging of log(PM2.5 + 1) from the k nearest valid stations, as a lognormal distribution.

    With m and s^2 the kriged logarithm and the variance of an observation about it, quantiles are exp(m + z s) - 1
    and the mean is exp(m + s^2 / 2) - 1, both not below 0 (Cressie 1993, Statistics for Spatial Data, sec. 3.2.2; the
    Lagrange term of the unbiased form is left out).
    """
    m, s2 = krige(
        np.log1p(_pm2p5(observations)),
        _distance(observations, observations, variogram.terrain_factor),
        _distance(points, observations, variogram.terrain_factor),
        variogram,
        k,
    )
    return _lognormal(m, s2)


def krige(values: Array, between: Array, towards: Array, variogram: Variogram, k: int) -> tuple[Array, Array]:
    """Ordinary kriging of an observation in a moving neighbourhood (Cressie 1993, eqs. 3.2.12 to 3.2.16).

    Parameters
    ----------
    values : (T, S), NaN where missing.
    between : (S, S) km, stations to stations.
    towards : (Q, S) km, points to stations.
    variogram : of `values`.
    k : valid stations used a point.

    Returns
    -------
    estimate, variance : (T, Q); the variance is that of an observation, nugget included. NaN in an hour without data.
    """
    weights = _KrigingWeights(variogram, between, towards)
    estimate, variance = np.full((2, len(values), len(towards)), np.nan)
    for hours, chosen in _neighbourhoods(values, towards, k):
        weight, variance[hours] = weights(chosen)
        estimate[hours] = _apply(weight, chosen, values[hours])
    return estimate, variance


def gridpp_oi(
    observations: Observations,
    points: Points,
    smooth: float = 120.0,
    length: float = 70.0,
    height: float = 300.0,
    noise: float = 0.2,
    max_points: int = 50,
) -> Estimate:
    """Optimal interpolation of log(PM2.5 + 1) by gridpp (Nipen et al. 2020, doi:10.1175/BAMS-D-18-0237.1).

    The background is a Gaussian smooth of the same hour's stations; the defaults of the five parameters were tuned
    on stations withheld from the visible ones of CNEMC 2019, in the validation hours.

    Parameters
    ----------
    smooth : standard deviation of the Gaussian that makes the background, km.
    length, height : scales of gridpp's Barnes structure function, horizontal in km and vertical in m.
    noise : error variance of an observation over that of the background.
    max_points : most observations used a point.
    """
    values = np.log1p(_pm2p5(observations))
    at_stations = _smooth(values, _distance(observations, observations), smooth)
    analysis = _smooth(values, _distance(points, observations), smooth)
    interpolate = _gridpp(observations, points, length, height, noise, max_points)
    for hour in range(len(values)):
        valid = np.flatnonzero(~np.isnan(values[hour]))
        if len(valid):
            analysis[hour] = interpolate(analysis[hour], valid, values[hour, valid], at_stations[hour, valid])
    return _deterministic(np.maximum(np.expm1(analysis), 0.0))


METHODS: dict[str, Estimator] = {
    "hourly_mean": hourly_mean,
    "nearest": nearest,
    "idw_k8_p1": partial(idw, k=8, power=1.0),
    "idw_k20_p2": partial(idw, k=20, power=2.0),
    "log_kriging": log_kriging,
    "log_kriging_terrain": partial(log_kriging, variogram=CNEMC_2019_TERRAIN),
    "gridpp_oi": gridpp_oi,
}


# ---- kriging ----


class _KrigingWeights:
    """Weights (Q, K) and variance (Q,) of each point's neighbours; only points whose neighbours changed are solved."""

    def __init__(self, variogram: Variogram, between: Array, towards: Array) -> None:
        self.sill = variogram.sill
        noise = variogram.nugget + _JITTER * variogram.sill
        self.between = variogram.covariance(between) + noise * np.eye(len(between))  # (S, S)
        self.towards = variogram.covariance(towards)  # (Q, S)
        self.chosen: Index = np.empty((len(towards), 0), np.int64)
        self.weights, self.variance = np.empty(self.chosen.shape), np.empty(len(towards))

    def __call__(self, chosen: Index) -> tuple[Array, Array]:
        if chosen.shape != self.chosen.shape:
            self.chosen, self.weights = np.full_like(chosen, -1), np.empty(chosen.shape)
        changed = np.flatnonzero((chosen != self.chosen).any(axis=1))
        for start in range(0, len(changed), _BATCH):
            rows = changed[start : start + _BATCH]
            self.weights[rows], self.variance[rows] = self._solve(rows, chosen[rows])
        self.chosen = chosen
        return self.weights, self.variance

    def _solve(self, rows: Index, chosen: Index) -> tuple[Array, Array]:
        """Solve C w + mu 1 = c, sum(w) = 1 by elimination of mu; variance = sill - w c - mu."""
        c = np.take_along_axis(self.towards[rows], chosen, axis=1)  # (R, K)
        matrix = self.between[chosen[:, :, None], chosen[:, None, :]]  # (R, K, K)
        x_c, x_1 = np.moveaxis(np.linalg.solve(matrix, np.stack([c, np.ones_like(c)], axis=-1)), -1, 0)
        mu = (x_c.sum(axis=1) - 1.0) / x_1.sum(axis=1)
        weights = x_c - mu[:, None] * x_1
        return weights, self.sill - (weights * c).sum(axis=1) - mu


# ---- optimal interpolation ----


def _smooth(values: Array, towards: Array, length: float) -> Array:
    """Gaussian-weighted mean (T, Q) of each hour's valid stations; NaN in an hour without any."""
    weights = np.exp(-0.5 * (towards / length) ** 2) + 1e-12  # far from every station: the hour's mean
    with np.errstate(invalid="ignore"):
        return (np.nan_to_num(values) @ weights.T) / ((~np.isnan(values)).astype(float) @ weights.T)


def _gridpp(
    observations: Observations, points: Points, length: float, height: float, noise: float, max_points: int
) -> Callable[[Array, Index, Array, Array], Array]:
    """One hour's interpolation: (background (Q,), valid stations, their values, background there) -> analysis (Q,)."""
    gridpp.set_omp_threads(2)
    structure = gridpp.BarnesStructure(1000.0 * length, height)
    targets = gridpp.Points(points.lat, points.lon, points.elevation)

    def interpolate(background: Array, valid: Index, values: Array, at_stations: Array) -> Array:
        stations = gridpp.Points(observations.lat[valid], observations.lon[valid], observations.elevation[valid])
        ratios = np.full(len(valid), noise)
        return gridpp.optimal_interpolation(
            targets, background, stations, values, ratios, at_stations, structure, max_points
        )

    return interpolate


# ---- parts ----


def _pm2p5(observations: Observations) -> Array:
    """PM2.5, (T, S) float64."""
    return np.asarray(observations.values[POLLUTANTS.index("pm2p5")], np.float64)


def _distance(a: Observations | Points, b: Observations | Points, terrain_factor: float = 0.0) -> Array:
    """Terrain distance from the places of `a` to those of `b`, (A, B) km."""
    dz = np.asarray(a.elevation, np.float64)[:, None] - np.asarray(b.elevation, np.float64)[None]
    d = distance_matrix(a.lon, a.lat, b.lon, b.lat)
    return terrain_distance(d, dz, terrain_factor) if terrain_factor else d


def _neighbourhoods(values: Array, towards: Array, k: int) -> Iterator[tuple[Index, Index]]:
    """Hours that share their valid stations, and the k nearest valid stations (Q, K) of each point in them."""
    patterns, first, which = np.unique(~np.isnan(values), axis=0, return_index=True, return_inverse=True)
    for pattern in np.argsort(first):
        stations = np.flatnonzero(patterns[pattern])
        if len(stations):
            yield np.flatnonzero(which == pattern), _nearest_of(stations, towards, k)


def _nearest_of(stations: Index, towards: Array, k: int) -> Index:
    """Find the k nearest of some stations to each point: (Q, min(k, len(stations))), by ascending station index."""
    if len(stations) <= k:
        return np.tile(stations, (len(towards), 1))
    return np.sort(stations[np.argpartition(towards[:, stations], k - 1, axis=1)[:, :k]], axis=1)


def _apply(weights: Array, chosen: Index, values: Array) -> Array:
    """Weighted sums (T, Q) of the chosen stations' values (T, S)."""
    start = np.arange(0, weights.size + 1, weights.shape[1])
    rows = csr_array((weights.ravel(), chosen.ravel(), start), (len(chosen), values.shape[1]))
    return np.asarray(rows @ np.nan_to_num(values).T).T


def _deterministic(mean: Array) -> Estimate:
    return Estimate(mean.astype(np.float32), None)


def _lognormal(m: Array, s2: Array) -> Estimate:
    """Distribution of exp(Y) - 1, not below 0, for normal Y of mean `m` and variance `s2` (T, Q)."""
    s2 = np.maximum(s2, 0.0)
    z = ndtri(np.array(LEVELS))[:, None, None]
    quantiles = np.maximum(np.expm1(m + z * np.sqrt(s2)), 0.0)
    return Estimate(np.maximum(np.expm1(m + s2 / 2.0), 0.0).astype(np.float32), quantiles.astype(np.float32))
