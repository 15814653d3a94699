"""Fit a space-time kriging model to the stations it is given, by how well they are estimated from one another.

Covariances are chosen for what they are used for: the error at stations left out in blocks about a city across, and
one by one (cross-validation as a criterion: Dubrule 1983, doi:10.1007/BF01033240).

Shapes: T hours, S stations, B bands. Only the stations and hours that are given are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

from model.space_time import (
    Array,
    Band,
    Index,
    LeftOut,
    Separation,
    SpaceTime,
    back,
    bands_of,
    blocks_of,
    filled,
    hour_scale,
    leave_out,
    left_out,
    precision,
    transform,
    variance_of,
)
from model.windows import LEVELS, Observations

#: Every so many hours are judged; prime to 24, so that all hours of the day occur.
STRIDE = 7

#: First size of the simplex along each of a band's unbounded parameters.
_STEP = 0.5

#: Weights of the error in log units at blocks, and of the absolute error one by one, beside that at blocks.
_LOG_WEIGHT, _SINGLE_WEIGHT = 0.5, 0.5


@dataclass(frozen=True)
class _Judged:
    """Hours that are judged: bands (B) of (T, S), their sum, observed values in ug m-3 and where they are valid."""

    parts: list[Array]
    whole: Array
    pm2p5: Array
    valid: NDArray[np.bool_]
    between: Separation
    blocks: tuple[list[Index], list[Index]]


def fit_space_time(observations: Observations, start: SpaceTime, sweeps: int = 1, evaluations: int = 40) -> SpaceTime:
    """Fit covariances band by band, then the scale of the variance and the shape of the distribution.

    Parameters
    ----------
    observations : consecutive training hours of the visible stations.
    start : model to start from; its widths and direction of time are kept.
    sweeps : times that every band is fitted, the others held; 0 leaves the covariances.
    evaluations : of the objective, for each band in a sweep.
    """
    values = transform(observations)
    values = values[int(np.argmax((~np.isnan(values)).any(axis=1))) :]
    between = Separation.of(observations, observations)
    parts = bands_of(filled(values, between, start), start.widths, start.causal)
    blocks = blocks_of(between), [np.array([s]) for s in range(values.shape[1])]
    judged = _judge(parts, ~np.isnan(values), between, blocks)
    bands = list(start.bands)
    for _ in range(sweeps):
        bands = _sweep(judged, bands, evaluations)
    fitted = replace(start, bands=tuple(bands))
    return _with_distribution(fitted, parts, ~np.isnan(values), between, blocks)


def _judge(
    parts: Sequence[Array], valid: NDArray[np.bool_], between: Separation, blocks: tuple[list[Index], list[Index]]
) -> _Judged:
    some = [part[::STRIDE] for part in parts]
    whole = np.sum(some, axis=0)
    return _Judged(some, whole, back(whole), valid[::STRIDE], between, blocks)


# ---- covariances ----


def _sweep(judged: _Judged, bands: Sequence[Band], evaluations: int) -> list[Band]:
    """Fit each band in turn, the residuals of the others held."""
    bands, residuals = list(bands), [_residuals(judged, b, band) for b, band in enumerate(bands)]
    for b, band in enumerate(bands):
        others = np.sum([r for i, r in enumerate(residuals) if i != b], axis=0) if len(bands) > 1 else 0.0
        start = band.to_vector()
        simplex = np.vstack([start, start + _STEP * np.eye(len(start))])
        found = minimize(
            _objective(judged, b, others),
            start,
            method="Nelder-Mead",
            options={"maxfev": evaluations, "initial_simplex": simplex},
        )
        bands[b] = Band.from_vector(found.x)
        residuals[b] = _residuals(judged, b, bands[b])
    return bands


def _residuals(judged: _Judged, b: int, band: Band) -> Array:
    """Residuals (2, T, S) of a band at stations left out in blocks and one by one."""
    system = precision(band, judged.between)
    return np.stack([leave_out(judged.parts[b], system, blocks)[0] for blocks in judged.blocks])


def _objective(judged: _Judged, b: int, others: Array | float) -> Callable[[Array], float]:
    def objective(theta: Array) -> float:
        residual = others + _residuals(judged, b, Band.from_vector(theta))
        error = np.abs(back(judged.whole - residual) - judged.pm2p5)[:, judged.valid].mean(axis=1)
        log_error = np.sqrt((residual[0][judged.valid] ** 2).mean())
        terms = np.log(error[0]) + _LOG_WEIGHT * np.log(log_error) + _SINGLE_WEIGHT * np.log(error[1])
        return float(terms)

    return objective


# ---- distribution ----


def _with_distribution(
    model: SpaceTime,
    parts: Sequence[Array],
    valid: NDArray[np.bool_],
    between: Separation,
    blocks: tuple[list[Index], list[Index]],
) -> SpaceTime:
    """Scale the variance to the residuals of left-out stations, and take their standardised quantiles."""
    systems = [precision(band, between) for band in model.bands]
    left = [left_out(parts, systems, found) for found in blocks]
    model = replace(model, scales=_scales(left, valid))
    hourly = hour_scale(left[0], valid, model)[:, None]
    standard = [(x.residual / np.sqrt(variance_of(model, x.unit) * hourly))[valid] for x in left]
    z = np.quantile(np.concatenate(standard), LEVELS)
    return replace(model, z=tuple(float(level) for level in z))


def _scales(left: Sequence[LeftOut], valid: NDArray[np.bool_]) -> tuple[float, ...]:
    """Non-negative least squares of each station's mean squared residual on its unit variances, relative errors."""
    count = np.maximum(valid.sum(axis=0), 1)
    square = np.concatenate([np.where(valid, x.residual**2, 0.0).sum(axis=0) / count for x in left])
    unit = _design(left)
    known = square > 0
    weights = 1.0 / np.maximum(square[known], np.median(square[known]) / 4.0)
    return tuple(float(c) for c in nnls(unit[known] * weights[:, None], square[known] * weights)[0])


def _design(left: Sequence[LeftOut]) -> Array:
    """Unit variances of the bands and a constant, a row for each left-out station (N, B + 1)."""
    unit = np.concatenate([np.stack(x.unit) for x in left], axis=1).T
    return np.column_stack([unit, np.ones(len(unit))])
