"""Checks of a station by itself: measuring range, zeros, flat lines, gaps, a new place, PM10 below PM2.5."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.qc.flags import DEPARTURES, FLAGS, INVALID, Bits, Float, Mask

#: Largest value of the instruments' measuring range (HJ 653-2013 for particles, HJ 654-2013 for gases, 500 ppb and
#: 50 ppm CO at 25 degrees C), ug m-3 and CO mg m-3; PM2.5 above 1000 is a fault, PM10 to 9,985 is seen in dust storms.
MAXIMA = {"pm2p5": 1000.0, "pm10": 10000.0, "so2": 1310.0, "no2": 941.0, "o3": 982.0, "co": 57.3}

#: Hours of one same value that make a flat line, by the level the value exceeds; low whole numbers repeat by nature.
FLAT_HOURS = {
    "pm2p5": ((0.0, 24), (5.0, 12), (20.0, 6)),
    "pm10": ((0.0, 24), (10.0, 12), (20.0, 6)),
    "so2": ((0.0, 48), (10.0, 24), (20.0, 12), (50.0, 6)),
    "no2": ((0.0, 48), (10.0, 12), (20.0, 8)),
    "o3": ((0.0, 24), (20.0, 8)),
    "co": ((0.0, 48), (1.0, 24)),
}

#: Hours that these checks look back.
FLAT_LOOKBACK = max(hours for levels in FLAT_HOURS.values() for _, hours in levels)

#: A station that reported in the last week is in a gap from its sixth missing hour on.
GAP_HOURS, GAP_AFTER_HOURS = 6, 168

#: Hours for which a station counts as new at its place.
MOVED_HOURS = 48

#: PM10 may fall below PM2.5 by this share and amount (ug m-3): the two are measured by different instruments.
PM10_SHARE, PM10_AMOUNT = 0.9, 5.0
#: PM2.5 above this multiple of PM10 by this amount (ug m-3) is itself at fault more often than PM10 is.
GROSS_MULTIPLE, GROSS_AMOUNT = 2.0, 100.0


def flag_alone(pollutant: str, values: Float) -> Bits:
    """Bits of the checks that need one pollutant at one station only; shape (T, S)."""
    bits = np.zeros(values.shape, dtype="uint16")
    absent = np.isnan(values)
    bits[absent] |= FLAGS["missing"]
    bits[in_gap(absent)] |= FLAGS["gap"]
    bits[(values < 0) | (values > MAXIMA[pollutant])] |= FLAGS["range"]
    bits[values <= 0] |= FLAGS["zero_as_missing"]
    bits[_run_length(values) >= _flat_hours(pollutant, values)] |= FLAGS["flat_line"]
    return bits


def in_gap(absent: Mask) -> Mask:
    """Hours (T, S) from the `GAP_HOURS`-th missing one on, of stations that reported in `GAP_AFTER_HOURS`."""
    hour = np.arange(len(absent))[:, None]
    silent = hour - np.maximum.accumulate(np.where(absent, -(GAP_AFTER_HOURS + 1), hour), axis=0)
    return (silent >= GAP_HOURS) & (silent <= GAP_AFTER_HOURS)


def _run_length(values: Float) -> NDArray[np.int32]:
    """Hours, this one included, for which each station has reported this hour's value without a gap; (T, S)."""
    runs = np.ones(values.shape, dtype="int32")
    for hour in range(1, len(values)):
        runs[hour] += np.where(values[hour] == values[hour - 1], runs[hour - 1], 0)
    return runs


def _flat_hours(pollutant: str, values: Float) -> NDArray[np.int32]:
    """Hours of one value that make a flat line at each value's level; (T, S)."""
    levels, hours = zip(*FLAT_HOURS[pollutant], strict=True)
    band = np.searchsorted(levels[1:], values)  # NaN sorts last; a missing hour has run length 1
    return np.array(hours, dtype="int32")[band]


def flag_pm10(values: Mapping[str, Float], bits: Mapping[str, Bits]) -> None:
    """Flag PM10 below PM2.5, and PM2.5 too when it is grossly above, unless the other of the two is at fault already.

    A departure from the neighbours (`DEPARTURES`) does not keep a value from being flagged here too.
    """
    pm2p5, pm10 = values["pm2p5"], values["pm10"]
    sound = {name: bits[name] & INVALID == 0 for name in ("pm2p5", "pm10")}
    usable = (bits["pm2p5"] | bits["pm10"]) & (INVALID & ~DEPARTURES) == 0
    gross = pm2p5 > GROSS_MULTIPLE * pm10 + GROSS_AMOUNT
    bits["pm10"][usable & sound["pm2p5"] & pm10_too_low(values)] |= FLAGS["pm10_below_pm2p5"]
    bits["pm2p5"][usable & sound["pm10"] & gross] |= FLAGS["pm10_below_pm2p5"]


def pm10_too_low(values: Mapping[str, Float]) -> Mask:
    """Hours (T, S) in which PM10 is below PM2.5 by more than two instruments may differ."""
    return values["pm10"] < PM10_SHARE * values["pm2p5"] - PM10_AMOUNT


def newly_moved(cube: xr.Dataset) -> Mask:
    """Hours (T, S) in which a station has stood at its place for less than `MOVED_HOURS`.

    `pipeline.harmonise.to_cube` names the column of a later place ``code@first hour there``.
    """
    since = [name.rpartition("@")[2] if "@" in name else "NaT" for name in cube["station"].values.tolist()]
    age = cube["time"].values[:, None] - np.array(since, dtype="datetime64[h]")
    return (age >= np.timedelta64(0, "h")) & (age < np.timedelta64(MOVED_HOURS, "h"))
