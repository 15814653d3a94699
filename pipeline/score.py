"""How good an estimate is: metrics on pairs, the day-block bootstrap, tables, and the check before a release.

Tables by season, distance and concentration are in `strata`, whole reports in `assess` (`pipeline.evaluation`).

Every metric leaves out pairs in which a value is missing. Which functional of a distribution a metric is given, and
why, is in docs/explanation/scores.md. Units are those of the data (ug m-3).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipeline.contract import HOUR, check_cube
from pipeline.errors import ProductError

log = logging.getLogger("aqnet")

Float = NDArray[np.floating]
Statistic = Literal["mae_median", "rmse_mean", "crps"]

#: Ends of the central 90 % interval.
LOW, MEDIAN, HIGH = 0.05, 0.5, 0.95

#: Ends of the central 50 % interval, and the widest gap between levels across which a quantile is interpolated.
QUARTERS, _GAP = (0.25, 0.75), 0.2

#: Variables of a cube that must not be missing on land.
CONCENTRATIONS = ("pm2p5", "pm2p5_p05", "pm2p5_p50", "pm2p5_p95")

#: Highest hourly PM2.5 that a field may hold, ug m-3; the highest value of the CNEMC record of 2019 is 2,273.
HIGHEST = 2000.0


@dataclass(frozen=True)
class Prediction:
    """What a method says about N pairs, cells or hours; `quantiles` has `levels` in front of the shape of `mean`."""

    mean: Float
    quantiles: Float | None = None
    levels: tuple[float, ...] = ()

    def quantile(self, level: float) -> Float:
        """Quantile at a level, linear between two of `levels`; the mean of a method without a distribution."""
        if self.quantiles is None:
            return self.mean
        if level in self.levels:
            return self.quantiles[self.levels.index(level)]
        above = int(np.searchsorted(self.levels, level))
        low, high = self.levels[above - 1], self.levels[above]
        part = (level - low) / (high - low)
        return (1.0 - part) * self.quantiles[above - 1] + part * self.quantiles[above]

    def resolves(self, level: float) -> bool:
        """Whether `quantile` at a level is known well: it is one of `levels`, or between two that are near."""
        if self.quantiles is None:
            return False
        above = int(np.searchsorted(self.levels, level))
        inside = 0 < above < len(self.levels)
        return level in self.levels or (inside and self.levels[above] - self.levels[above - 1] <= _GAP)

    def take(self, where: NDArray[np.bool_]) -> Prediction:
        """Select by a mask of the shape of `mean`; the result has one dimension."""
        quantiles = None if self.quantiles is None else self.quantiles[:, where]
        return Prediction(self.mean[where], quantiles, self.levels)

    def columns(self, some: slice) -> Prediction:
        """Select along the last dimension."""
        quantiles = None if self.quantiles is None else self.quantiles[..., some]
        return Prediction(self.mean[..., some], quantiles, self.levels)

    def known(self) -> NDArray[np.bool_]:
        """Where the method gives an estimate."""
        known = ~np.isnan(self.mean)
        return known if self.quantiles is None else known & ~np.isnan(self.quantiles).any(axis=0)


@dataclass(frozen=True)
class Difference:
    """A difference of two methods' statistic and its 95 % interval."""

    value: float
    low: float
    high: float


# ---- metrics ----


def mae(estimate: Float, truth: Float) -> float:
    """Mean absolute error."""
    return float(np.abs(_errors(estimate, truth)).mean())


def rmse(estimate: Float, truth: Float) -> float:
    """Root mean squared error."""
    return float(np.sqrt((_errors(estimate, truth) ** 2).mean()))


def bias(estimate: Float, truth: Float) -> float:
    """Mean of estimate minus truth."""
    return float(_errors(estimate, truth).mean())


def r2(estimate: Float, truth: Float) -> float:
    """Coefficient of determination 1 - SSE / SST about the mean of the truth; it may be negative."""
    e = _errors(estimate, truth)
    y = np.asarray(truth, np.float64)[~np.isnan(estimate - truth)]
    return float(1.0 - (e**2).sum() / ((y - y.mean()) ** 2).sum())


def mnmb(estimate: Float, truth: Float) -> float:
    """Modified normalised mean bias ``2/N sum (f - o) / (f + o)``, -2 to 2.

    Eskes et al. 2015 (MACC and CAMS validation), doi:10.5194/gmd-8-3523-2015. A pair of two zeros counts as no error.
    """
    return float(_relative_errors(estimate, truth).mean())


def fge(estimate: Float, truth: Float) -> float:
    """Fractional gross error ``2/N sum |f - o| / (f + o)``, 0 to 2; source as `mnmb`."""
    return float(np.abs(_relative_errors(estimate, truth)).mean())


def _relative_errors(estimate: Float, truth: Float) -> NDArray[np.float64]:
    f, o = np.asarray(estimate, np.float64), np.asarray(truth, np.float64)
    known = ~np.isnan(f + o)
    total = (f + o)[known]
    return 2.0 * (f - o)[known] / np.where(total > 0, total, 1.0)


def crps(quantiles: Float, truth: Float, levels: Sequence[float]) -> float:
    """Mean of `crps_of_pairs` over the pairs that have one."""
    return float(np.nanmean(crps_of_pairs(quantiles, truth, levels)))


def crps_of_pairs(quantiles: Float, truth: Float, levels: Sequence[float]) -> NDArray[np.float64]:
    """Continuous ranked probability score from quantiles at levels symmetric about 0.5.

    ``2 sum_l w_l (1{y < q_l} - l)(q_l - y)``: the integral of the quantile score over all levels (Gneiting and Ranjan
    2011, doi:10.1198/jbes.2010.08110, eq. 7) with each level standing for the levels nearest to it, ``sum_l w_l = 1``.
    A distribution of one point scores its absolute error.

    Parameters
    ----------
    quantiles : (L, ...) at `levels`, ascending.
    truth : (...).

    Returns
    -------
    (...), NaN where a value is missing.
    """
    total = np.zeros(np.shape(truth))
    for tau, weight, quantile in zip(levels, level_weights(levels), quantiles, strict=True):
        excess = np.asarray(quantile, np.float64) - truth
        total += 2.0 * weight * ((excess > 0) - tau) * excess
    return total


def level_weights(levels: Sequence[float]) -> NDArray[np.float64]:
    """Length of the part of [0, 1] that is nearest to each level, (L,); sums to one."""
    inner = np.asarray(levels, np.float64)
    return np.diff(np.concatenate([[0.0], (inner[1:] + inner[:-1]) / 2.0, [1.0]]))


def coverage(low: Float, high: Float, truth: Float) -> float:
    """Share of the truth inside [low, high]."""
    known = ~np.isnan(low + high + truth)
    return float(((truth >= low) & (truth <= high))[known].mean())


def width(low: Float, high: Float) -> float:
    """Mean of high minus low."""
    return float(np.nanmean(np.asarray(high, np.float64) - low))


def _errors(estimate: Float, truth: Float) -> NDArray[np.float64]:
    errors = np.asarray(estimate, np.float64) - np.asarray(truth, np.float64)
    return errors[~np.isnan(errors)]


# ---- tables ----


def scores(prediction: Prediction, truth: Float) -> dict[str, float]:
    """All metrics of one method, each with the functional it is minimised by, and with the other one too."""
    median, mean = prediction.quantile(MEDIAN), prediction.mean
    row = {"mae_median": mae(median, truth), "rmse_mean": rmse(mean, truth), "r2_mean": r2(mean, truth)}
    row |= {"bias_mean": bias(mean, truth)} | _distribution_scores(prediction, truth)
    row |= {"mae_mean": mae(mean, truth), "rmse_median": rmse(median, truth), "r2_median": r2(median, truth)}
    row |= {"mnmb_median": mnmb(median, truth), "fge_median": fge(median, truth)}
    return row | {"pairs": float((prediction.known() & ~np.isnan(truth)).sum())}


def _distribution_scores(prediction: Prediction, truth: Float) -> dict[str, float]:
    """CRPS, and share of the truth in and width of the central 90 % and 50 % intervals that the levels resolve."""
    row = {"crps": float(np.nanmean(pair_scores(prediction, truth, "crps")))}
    for name, (low, high) in {"90": (LOW, HIGH), "50": QUARTERS}.items():
        known = prediction.resolves(low) and prediction.resolves(high)
        ends = (prediction.quantile(low), prediction.quantile(high)) if known else None
        row[f"coverage_{name}"] = coverage(*ends, truth) if ends else np.nan
        row[f"width_{name}"] = width(*ends) if ends else np.nan
    return row


def pair_scores(prediction: Prediction, truth: Float, statistic: Statistic) -> NDArray[np.float64]:
    """What a statistic is the mean of, pair by pair: |error of the median|, error of the mean squared, or CRPS."""
    if statistic == "rmse_mean":
        return (np.asarray(prediction.mean, np.float64) - truth) ** 2
    if statistic == "crps" and prediction.quantiles is not None:
        return crps_of_pairs(prediction.quantiles, truth, prediction.levels)
    return np.abs(np.asarray(prediction.quantile(MEDIAN), np.float64) - truth)


def table(predictions: Mapping[str, Prediction], truth: Float) -> pd.DataFrame:
    """Scores of several methods on the pairs that all of them estimate, one row a method.

    Raises
    ------
    ValueError
        When there is no such pair.
    """
    common = ~np.isnan(truth)
    for name, prediction in predictions.items():
        missing = int((common & ~prediction.known()).sum())
        if missing:
            log.warning("%s: no estimate for %d pairs; no method is scored on them", name, missing)
        common &= prediction.known()
    if not common.any():
        raise ValueError(f"no pair of truth and estimate that all of {', '.join(predictions)} have")
    rows = {name: scores(prediction.take(common), truth[common]) for name, prediction in predictions.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Turn a table into JSON's terms, a dictionary a row, named index included; NaN becomes None."""
    named = rows.reset_index() if rows.index.name else rows
    return [
        {str(key): None if isinstance(value, float) and np.isnan(value) else value for key, value in row.items()}
        for row in named.to_dict("records")
    ]


def markdown(rows: pd.DataFrame, digits: int = 2) -> str:
    """Render a table as Markdown, the index first; shares (R2, coverage) get one more digit, whole numbers none."""
    shown = rows.reset_index()
    lines = ["| " + " | ".join(map(str, shown.columns)) + " |", "|---" * len(shown.columns) + "|"]
    for row in shown.itertuples(index=False):
        cells = [_cell(value, str(name), digits) for value, name in zip(row, shown.columns, strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: object, name: str, digits: int) -> str:
    if not isinstance(value, float):
        return str(value)
    if np.isnan(value):
        return "-"
    places = 0 if name == "pairs" else digits + name.startswith(("r2", "coverage", "mnmb", "fge", "skill"))
    return f"{value:.{places}f}"


# ---- bootstrap ----


def day_block_bootstrap(
    error_a: Float,
    error_b: Float,
    day: NDArray[np.int64],
    statistic: Literal["mae", "rmse"],
    n: int = 1000,
    seed: int = 0,
) -> Difference:
    """Difference of a statistic of two methods on the same pairs, a minus b, with its 95 % percentile interval.

    See `resampled`. Below zero, method a is the better.

    Parameters
    ----------
    error_a, error_b : (N,) errors of the pairs, none missing.
    day : (N,) day of each pair.
    n : resamples.
    """
    power = 1 if statistic == "mae" else 2
    return difference(*resampled([np.abs(error_a) ** power, np.abs(error_b) ** power], day, n, seed) ** (1 / power))


def resampled(pairs: Sequence[Float], day: NDArray[np.int64], n: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """Means of each of M series over the pairs, then over those of n resamples of days, (M, 1 + n).

    Whole days are drawn with replacement, since the errors of a day's hours and stations are not independent (block
    bootstrap, Kuensch 1989, doi:10.1214/aos/1176347265). All series get the same days.

    Parameters
    ----------
    pairs : M of (N,) values of the pairs, none missing.
    day : (N,) day of each pair.
    """
    days, of_day = np.unique(day, return_inverse=True)
    sums = np.stack([np.bincount(of_day, values) for values in pairs])  # (M, D)
    draws = np.random.default_rng(seed).multinomial(len(days), np.full(len(days), 1.0 / len(days)), n)
    draws = np.vstack([np.ones(len(days), np.int64), draws])  # (1 + n, D)
    return np.asarray(sums @ draws.T / (draws @ np.bincount(of_day)))


def difference(a: Float, b: Float, relative: bool = False) -> Difference:
    """Difference a minus b, in per cent of b if relative, of a statistic (1 + n,) and its resamples after the first."""
    found = 100.0 * (a / b - 1.0) if relative else a - b
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return Difference(float(found[0]), float(low), float(high))


# ---- release ----


@dataclass(frozen=True)
class Validation:
    """What `validate` found in a cube that passed: hours, hours without observations, share of land cells missing."""

    hours: int
    hours_without_observations: int
    missing_land: float
    highest: float


def validate(
    blocks: Iterable[xr.Dataset], land: NDArray[np.bool_], max_missing: float = 0.0, where: str = "candidate"
) -> Validation:
    """Check a cube, hour block by hour block, before it is published.

    Parameters
    ----------
    blocks : consecutive hour blocks of one cube, see `pipeline.contract.check_cube`.
    land : (Y, X).
    max_missing : share of land cells that may be missing in the hours with observations.

    Raises
    ------
    ProductError
        Naming the variable, what was expected and what was found.
    """
    parts: list[Validation] = []
    expected: np.datetime64 | None = None
    for block in blocks:
        check_cube(block, where)
        first = block["time"].values[0]
        if expected is not None and first != expected:
            raise ProductError(f"{where}: coordinate 'time' must hold every hour; {expected} is followed by {first}")
        expected = block["time"].values[-1] + HOUR
        parts.append(_validate_block(block, land, max_missing, where))
    if not parts:
        raise ProductError(f"{where}: expected hours; found none")
    return _together(parts)


def _validate_block(block: xr.Dataset, land: NDArray[np.bool_], max_missing: float, where: str) -> Validation:
    observed = block["observation_count"].values > 0
    missing = {name: _missing(block[name].values[observed][:, land]) for name in CONCENTRATIONS}
    for name, share in missing.items():
        if share > max_missing:
            raise ProductError(
                f"{where}: variable '{name}' from {block['time'].values[0]}: expected at most {max_missing:.2%} "
                f"of land cells missing; found {share:.2%}"
            )
    mean = block["pm2p5"].values
    highest = float(np.max(mean, where=~np.isnan(mean), initial=0.0))
    if not highest < HIGHEST:
        raise ProductError(f"{where}: variable 'pm2p5': expected less than {HIGHEST:g} ug m-3; found {highest:g}")
    return Validation(len(observed), int((~observed).sum()), missing["pm2p5"], highest)


def _missing(values: Float) -> float:
    return float(np.isnan(values).mean()) if values.size else 0.0


def _together(parts: list[Validation]) -> Validation:
    observed = np.array([part.hours - part.hours_without_observations for part in parts], np.float64)
    missing = float(observed @ [part.missing_land for part in parts] / max(observed.sum(), 1.0))
    unobserved = sum(part.hours_without_observations for part in parts)
    return Validation(sum(part.hours for part in parts), unobserved, missing, max(part.highest for part in parts))
