"""Scores of forecasts by lead: sums of every issue time, tables of cumulative windows, and a block bootstrap.

Windows are cumulative: a score at 24 h pools leads 1 to 24; "at" is the last lead of the window alone. Daily scores are
of means over 24 leads. A quantile of a day's mean is taken as the mean of the hours' quantiles: their errors mostly
share their sign. All methods are scored on the same pairs, so sums over issue times are all that need be kept.

Shapes: I issue times, N stations, T leads, D days of lead, R levels, K = len(STATISTICS).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import score

Float = NDArray[np.floating]
Sum = NDArray[np.float64]

#: Ends of the cumulative windows, hours; daily scores have those of whole days.
WINDOWS = (6, 12, 24, 48, 96, 168)
DAY = 24

#: Sums kept of every issue time and lead.
STATISTICS = ("pairs", "absolute", "squared", "error", "crps", "covered", "width", "truth", "truth_squared")

#: Hours of a day that must be known for its mean.
DAY_KNOWN = 18

#: What the bootstrap compares, and the sum and power it comes from.
COMPARED = {"mae": ("absolute", 1.0), "rmse": ("squared", 0.5), "crps": ("crps", 1.0)}

AQNET = "aqnet "


@dataclass(frozen=True)
class Sums:
    """Sums of a method over the stations of a group: `hourly` (I, T, K) and `daily` (I, D, K), see `STATISTICS`."""

    hourly: Sum
    daily: Sum

    def window(self, kind: str, hours: int, at: bool) -> Sum:
        """Sums (I, K) over a window, or at its last lead."""
        leads = self.hourly if kind == "hourly" else self.daily
        last = hours if kind == "hourly" else hours // DAY
        found: Sum = leads[:, last - 1] if at else leads[:, :last].sum(1)
        return found


@dataclass(frozen=True)
class OutlookEvaluation:
    """Scores and how they came about.

    Attributes
    ----------
    scores : one row a group, kind (hourly or daily), window (h), `at` (pooled to it or at it) and method.
    seeds : median, min and max over the seeds of AQ-Net and of each ablation.
    differences : AQ-Net (the seed with the median CRPS) minus each other method, with 95 % intervals.
    about : date, commit, command, protocol, digests.
    """

    scores: pd.DataFrame
    seeds: pd.DataFrame
    differences: pd.DataFrame
    about: dict[str, Any]

    def to_json(self) -> str:
        """All of it as JSON; NaN becomes null."""
        tables = {name: score.records(getattr(self, name)) for name in ("scores", "seeds", "differences")}
        return json.dumps({"about": self.about} | tables, indent=1, allow_nan=False) + "\n"


# ---- sums ----


def statistics(mean: Float, quantiles: Float, truth: Float, levels: tuple[float, ...]) -> Sum:
    """Sums (T, K) over stations of forecasts (N, T), quantiles (R, N, T) and truth (N, T), NaN where missing.

    A pair counts where truth and forecast are known. The absolute error is the median's, the squared one the mean's;
    CRPS as in `pipeline.score.crps`.
    """
    known = np.isfinite(truth) & np.isfinite(mean)
    y = np.where(known, truth, 0.0)
    q = np.where(known, quantiles, 0.0).astype(np.float64)
    error = np.where(known, mean, 0.0) - y
    low, middle, high = (q[levels.index(level)] for level in (score.LOW, score.MEDIAN, score.HIGH))
    excess = q - y
    tau, weight = np.array(levels)[:, None, None], score.level_weights(levels)
    crps = 2.0 * np.tensordot(weight, ((excess > 0) - tau) * excess, axes=1)
    inside = (y >= low) & (y <= high) & known
    parts = (known, np.abs(middle - y), error**2, error, crps, inside, high - low, y, y**2)
    return np.stack([np.asarray(part, np.float64).sum(0) for part in parts], axis=-1)


def daily(mean: Float, quantiles: Float, truth: Float) -> tuple[Float, Float, Float]:
    """Means over each day of lead of the hours whose truth is known, NaN where fewer than `DAY_KNOWN` are."""

    def days(values: Float) -> Float:
        return values.reshape(*values.shape[:-1], -1, DAY)

    known = days(np.isfinite(truth))
    count = known.sum(-1)
    enough = count >= DAY_KNOWN
    made = [np.where(known, days(part), 0.0).sum(-1) / np.maximum(count, 1) for part in (mean, quantiles, truth)]
    return made[0], made[1], np.where(enough, made[2], np.nan)


def sums(hourly_sums: list[Sum], daily_sums: list[Sum]) -> Sums:
    """Put the issue times together."""
    return Sums(np.stack(hourly_sums), np.stack(daily_sums))


# ---- tables ----


def assess(
    found: Mapping[str, Mapping[str, Sums]], about: dict[str, Any], issue_day: NDArray[np.int64]
) -> OutlookEvaluation:
    """Tables from the sums of method -> group; `issue_day` (I,) is the day of each issue time.

    The first method has every group; another may lack some.

    Raises
    ------
    ValueError
        When methods were not scored on the same pairs.
    """
    rows, differences = [], []
    for group in next(iter(found.values())):
        members = {name: groups[group] for name, groups in found.items() if group in groups}
        _check_pairs(group, members)
        for kind, hours, at in _windows():
            windows = {name: one.window(kind, hours, at) for name, one in members.items()}
            key = {"group": group, "kind": kind, "window": hours, "at": at}
            rows += [key | {"method": name} | metrics(total.sum(0)) for name, total in windows.items()]
            if not at:
                differences += [key | row for row in _differences(windows, issue_day // max(hours // DAY, 1))]
    scores = pd.DataFrame(rows)
    return OutlookEvaluation(scores, _over_seeds(scores), pd.DataFrame(differences), about)


def _windows() -> list[tuple[str, int, bool]]:
    """Every kind, window, and whether at its end alone."""
    pooled = [("hourly", hours, False) for hours in WINDOWS]
    pooled += [("daily", hours, False) for hours in WINDOWS if hours >= DAY]
    return pooled + [(kind, hours, True) for kind, hours, _ in pooled]


def _check_pairs(group: str, members: Mapping[str, Sums]) -> None:
    counts = {name: float(one.hourly[..., 0].sum()) for name, one in members.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{group}: expected every method on the same pairs; found {counts}")


def metrics(total: Sum) -> dict[str, float]:
    """Metrics from sums (K,)."""
    s = dict(zip(STATISTICS, map(float, total), strict=True))
    n = s["pairs"]
    return {
        "mae": s["absolute"] / n,
        "rmse": (s["squared"] / n) ** 0.5,
        "r2": 1 - s["squared"] / (s["truth_squared"] - s["truth"] ** 2 / n),
        "bias": s["error"] / n,
        "crps": s["crps"] / n,
        "coverage_90": s["covered"] / n,
        "width_90": s["width"] / n,
        "pairs": n,
    }


def _over_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Median, min and max over the seeds of each network."""
    networks = scores[scores["method"].str.startswith(AQNET)]
    if networks.empty:
        return pd.DataFrame()
    name = networks["method"].map(_network_of)
    keys = ["group", "kind", "window", "at", "network"]
    grouped = networks.assign(network=name).drop(columns=["method", "pairs"]).groupby(keys, sort=False)
    return grouped.agg(["median", "min", "max"]).pipe(_flat).reset_index()


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_axis(["_".join(column) for column in table.columns], axis=1)


def middle(windows: Mapping[str, Sum], network: str = AQNET) -> str | None:
    """Name of the seed of a network with the median CRPS (the lower one of two)."""
    seeds = [name for name in windows if name.startswith(f"{network.strip()} seed")]
    order = sorted(seeds, key=lambda name: float(windows[name][:, STATISTICS.index("crps")].sum()))
    return order[(len(order) - 1) // 2] if order else None


def _differences(windows: Mapping[str, Sum], block: NDArray[np.int64]) -> list[dict[str, object]]:
    """AQ-Net minus every baseline and every ablation, median seeds."""
    network = middle(windows)
    if network is None:
        return []
    ablations = dict.fromkeys(_network_of(name) for name in windows if name.startswith(AQNET))
    others = {name: name for name in windows if not name.startswith(AQNET)}
    others |= {name: str(middle(windows, name)) for name in ablations if name != AQNET.strip()}
    rows: list[dict[str, object]] = []
    for shown, name in others.items():
        for statistic in COMPARED:
            value, low, high = block_bootstrap(windows[network], windows[name], block, statistic)
            row: dict[str, object] = {"network": network, "minus": shown, "statistic": statistic}
            rows.append(row | {"value": value, "low": low, "high": high})
    return rows


def _network_of(method: str) -> str:
    """Name of a network without its seed."""
    return method.rpartition("seed")[0].strip()


def block_bootstrap(
    a: Sum, b: Sum, block: NDArray[np.int64], statistic: str, n: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Difference of a statistic of two methods, a minus b, with its 95 % percentile interval.

    The estimator of `pipeline.score.day_block_bootstrap`, from the sums (I, K) of issue times. Whole blocks of
    consecutive issue times are drawn, as long as the window, since forecasts that overlap share their truth.
    """
    name, power = COMPARED[statistic]
    labels, of_block = np.unique(block, return_inverse=True)
    column = STATISTICS.index(name)
    totals = np.stack([np.bincount(of_block, x) for x in (a[:, column], b[:, column], a[:, 0])])  # (3, blocks)
    draws = np.random.default_rng(seed).multinomial(len(labels), np.full(len(labels), 1.0 / len(labels)), n)
    resampled = np.vstack([totals.sum(1), draws @ totals.T])
    means = (resampled[:, :2] / resampled[:, 2:]) ** power
    difference = means[:, 0] - means[:, 1]
    low, high = np.quantile(difference[1:], [0.025, 0.975])
    return float(difference[0]), float(low), float(high)
