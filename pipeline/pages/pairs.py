"""Pairs of estimate and observation at withheld stations that a run keeps for its report, in bounded size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.evaluation import strata
from pipeline.evaluation.strata import Pairs
from pipeline.score import Prediction

#: Pairs that a run keeps as they are, over all its months.
SAMPLE = 20_000


@dataclass(frozen=True)
class Kept:
    """What is kept of one month.

    Attributes
    ----------
    cells : pairs in each cell between neighbouring quantiles, a row for each method that has them; of all pairs.
    sample : some of the pairs, drawn at random.
    stations : withheld stations.
    """

    cells: pd.DataFrame
    sample: Pairs
    stations: int


def keep(
    predictions: Mapping[str, Prediction],
    truth: NDArray[np.float64],
    hours: NDArray[np.int64],
    distance: NDArray[np.float64],
    limit: int = SAMPLE,
    seed: int = 0,
) -> Kept:
    """Count the pairs that all methods estimate into the cells between quantiles, and keep at most `limit` as they are.

    Parameters
    ----------
    predictions : method -> (T, Q).
    truth : (T, Q) observed, ug m-3, NaN where missing.
    hours : (T,) since 1970-01-01T00 UTC.
    distance : (Q,) km from each withheld station to the nearest that the methods see.
    limit : pairs kept; a run of several months gives each its part of `SAMPLE`.
    """
    every = strata.common_pairs(predictions, truth, hours, distance)
    cells = strata.pit(every).drop(index="calibrated") * len(every.truth)
    return Kept(cells.round().astype(np.int64), drawn(every, limit, seed), truth.shape[1])


def drawn(pairs: Pairs, limit: int, seed: int = 0) -> Pairs:
    """At most `limit` of the pairs, drawn without replacement, in their order."""
    count = len(pairs.truth)
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(seed).choice(count, min(limit, count), replace=False)] = True
    kept = {name: prediction.take(chosen) for name, prediction in pairs.predictions.items()}
    return Pairs(kept, pairs.truth[chosen], pairs.hour[chosen], pairs.distance[chosen])


def calibration(months: Sequence[Kept]) -> pd.DataFrame:
    """Share of the pairs of all months in each cell between neighbouring quantiles, as `strata.pit` has it."""
    counts = pd.concat([month.cells for month in months]).groupby(level=0, sort=False).sum()
    calibrated = strata.pit(months[0].sample).loc[["calibrated"]]
    return pd.concat([calibrated, counts.div(counts.sum(axis=1), axis=0)]).rename_axis("method")


def together(months: Sequence[Kept]) -> Pairs:
    """Samples of all months as one."""
    samples = [month.sample for month in months]
    merged = {name: _joined([s.predictions[name] for s in samples]) for name in samples[0].predictions}
    truth, hour, distance = (
        np.concatenate([getattr(s, name) for s in samples]) for name in ("truth", "hour", "distance")
    )
    return Pairs(merged, truth, hour, distance)


def _joined(parts: Sequence[Prediction]) -> Prediction:
    quantiles = [part.quantiles for part in parts if part.quantiles is not None]
    joined = np.concatenate(quantiles, axis=-1) if quantiles else None
    return Prediction(np.concatenate([part.mean for part in parts]), joined, parts[0].levels)
