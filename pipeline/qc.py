"""Quality control: flag bits beside the values, never instead of them. An hour's flags look back only, never ahead.

The checks of one hour use that hour and at most the 48 hours before it, so flags do not depend on what comes later
nor, past its first hours, on where the cube begins. Thresholds come from the network's own record; the figures that
led to them are in ``docs/reference/quality-control.md``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pandas as pd
import titanlib
import xarray as xr
from numpy.typing import NDArray

from pipeline.contract import POLLUTANTS

log = logging.getLogger("aqnet")

Bits = NDArray[np.uint16]
Mask = NDArray[np.bool_]

#: Flag name -> bit of ``qc_<pollutant>``. Each of them makes a value invalid.
FLAGS = {
    "missing": 1,
    "range": 2,
    "zero_as_missing": 4,
    "flat_line": 8,
    "pm10_below_pm2p5": 16,
    "buddy": 32,
    "sct": 64,
}

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

#: Hours before a cube's first that it needs for flags which do not depend on where it begins.
LOOKBACK_HOURS = max(hours for levels in FLAT_HOURS.values() for _, hours in levels)

#: PM10 may fall below PM2.5 by this share and amount (ug m-3): the two are measured by different instruments.
PM10_SHARE, PM10_AMOUNT = 0.9, 5.0
#: PM2.5 above this multiple of PM10 by this amount (ug m-3) is itself at fault more often than PM10 is.
GROSS_MULTIPLE, GROSS_AMOUNT = 2.0, 100.0

#: Added before the logarithm, ug m-3: about the instruments' noise, so that 1 against 4 is no great departure.
LOG_OFFSET = 10.0

#: Buddy check: stations within 100 km and 500 m of height, five at least; departure in standard deviations (log).
BUDDY = {"radius": [100e3], "num_min": [5], "threshold": 3.5, "max_elev_diff": 500.0, "elev_gradient": 0.0}
BUDDY |= {"min_std": 0.3, "num_iterations": 2}

#: Spatial consistency test: length scales in m; five stations at least, so that an isolated one is left alone.
SCT = {"num_min": 5, "num_max": 50, "inner_radius": 80e3, "outer_radius": 150e3, "num_iterations": 2}
SCT |= {"num_min_prof": 1000, "min_elev_diff": 200.0, "min_horizontal_scale": 10e3, "vertical_scale": 500.0}
SCT_THRESHOLD, SCT_NOISE_RATIO = 9.0, 0.5


def flag(cube: xr.Dataset) -> xr.Dataset:
    """Add ``qc_<pollutant>`` (uint16 flag bits, dims as the values) to a StationCube; its values stay as they are.

    Parameters
    ----------
    cube : StationCube. Flags of its first 48 hours may miss a flat line that began before it.

    Returns
    -------
    StationCube with the flags, and CF ``flag_masks`` and ``flag_meanings``.

    Notes
    -----
    The spatial checks (PM2.5 only) are titanlib's buddy check and spatial consistency test on log(PM2.5 + 10), each
    hour by itself, among values that pass all other checks. Reference: Baserud et al. (2020), TITAN automatic
    spatial quality control of meteorological in-situ observations, Adv. Sci. Res. 17.
    """
    values = {name: cube[name].to_numpy() for name in POLLUTANTS}
    bits = {name: _flag_alone(name, series) for name, series in values.items()}
    _flag_pm10(values, bits)
    _flag_spatially(cube, bits["pm2p5"])
    return cube.assign({f"qc_{name}": (cube[name].dims, bits[name], _attributes(name)) for name in POLLUTANTS})


def valid(cube: xr.Dataset, pollutant: str) -> xr.DataArray:
    """Values of a flagged cube, NaN wherever any flag is set; dims ``(time, station)``, float32."""
    return cube[pollutant].where(cube[f"qc_{pollutant}"] == 0)


def summary(cube: xr.Dataset) -> pd.DataFrame:
    """Count the flags of a flagged cube.

    Returns
    -------
    DataFrame with one row a flag and pollutant: ``flag``, ``pollutant``, ``count`` and ``share``. The share is of the
    values reported; of all station-hours for ``missing``. A value with two flags counts twice.
    """
    return pd.DataFrame(_counts(cube), columns=["flag", "pollutant", "count", "share"])


def _counts(cube: xr.Dataset) -> Iterator[tuple[str, str, int, float]]:
    for name, bit in FLAGS.items():
        for pollutant in POLLUTANTS:
            bits = cube[f"qc_{pollutant}"].to_numpy()
            reported = bits.size if name == "missing" else int((bits & FLAGS["missing"] == 0).sum())
            count = int((bits & bit != 0).sum())
            yield name, pollutant, count, count / max(reported, 1)


def _attributes(pollutant: str) -> dict[str, object]:
    return {
        "long_name": f"quality flags of {pollutant}",
        "standard_name": "quality_flag",
        "flag_masks": np.array(list(FLAGS.values()), dtype="uint16"),
        "flag_meanings": " ".join(FLAGS),
    }


def _flag_alone(pollutant: str, values: NDArray[np.float32]) -> Bits:
    """Bits of the checks that need one pollutant at one station only; shape (T, S)."""
    bits = np.zeros(values.shape, dtype="uint16")
    bits[np.isnan(values)] |= FLAGS["missing"]
    bits[(values < 0) | (values > MAXIMA[pollutant])] |= FLAGS["range"]
    bits[values <= 0] |= FLAGS["zero_as_missing"]
    bits[_run_length(values) >= _flat_hours(pollutant, values)] |= FLAGS["flat_line"]
    return bits


def _run_length(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """Hours, this one included, for which each station has reported this hour's value without a gap; (T, S)."""
    runs = np.ones(values.shape, dtype="int32")
    for hour in range(1, len(values)):
        runs[hour] += np.where(values[hour] == values[hour - 1], runs[hour - 1], 0)
    return runs


def _flat_hours(pollutant: str, values: NDArray[np.float32]) -> NDArray[np.int32]:
    """Hours of one value that make a flat line at each value's level; (T, S)."""
    levels, hours = zip(*FLAT_HOURS[pollutant], strict=True)
    band = np.searchsorted(levels[1:], values)  # NaN sorts last; a missing hour has run length 1
    return np.array(hours, dtype="int32")[band]


def _flag_pm10(values: dict[str, NDArray[np.float32]], bits: dict[str, Bits]) -> None:
    """Flag PM10 below PM2.5, and PM2.5 too when it is grossly above, where no earlier check flags either."""
    pm2p5, pm10 = values["pm2p5"], values["pm10"]
    clean = (bits["pm2p5"] | bits["pm10"]) == 0
    bits["pm10"][clean & (pm10 < PM10_SHARE * pm2p5 - PM10_AMOUNT)] |= FLAGS["pm10_below_pm2p5"]
    bits["pm2p5"][clean & (pm2p5 > GROSS_MULTIPLE * pm10 + GROSS_AMOUNT)] |= FLAGS["pm10_below_pm2p5"]


def _flag_spatially(cube: xr.Dataset, bits: Bits) -> None:
    """Set the buddy and SCT bits of PM2.5, hour by hour, among the values that no other check flags."""
    titanlib.set_omp_threads(1)
    logs = np.log(np.where(bits == 0, cube["pm2p5"].to_numpy(), np.nan) + LOG_OFFSET)
    place = [cube[name].to_numpy() for name in ("lat", "lon", "elevation")]
    for hour in range(len(logs)):
        for name, check in (("buddy", _buddy), ("sct", _sct)):
            at = np.flatnonzero(bits[hour] == 0)
            suspect = check(titanlib.Points(*(axis[at] for axis in place)), logs[hour, at])
            bits[hour, at[suspect]] |= FLAGS[name]


def _buddy(points: titanlib.Points, logs: NDArray[np.float32]) -> Mask:
    return np.asarray(titanlib.buddy_check(points, logs, *BUDDY.values())) == 1


def _sct(points: titanlib.Points, logs: NDArray[np.float32]) -> Mask:
    threshold, noise = np.full(len(logs), SCT_THRESHOLD), np.full(len(logs), SCT_NOISE_RATIO)
    return np.asarray(titanlib.sct(points, logs, *SCT.values(), threshold, threshold, noise)[0]) == 1
