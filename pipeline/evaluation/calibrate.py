"""Conformal calibration from folds: the width of intervals, from stations that each network of a fold never saw.

Shapes: T hours, S stations, L quantile levels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model import calibration
from model.windows import Float, Observations
from pipeline.evaluation import folds
from pipeline.evaluation.folds import Method, Pooled, Protocol

log = logging.getLogger("aqnet")

#: Both ways of leaving out count: single stations tell of short distances, whole cities of long ones.
LEAVE: tuple[Literal["city", "station"], ...] = ("city", "station")


def calibrate(
    record: Observations,
    codes: NDArray[np.str_],
    cities: NDArray[np.str_],
    work: Path,
    number: int,
    networks: Mapping[str, Method],
) -> tuple[float, ...]:
    """Factors of the width (`model.calibration`) for networks trained as `networks` are, on such a record.

    Parameters
    ----------
    record : what the network to calibrate was trained on, and nothing else.
    codes, cities : (S,).
    work : folder of finished folds, see `pipeline.evaluation.folds.run`.
    number : of folds of each protocol.
    networks : name -> how it is trained for a fold.
    """
    protocols = [Protocol(leave, folds=number) for leave in LEAVE]
    pooled = [folds.run(record, codes, cities, protocol, networks, work) for protocol in protocols]
    widen = fit(pair for part in pooled for pair in _pairs(part, networks, np.ones(part.truth.shape[1], bool)))
    log.info("width of intervals by distance: %s", ", ".join(map(str, widen)))
    return widen


def cross_calibrated(pooled: Pooled, names: Iterable[str]) -> Pooled:
    """Widen the estimates of `names`, where they have quantiles, each fold's by what the other folds ask for."""
    found = dict(pooled.predictions)
    old = {name: q for name in names if (q := found[name].quantiles) is not None}
    new = {name: quantiles.copy() for name, quantiles in old.items()}
    for number in np.unique(pooled.fold) if old else ():
        own = pooled.fold == number
        factor = calibration.factor_at(pooled.distance[own], fit(_pairs(pooled, old, ~own)))
        for name, quantiles in old.items():
            new[name][:, :, own] = calibration.widened(quantiles[:, :, own], factor)
    found |= {name: replace(found[name], quantiles=quantiles) for name, quantiles in new.items()}
    return replace(pooled, predictions=found)


def fit(pairs: Iterable[tuple[Float, NDArray[np.float32], Float]]) -> tuple[float, ...]:
    """`model.calibration.fit` of truths (N,), quantiles (L, N) and distances (N,), those of all parts together."""
    truth, quantiles, km = zip(*pairs, strict=True)
    return calibration.fit(np.concatenate(truth), np.concatenate(quantiles, axis=1), np.concatenate(km))


def _pairs(
    pooled: Pooled, names: Iterable[str], stations: NDArray[np.bool_]
) -> Iterator[tuple[Float, NDArray[np.float32], Float]]:
    """Pairs of each of `names` at some stations (S,) where both are known."""
    km = np.broadcast_to(pooled.distance, pooled.truth.shape)
    for name in names:
        estimate = pooled.predictions[name]
        known = ~np.isnan(pooled.truth) & estimate.known() & stations
        taken = estimate.take(known).quantiles
        if taken is not None:
            yield pooled.truth[known], taken, km[known]
