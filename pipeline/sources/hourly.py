"""Hourly means of samples that come more often, and files of longer means told apart."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.sources.columns import left_out
from pipeline.sources.csvfile import CsvFile

#: Share of an hour's expected samples that its mean needs, and share of a sample that may reach over the hour's edge.
COMPLETE, OVERHANG = 0.75, 0.1


def cadences(key: NDArray[np.int64], time: NDArray[np.datetime64]) -> NDArray[np.float64]:
    """Seconds from one sample to the next (N,): the median of each key's gaps; NaN where a key has one time only."""
    order = np.lexsort((time, key))
    gap = np.diff(time[order]).astype("m8[s]").astype("float64")
    gap[(np.diff(key[order]) != 0) | (gap == 0)] = np.nan
    median = pd.Series(gap).groupby(key[order][1:]).median()
    return pd.Series(key).map(median).to_numpy("float64")


def refuse_longer(
    file: CsvFile, column: str, key: NDArray[np.int64], keys: int, time: NDArray[np.datetime64], hours: int
) -> None:
    """Raise InputError when all times (N,) of each of the `keys` keys are multiples of `hours` apart: longer means.

    A file in which no key has two times tells nothing, and passes.
    """
    first = np.full(keys, np.iinfo("int64").max)
    seconds = time.astype("M8[s]").astype("int64")
    np.minimum.at(first, key, seconds)
    after = seconds - first[key]
    if (after > 0).any() and not (after % (3600 * hours)).any():
        kind = "a daily file" if not (after % 86400).any() else f"means of {hours} hours or more"
        raise InputError(
            f"{file.where}, column '{column}': expected hourly or shorter means; found {kind}: all times of each sensor"
            f" are multiples of {hours} h apart, such as {time[np.argmax(after > 0)]} UTC"
        )


class Means(NamedTuple):
    """Hourly means: `hour` UTC start (M,), `mean` (M, K), and `last` (M,), the index of each mean's last sample."""

    hour: NDArray[np.datetime64]
    mean: NDArray[np.float64]
    last: NDArray[np.int64]


def hourly_means(
    file: CsvFile,
    key: NDArray[np.int64],
    start: NDArray[np.datetime64],
    seconds: NDArray[np.float64],
    value: NDArray[np.float64],
) -> Means:
    """Mean of the samples of each key and UTC hour; how many hours are left out goes to the log.

    Parameters
    ----------
    key : what belongs together, such as a sensor (N,).
    start, seconds : start and length of each sample's averaging period (N,).
    value : finite (N, K).

    Notes
    -----
    A sample counts for the hour its middle lies in, unless more than a tenth of it lies outside. An hour needs 75 % of
    the samples that fit into it, as European rules ask of hourly means (Directive 2008/50/EC, annex XI).
    """
    middle = start + (seconds / 2).astype("m8[s]")
    hour = middle.astype("M8[h]")
    before = (hour.astype("M8[s]") - start.astype("M8[s]")).astype("float64")
    within = np.maximum(before, seconds - before - 3600) <= OVERHANG * seconds
    index = np.flatnonzero(within)
    index = index[np.lexsort((start[index], hour[index], key[index]))]
    new = np.ones(len(index), dtype=bool)
    new[1:] = (np.diff(key[index]) != 0) | (np.diff(hour[index]).astype("int64") != 0)
    first = np.flatnonzero(new)
    count = np.diff(np.append(first, len(index)))
    keep = np.add.reduceat(seconds[index], first) >= COMPLETE * 3600 if len(first) else np.zeros(0, dtype=bool)
    total = np.add.reduceat(value[index], first) if len(first) else value[:0]
    left_out(file, int((~within).sum()), "samples that reach over the edge of a UTC hour")
    left_out(file, int((~keep).sum()), f"hours with less than {COMPLETE:.0%} of their samples")
    last = index[first + count - 1][keep]
    return Means(hour[last], (total / count[:, None])[keep], last)
