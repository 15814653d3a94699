"""Scores under conditions: by season, distance and concentration, by predicted spread, and the PIT histogram.

Shapes: N pairs of truth and estimate, T hours, Q points, L quantile levels. Units are those of the data (ug m-3).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import score
from pipeline.score import HIGH, LOW, MEDIAN, Prediction

Label = NDArray[np.str_]

SEASONS = ("DJF", "MAM", "JJA", "SON")

#: Lower edges of the classes of distance to the nearest station that a method sees, km.
DISTANCE_EDGES = (0, 5, 15, 40, 80, 150)

TERCILES = ("low", "middle", "high")

#: Columns of a table by condition.
COLUMNS = (
    "pairs",
    "mae_median",
    "rmse_mean",
    "crps",
    "bias_mean",
    "coverage_50",
    "coverage_90",
    "width_50",
    "width_90",
)

#: Half the width of the central 90 % interval of a normal distribution, in standard deviations.
_Z_90 = 1.6448536269514722


@dataclass(frozen=True)
class Pairs:
    """Pairs that every method estimates.

    Attributes
    ----------
    predictions : method -> (N,).
    truth : (N,) ug m-3.
    hour : (N,) hours since 1970-01-01T00 UTC.
    distance : (N,) km to the nearest station that the methods see.
    """

    predictions: dict[str, Prediction]
    truth: NDArray[np.float64]
    hour: NDArray[np.int64]
    distance: NDArray[np.float64]

    @property
    def day(self) -> NDArray[np.int64]:
        """UTC day of each pair, (N,)."""
        return self.hour // 24


def common_pairs(
    predictions: Mapping[str, Prediction],
    truth: NDArray[np.float64],
    hours: NDArray[np.int64],
    distance: NDArray[np.float64],
) -> Pairs:
    """Pairs with a truth and an estimate by every method.

    Parameters
    ----------
    predictions : method -> (T, Q).
    truth : (T, Q), NaN where missing.
    hours : (T,) since 1970-01-01T00 UTC.
    distance : (Q,) km.
    """
    common = ~np.isnan(truth) & np.all([p.known() for p in predictions.values()], axis=0)
    hour, km = np.broadcast_to(hours[:, None], truth.shape), np.broadcast_to(distance, truth.shape)
    return Pairs({name: p.take(common) for name, p in predictions.items()}, truth[common], hour[common], km[common])


# ---- conditions ----


def season(pairs: Pairs, _: Prediction) -> Label:
    """Season of the pair's UTC month."""
    month = pairs.hour.astype("datetime64[h]").astype("datetime64[M]").astype(np.int64) % 12
    return np.array(SEASONS)[(month + 1) % 12 // 3]


def distance(pairs: Pairs, _: Prediction) -> Label:
    """Class of `DISTANCE_EDGES`."""
    return np.array(distance_names())[np.digitize(pairs.distance, DISTANCE_EDGES) - 1]


def distance_names() -> list[str]:
    """Names of the classes of distance, km."""
    inner = [f"{low}-{high} km" for low, high in itertools.pairwise(DISTANCE_EDGES)]
    return [*inner, f"over {DISTANCE_EDGES[-1]} km"]


def tercile_of_truth(pairs: Pairs, _: Prediction) -> Label:
    """Third of the observed values that the pair is in: the same pairs for every method.

    A calibrated forecast does *not* cover 90 % in each: what is observed high was more often above its interval.
    """
    return _tercile(pairs.truth)


def tercile_of_median(_: Pairs, prediction: Prediction) -> Label:
    """Third of the method's own medians that the pair is in: what a calibrated forecast must cover in each."""
    return _tercile(prediction.quantile(MEDIAN))


def _tercile(values: NDArray[np.floating]) -> Label:
    return np.array(TERCILES)[np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values)]


#: Name of a condition -> the label of each pair, and the order in which labels are shown.
CONDITIONS: dict[str, tuple[Callable[[Pairs, Prediction], Label], tuple[str, ...]]] = {
    "season": (season, SEASONS),
    "distance": (distance, tuple(distance_names())),
    "tercile_of_truth": (tercile_of_truth, TERCILES),
    "tercile_of_median": (tercile_of_median, TERCILES),
}


def by_condition(pairs: Pairs, condition: str) -> pd.DataFrame:
    """Scores of each method where a condition has each of its labels.

    Returns
    -------
    DataFrame
        `COLUMNS`, indexed by the condition's label and the method; labels without a pair are left out.
    """
    labels_of, order = CONDITIONS[condition]
    labels = {name: labels_of(pairs, prediction) for name, prediction in pairs.predictions.items()}
    rows = {
        (label, name): score.scores(prediction.take(labels[name] == label), pairs.truth[labels[name] == label])
        for label in order
        for name, prediction in pairs.predictions.items()
        if (labels[name] == label).any()
    }
    found = pd.DataFrame.from_dict(rows, orient="index")[list(COLUMNS)]
    return found.set_index(pd.MultiIndex.from_tuples(rows, names=[condition, "method"]))


# ---- calibration ----


def pit(pairs: Pairs) -> pd.DataFrame:
    """Share of the truth in each cell between neighbouring quantiles, a row for each method with a distribution.

    The histogram of the probability integral transform (Gneiting, Balabdaoui and Raftery 2007,
    doi:10.1111/j.1467-9868.2007.00587.x) as far as the levels tell it. The first row, ``calibrated``, is the width of
    the cells, which a calibrated method shows.
    """
    found = {name: p for name, p in pairs.predictions.items() if p.quantiles is not None}
    levels = next(iter(found.values())).levels if found else ()
    edges = np.array([0.0, *levels, 1.0])
    rows = {"calibrated": np.diff(edges)} | {name: _cells(p, pairs.truth) for name, p in found.items()}
    names = [f"{low:g}-{high:g}" for low, high in itertools.pairwise(edges)]
    return pd.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("method")


def _cells(prediction: Prediction, truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the truth above each number of quantiles, (L + 1,)."""
    assert prediction.quantiles is not None
    above = (truth > prediction.quantiles).sum(axis=0)
    return np.bincount(above, minlength=len(prediction.levels) + 1) / max(len(truth), 1)


def spread_skill(pairs: Pairs, bins: int = 10) -> pd.DataFrame:
    """Error against predicted spread, in bins of equal count of the width of the method's own 90 % interval.

    Returns
    -------
    DataFrame
        Indexed by method and bin: ``pairs``; ``spread``, root mean square of width / 3.29, the standard deviation of a
        normal distribution with that interval; ``rmse`` of the mean; ``coverage_90``. Spread equals error where the
        stated uncertainty is right (Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1).
    """
    rows = [
        {"method": name} | row
        for name, prediction in pairs.predictions.items()
        if prediction.quantiles is not None
        for row in _spread_rows(prediction, pairs.truth, bins)
    ]
    columns = ["method", "bin", "pairs", "spread", "rmse", "coverage_90"]
    return pd.DataFrame(rows, columns=columns).set_index(["method", "bin"])


def _spread_rows(prediction: Prediction, truth: NDArray[np.float64], bins: int) -> list[dict[str, float | int]]:
    low, high = prediction.quantile(LOW), prediction.quantile(HIGH)
    order = np.argsort(high - low, kind="stable")
    square = (np.asarray(prediction.mean, np.float64) - truth) ** 2
    inside = (truth >= low) & (truth <= high)
    spread = (np.asarray(high, np.float64) - low) / (2.0 * _Z_90)
    return [
        {
            "bin": number,
            "pairs": float(len(chosen)),
            "spread": float(np.sqrt((spread[chosen] ** 2).mean())),
            "rmse": float(np.sqrt(square[chosen].mean())),
            "coverage_90": float(inside[chosen].mean()),
        }
        for number, chosen in enumerate(np.array_split(order, bins), start=1)
        if len(chosen)
    ]
