"""What the means of hourly percentiles say of daily and monthly means: ``python -m benchmarks.daily_interval DIR``.

DIR holds the CNEMC record of 2019 and the public split. The evaluation weights, which never saw them, estimate all test
hours at the hidden stations. The first table: how often the observed daily (monthly) mean lies between the means of the
hourly 5th and 95th percentiles, and by what factor that interval would have to shrink about the mean to hold 90 %. The
second: the correlation of the hourly errors over lags, which decides it. Daily means are of 18 valid hours or more, of
the hours at which the station reported.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import checkpoint, infer
from model.windows import LEVELS
from pipeline import harmonise, sources
from pipeline.contract import HOUR
from pipeline.evaluation import evaluate
from pipeline.products.aggregate import DAYS_NEEDED, HOURS_NEEDED

Float = NDArray[np.float64]

#: Hours of the record that are read before the first test hour.
LEAD = 96
FACTORS = np.arange(0.02, 1.5, 0.01)
LAGS = (1, 3, 6, 12, 24)


@dataclass(frozen=True)
class Sample:
    """What was observed, (N,), beside an estimate with the ends of its interval; NaN where there are hours too few."""

    truth: Float
    mean: Float
    low: Float
    high: Float

    def coverage(self, factor: float = 1.0) -> float:
        """Share of observations in the interval, shrunk about the mean by a factor."""
        known = np.isfinite(self.truth)
        low = self.mean + factor * (self.low - self.mean)
        high = self.mean + factor * (self.high - self.mean)
        return float(((self.truth >= low) & (self.truth <= high))[known].mean())

    def fitting(self) -> float:
        """Factor with which it holds 90 %."""
        return float(FACTORS[np.argmax([self.coverage(factor) >= 0.9 for factor in FACTORS])])


def main() -> None:
    """Print both tables for each group of hidden stations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--start", default="2019-12-01")
    parser.add_argument("--end", default="2020-01-01")
    arguments = parser.parse_args()
    split = evaluate.Splits.read(arguments.directory / "splits.json")
    print("| stations | of | n | holds | holds 90 % when shrunk to |")
    print("|---|---|---|---|---|")
    correlations = []
    for group, members in split.hidden.items():
        hourly = estimated(arguments.directory, split, members, *map(np.datetime64, (arguments.start, arguments.end)))
        samples = {"hours": hourly, "days": averaged(hourly, 24, HOURS_NEEDED)}
        samples["months"] = averaged(
            samples["days"], len(samples["days"].truth), DAYS_NEEDED * len(samples["days"].truth)
        )
        for name, sample in samples.items():
            count = np.isfinite(sample.truth).sum()
            print(f"| {group} | {name} | {count} | {sample.coverage():.3f} | {sample.fitting():.2f} |")
        correlations.append(f"| {group} | " + " | ".join(f"{correlation(hourly, lag):.2f}" for lag in LAGS) + " |")
    print("\n| correlation of errors over | " + " | ".join(f"{lag} h" for lag in LAGS) + " |")
    print("|---" * (len(LAGS) + 1) + "|")
    print("\n".join(correlations))


def estimated(
    directory: Path, split: evaluate.Splits, members: list[str], start: np.datetime64, end: np.datetime64
) -> Sample:
    """Hours x hidden stations."""
    first = start.astype("M8[h]") - LEAD * HOUR
    tables = sources.read("cnemc", directory, directory / "stations.csv", first, end, split.bbox, "keep")
    wanted = {f"cnemc:{code}" for code in (*split.visible, *members)}
    cube = harmonise.to_cube((rows[rows["station"].isin(wanted)] for rows in tables), first, end)
    hidden = np.isin(cube["station"].values, [f"cnemc:{code}" for code in members])
    parts = evaluate.withhold(evaluate.record_of(cube), np.flatnonzero(~hidden), np.flatnonzero(hidden))
    weights = sorted(checkpoint.SHIPPED.glob("*.safetensors"))[0]
    found = infer.estimator(weights)(parts.visible, parts.points)
    low, high = (found.quantiles[LEVELS.index(level)][LEAD:] for level in (0.05, 0.95))
    return Sample(parts.truth[LEAD:], found.mean[LEAD:].astype(float), low.astype(float), high.astype(float))


def averaged(sample: Sample, length: int, needed: float) -> Sample:
    """Means of consecutive periods over the times at which the station reported."""
    valid = np.isfinite(sample.truth).reshape(-1, length, sample.truth.shape[1])
    enough = valid.sum(axis=1) >= needed

    def mean(values: Float) -> Float:
        total = np.where(valid, values.reshape(valid.shape), 0).sum(axis=1)
        return np.where(enough, total / np.maximum(valid.sum(axis=1), 1), np.nan)

    return Sample(*(mean(values) for values in (sample.truth, sample.mean, sample.low, sample.high)))


def correlation(sample: Sample, lag: int) -> float:
    """Correlation of errors, in units of the interval's width, with those of the same station `lag` hours later."""
    error = (sample.truth - sample.mean) / (sample.high - sample.low)
    one, other = error[:-lag], error[lag:]
    both = np.isfinite(one) & np.isfinite(other)
    return float(np.corrcoef(one[both], other[both])[0, 1])


if __name__ == "__main__":
    main()
