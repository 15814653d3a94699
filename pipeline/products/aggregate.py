"""Daily and monthly means of the cube, with the hours and days that they rest on.

A day needs 18 of its 24 hours (Directive 2008/50/EC, annex XI), a month 75 % of its days; a cell with fewer holds no
mean. The mean of hourly conditional means is the conditional mean of the day. Percentiles do not average: the means of
the hourly 5th and 95th are given under names that say so. See docs/adr/0018-products.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.contract import FIELDS, QUALITY_BITS, FieldSpec
from pipeline.cube.layout import BLOCK
from pipeline.cube.write import bitround
from pipeline.products.series import Series, Values, describe, hours_of, static

#: Hours that a daily mean needs, and the share of its days that a monthly mean needs.
HOURS_NEEDED = 18
DAYS_NEEDED = 0.75

#: Bit of ``quality_flag`` of a land cell whose mean is missing: it has too few hours, or days.
INCOMPLETE = 8

_HOURS = 24
_MEANS = {"pm2p5": "pm2p5", "mean_hourly_p05": "pm2p5_p05", "mean_hourly_p95": "pm2p5_p95"}
_ABOUT = "valid_hours nearest_observation_distance quality_flag stream observation_count"


@dataclass(frozen=True)
class Day:
    """One day of a part of a cube: days since 1970-01-01 (in local time), and where its hours lie along time."""

    number: int
    at: slice


# ---- variables ----


def fields(frequency: str) -> tuple[FieldSpec, ...]:
    """Variables of ``daily`` or ``monthly`` means."""
    hourly = {spec.name: spec for spec in FIELDS}
    made_of, step = {"daily": ("hours", "1 hour"), "monthly": ("days", "1 day")}[frequency]
    about = _ABOUT if frequency == "daily" else f"valid_days {_ABOUT}"
    return (
        _mean(hourly["pm2p5"], "pm2p5", f"PM2.5, mean of the {made_of}", step, f"{' '.join([*_MEANS][1:])} {about}"),
        _mean(hourly["pm2p5_p05"], "mean_hourly_p05", "mean of the hourly 5th percentiles of PM2.5", step, about),
        _mean(hourly["pm2p5_p95"], "mean_hourly_p95", "mean of the hourly 95th percentiles of PM2.5", step, about),
        *([_count("valid_days", "days whose mean the monthly mean is of")] if frequency == "monthly" else []),
        _count("valid_hours", "hours whose estimates the mean is of"),
        _mean(hourly["nearest_observation_distance"], "nearest_observation_distance", None, step),
        _flags(hourly["quality_flag"]),
        _stream(hourly["stream"], {"daily": "day", "monthly": "month"}[frequency]),
        FieldSpec("observation_count", False, "int32", _OBSERVED),
    )


_NUMBER = {"standard_name": "number_of_observations", "units": "1"}
_OBSERVED: dict[str, object] = {
    **_NUMBER,
    "long_name": "valid PM2.5 observations of all stations and hours",
    "cell_methods": "time: sum (interval: 1 hour)",
}


def _count(name: str, long_name: str) -> FieldSpec:
    return FieldSpec(name, True, "int16", {**_NUMBER, "long_name": long_name, "cell_methods": "time: sum area: point"})


def _mean(hourly: FieldSpec, name: str, long_name: str | None, step: str, ancillary: str = "") -> FieldSpec:
    attrs = hourly.attrs | {"cell_methods": f"time: mean (interval: {step}) area: point"}
    said = {"long_name": long_name, "ancillary_variables": ancillary}
    return FieldSpec(name, True, "float32", attrs | {key: value for key, value in said.items() if value})


def _flags(hourly: FieldSpec) -> FieldSpec:
    masks = np.array([*QUALITY_BITS.values(), INCOMPLETE], "uint8")
    meanings = " ".join([*QUALITY_BITS, "incomplete"])
    return FieldSpec("quality_flag", True, "uint8", {**hourly.attrs, "flag_masks": masks, "flag_meanings": meanings})


def _stream(hourly: FieldSpec, period: str) -> FieldSpec:
    return replace(hourly, attrs=hourly.attrs | {"long_name": f"production stream of the {period}"})


# ---- days ----


def days(cube: xr.Dataset, offset: int = 0) -> list[Day]:
    """Days of a part of a cube that hold hours enough, in order.

    Parameters
    ----------
    cube : hours of one stream, see `pipeline.products.export.subset`.
    offset : hours that local time is ahead of UTC; a day is 24 hours from local midnight.
    """
    numbers = (hours_of(cube) + offset) // _HOURS
    first = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    ends = np.append(first[1:], len(numbers))
    return [
        Day(int(numbers[at]), slice(int(at), int(end)))
        for at, end in zip(first, ends, strict=True)
        if end - at >= HOURS_NEEDED
    ]


def daily(cube: xr.Dataset, which: Sequence[Day], offset: int = 0) -> Series:
    """Daily means; see `days` for the arguments. Raises where `which` is empty: IndexError."""
    starts = np.array([day.number for day in which]) * _HOURS - offset
    bounds = np.stack([starts, starts + _HOURS], axis=-1)
    return _series(cube, "daily", bounds, offset, lambda: _batches(_day(cube, day) for day in which))


def _day(cube: xr.Dataset, day: Day) -> Values:
    """Means of one day, each (rows, columns) or a scalar."""
    hours = cube.isel(time=day.at)
    values = {name: hours[source].values for name, source in _MEANS.items()}
    valid = np.isfinite(values["pm2p5"])
    count = valid.sum(axis=0)
    found: Values = {
        name: _over(np.where(valid, array, 0).sum(axis=0, dtype=float), count, count >= HOURS_NEEDED)
        for name, array in values.items()
    }
    found["valid_hours"] = count.astype("int16")
    found["nearest_observation_distance"] = _mean_distance(hours["nearest_observation_distance"].values)
    flags = hours["quality_flag"].values
    often = {bit: ((flags & bit) > 0).sum(axis=0) > _HOURS - HOURS_NEEDED for bit in QUALITY_BITS.values()}
    found["quality_flag"] = _flag(often, count >= HOURS_NEEDED)
    found["stream"] = hours["stream"].values[-1]
    found["observation_count"] = hours["observation_count"].values.sum(dtype="int32")
    return found


def _over(total: NDArray[Any], count: NDArray[Any], enough: NDArray[np.bool_]) -> NDArray[np.float32]:
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=enough)
    return bitround(mean.astype("float32"))


def _mean_distance(distance: NDArray[np.float32]) -> NDArray[np.float32]:
    known = np.isfinite(distance)
    count = known.sum(axis=0)
    return _over(np.where(known, distance, 0).sum(axis=0, dtype=float), count, count >= HOURS_NEEDED)


def _flag(often: dict[int, NDArray[np.bool_]], enough: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Bits that are set in more than a quarter of hours or days; INCOMPLETE on land without enough of them."""
    flag = np.zeros(enough.shape, "uint8")
    for bit, is_set in often.items():
        flag[is_set] |= bit
    missing = ~enough & ((flag & QUALITY_BITS["sea"]) == 0)
    flag[missing] |= INCOMPLETE
    return flag


# ---- months ----


def months(which: Iterable[Day]) -> list[list[Day]]:
    """Days of each month that holds days enough, in order."""
    grouped = [list(group) for _, group in itertools.groupby(which, lambda day: _month(day.number))]
    return [group for group in grouped if len(group) >= DAYS_NEEDED * _length(group[0].number)]


def monthly(cube: xr.Dataset, which: Sequence[Sequence[Day]], offset: int = 0) -> Series:
    """Monthly means of daily means; see `months` for `which`, `days` for the rest."""
    first = np.array([_month(group[0].number) for group in which], "M8[M]")
    bounds = np.stack([first, first + 1], axis=-1).astype("M8[h]").astype("int64") - offset
    return _series(cube, "monthly", bounds, offset, lambda: _batches(_one_month(cube, group) for group in which))


def _one_month(cube: xr.Dataset, group: Sequence[Day]) -> Values:
    """Means of one month, each (rows, columns) or a scalar; reads a day at a time."""
    totals, needed = _Totals(), DAYS_NEEDED * _length(group[0].number)
    for day in group:
        totals.add(_day(cube, day))
    count = totals["valid_days"]
    found: Values = {name: _over(totals[name], count, count >= needed) for name in _MEANS}
    found["valid_days"], found["valid_hours"] = count.astype("int16"), totals["valid_hours"].astype("int16")
    known = totals["known"]
    found["nearest_observation_distance"] = _over(totals["nearest_observation_distance"], known, known >= needed)
    allowed = _length(group[0].number) - needed
    often = {bit: totals[f"flag {bit}"] > allowed for bit in QUALITY_BITS.values()}
    found["quality_flag"] = _flag(often, count >= needed)
    found["stream"] = totals.last["stream"]
    found["observation_count"] = totals["observation_count"].astype("int32")
    return found


class _Totals(dict[str, NDArray[Any]]):
    """Sums over the days of a month."""

    last: Values

    def add(self, day: Values) -> None:
        """Take a day's means."""
        valid, distance = np.isfinite(day["pm2p5"]), day["nearest_observation_distance"]
        for name in _MEANS:
            self._sum(name, np.where(valid, day[name], 0).astype(float))
        self._sum("valid_days", valid.astype(int))
        self._sum("valid_hours", np.where(valid, day["valid_hours"], 0).astype(int))
        self._sum("nearest_observation_distance", np.where(np.isfinite(distance), distance, 0).astype(float))
        self._sum("known", np.isfinite(distance).astype(int))
        for bit in QUALITY_BITS.values():
            self._sum(f"flag {bit}", ((day["quality_flag"] & bit) > 0).astype(int))
        self._sum("observation_count", np.asarray(day["observation_count"], int))
        self.last = day

    def _sum(self, name: str, more: NDArray[Any]) -> None:
        self[name] = self[name] + more if name in self else more


def _month(number: int) -> np.datetime64:
    return np.datetime64(number, "D").astype("M8[M]")


def _length(number: int) -> int:
    """Days in the month of a day."""
    month = _month(number)
    return int(((month + 1).astype("M8[D]") - month.astype("M8[D]")).astype(int))


# ---- both ----


def _series(
    cube: xr.Dataset,
    frequency: str,
    bounds: NDArray[np.int64],
    offset: int,
    blocks: Callable[[], Iterator[Values]],
) -> Series:
    attrs = describe(cube) | _coverage(frequency, bounds) | _said(frequency, offset, str(cube.attrs["title"]))
    return Series(frequency, static(cube), bounds, fields(frequency), attrs, blocks)


def _batches(periods: Iterable[Values]) -> Iterator[Values]:
    """Stack periods, `BLOCK` at a time."""
    left = iter(periods)
    while some := list(itertools.islice(left, BLOCK)):
        yield {name: np.stack([values[name] for values in some]) for name in some[0]}


def _coverage(frequency: str, bounds: NDArray[np.int64]) -> dict[str, str]:
    """ACDD-1.3 ``time_coverage_*``: by its words the time of the first and of the last data point, which are starts."""
    first, last = bounds[[0, -1], 0].astype("M8[h]").astype("M8[s]")
    unit, count = "D", int(bounds[-1, 1] - bounds[0, 0]) // _HOURS
    if frequency == "monthly":
        unit, count = "M", int(np.ptp((bounds[[0, -1], 0] + _HOURS).astype("M8[h]").astype("M8[M]").astype(int))) + 1
    return {
        "time_coverage_start": f"{first}Z",
        "time_coverage_end": f"{last}Z",
        "time_coverage_duration": f"P{count}{unit}",
        "time_coverage_resolution": f"P1{unit}",
    }


def _said(frequency: str, offset: int, title: str) -> dict[str, str]:
    zone = f"UTC{offset:+03d}:00" if offset else "UTC"
    rule = f"A daily mean is of {HOURS_NEEDED} hours or more of a day from 00:00 to 24:00 {zone}."
    if frequency == "monthly":
        rule += f" A monthly mean is of the daily means of {DAYS_NEEDED:.0%} or more of the month's days."
    return {
        "title": f"{title}: {frequency} means",
        "summary": f"{frequency.capitalize()} means of PM2.5 near the ground, from hourly estimates. {rule} "
        "mean_hourly_p05 and mean_hourly_p95 are means of hourly percentiles, not percentiles of the mean: the "
        "interval between them is too wide unless the errors of all hours are wholly dependent.",
        "comment": "Times are the starts of the averaging periods in UTC; time_bnds holds both ends. A bit of "
        "quality_flag is set where more than a quarter of the hours, or days, carry it. Sea cells hold no "
        "concentration.",
    }
