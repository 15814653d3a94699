"""Quality control: flag bits beside the values, never instead of them. An hour's flags look back only, never ahead.

The checks of one hour use that hour and at most the `LOOKBACK_HOURS` before it, so flags do not depend on what comes
later nor, past its first hours, on where the cube begins. Thresholds come from the network's own record; the figures
that led to them are in ``docs/reference/quality-control.md``, the order of the checks in
``docs/adr/0009-quality-control.md``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.contract import POLLUTANTS
from pipeline.qc.alone import FLAT_HOURS, FLAT_LOOKBACK, MAXIMA, flag_alone, flag_pm10, newly_moved, pm10_too_low
from pipeline.qc.clocks import clock
from pipeline.qc.departure import (
    GROSS,
    LOG_OFFSET,
    SPIKE,
    WITNESSES,
    Departure,
    caution,
    confirmed,
    departures_of,
    gross,
    in_dust,
    misfit,
    spikes,
    unit_jumps,
)
from pipeline.qc.flags import FLAGS, INFORMATION, INVALID, Bits, Float, attributes, summary, valid
from pipeline.qc.neighbours import HISTORY_HOURS, Around, around, filled_from_afar, nearest_columns
from pipeline.qc.shift import time_shifts
from pipeline.qc.spatial import flag_spatially
from pipeline.qc.twins import duplicates

__all__ = [
    "FLAGS",
    "FLAT_HOURS",
    "INFORMATION",
    "INVALID",
    "LOOKBACK_HOURS",
    "MAXIMA",
    "clock",
    "flag",
    "summary",
    "valid",
]

#: Hours before a cube's first that it needs for flags which do not depend on where it begins: the week before the UTC
#: day, the day up to the hour, and what the checks of one station look back to.
LOOKBACK_HOURS = HISTORY_HOURS + 24 + FLAT_LOOKBACK


def flag(cube: xr.Dataset, since: np.datetime64 | None = None) -> xr.Dataset:
    """Add ``qc_<pollutant>`` (uint16 flag bits, dims as the values) to a StationCube; its values stay as they are.

    Parameters
    ----------
    cube : StationCube. Flags of its first `LOOKBACK_HOURS` may miss what the hours before it would tell.
    since : hour from which flags are wanted; earlier ones only serve as history, without titanlib's checks, which
        take most of the time. None flags every hour in full.

    Returns
    -------
    StationCube with the flags, and CF ``flag_masks`` and ``flag_meanings``. `INVALID` says which bits make a value
    invalid.
    """
    time = cube["time"].to_numpy()
    values = {name: cube[name].to_numpy() for name in POLLUTANTS}
    bits = {name: flag_alone(name, series) for name, series in values.items()}
    near = nearest_columns(cube)
    heard = {name: around(_logs(name, _in_range(bits[name], values[name])), near) for name in POLLUTANTS}
    _flag_units(time, values, bits, heard)
    departures = _departures(time, values, bits, heard)
    _flag_departures(values, bits, departures)
    flag_pm10(values, bits)
    _flag_stations(cube, values, bits, departures)
    first = 0 if since is None else int(np.searchsorted(time, since.astype(time.dtype)))
    flag_spatially(cube, _explained(departures["pm2p5"]), bits["pm2p5"], first)
    return cube.assign({f"qc_{name}": (cube[name].dims, bits[name], attributes(name)) for name in POLLUTANTS})


def _in_range(bits: Bits, values: Float) -> Float:
    """Values that are physically possible, NaN elsewhere."""
    return np.where(bits & (FLAGS["range"] | FLAGS["zero_as_missing"]) == 0, values, np.float32(np.nan))


def _clean(bits: Bits, values: Float) -> Float:
    """Values that no check has made invalid yet, NaN elsewhere."""
    return np.where(bits & INVALID == 0, values, np.float32(np.nan))


def _logs(name: str, values: Float) -> Float:
    return np.log(values + np.float32(LOG_OFFSET[name]))


def _flag_units(
    time: NDArray[np.datetime64], values: Mapping[str, Float], bits: dict[str, Bits], heard: Mapping[str, Around]
) -> None:
    for name, series in values.items():
        jump = unit_jumps(name, time, series, _in_range(bits[name], series), heard[name])
        bits[name][jump] |= FLAGS["unit_jump"]


def _departures(
    time: NDArray[np.datetime64], values: Mapping[str, Float], bits: Mapping[str, Bits], heard: Mapping[str, Around]
) -> dict[str, Departure]:
    return {name: departures_of(time, _logs(name, _clean(bits[name], values[name])), heard[name]) for name in values}


def _flag_stations(
    cube: xr.Dataset, values: Mapping[str, Float], bits: dict[str, Bits], departures: Mapping[str, Departure]
) -> None:
    """Flag what concerns a station as a whole, in all of its pollutants: a copy, a wrong clock, a new place."""
    time = cube["time"].to_numpy()
    logs = {name: found.logs for name, found in departures.items()}
    medians = {name: filled_from_afar(cube, found.logs, found.near.median) for name, found in departures.items()}
    concerned = {
        "duplicate_station": duplicates(time, values, misfit(departures)),
        "time_shift": time_shifts(time, logs, medians),
        "moved": newly_moved(cube),
    }
    for flag_name, mask in concerned.items():
        for name in POLLUTANTS:
            bits[name][mask & ~np.isnan(values[name])] |= FLAGS[flag_name]


def _flag_departures(values: Mapping[str, Float], bits: dict[str, Bits], departures: Mapping[str, Departure]) -> None:
    """Spikes of every pollutant, and gross departures of PM2.5, beside titanlib's own verdicts."""
    possible, dust = ~pm10_too_low(values), in_dust(departures)
    for name, found in departures.items():
        extra: float | Float = 0.0
        agree = np.zeros(found.logs.shape, dtype=bool)
        if name in WITNESSES:
            extra = dust + caution(departures[WITNESSES[name]])
            agree = possible & confirmed(found, departures[WITNESSES[name]])
        bits[name][spikes(found, SPIKE[name] + extra) & ~agree] |= FLAGS["spike"]
        if name == "pm2p5":
            bits[name][gross(found, GROSS + extra) & ~agree] |= FLAGS["buddy"]


def _explained(found: Departure) -> Float:
    """Logs less what is usual for the station beside its neighbours: a local bias that lasts is no error."""
    return found.logs - found.usual
