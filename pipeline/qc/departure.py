"""Checks against the neighbours' median and the station's own last days: unit jumps, spikes, departures that last.

A departure is r = log(x + offset) - the neighbours' median of it. What a station always shows (a road beside it, a
hill) is its usual departure: median and spread of the week before the UTC day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.qc.flags import Float, Mask
from pipeline.qc.neighbours import Around, by_day, median_of, recent_median

#: Added before the logarithm, ug m-3 (CO mg m-3): about the instruments' noise, so 1 against 4 is no great departure.
LOG_OFFSET = {"pm2p5": 10.0, "pm10": 10.0, "so2": 10.0, "no2": 10.0, "o3": 10.0, "co": 0.2}

#: A unit error is a factor 1000; natural variation of a factor 5 either way leaves 200.
UNIT_FACTOR = 200.0
#: With neighbours to ask, their ratio must also be far out, by this factor at least.
UNIT_FACTOR_NEIGHBOURS = 50.0
#: Medians below this (ug m-3, CO mg m-3) say nothing about units.
_LEAST_LEVEL = {"pm2p5": 1.0, "pm10": 1.0, "so2": 1.0, "no2": 1.0, "o3": 1.0, "co": 0.1}

#: Usual departure: values it takes, what it can explain, and the limits of a station's spread (log).
HISTORY_LEAST, EXPLAINED, SPREAD = 24, 0.5, (0.15, 0.45)

#: Spike: departure now, and above that of the hours before, by this much (log) and so many spreads.
SPIKE = {"pm2p5": 0.75, "pm10": 0.8, "so2": 1.2, "no2": 1.0, "o3": 1.3, "co": 1.0}
SPIKE_SPREADS, RECENT_HOURS = 2.0, 6
#: And beyond all neighbours (but one of many) by this much: what a front brings to a neighbour first is no spike.
SPIKE_BEYOND = 0.3
#: Without neighbours: this far (log) from the station's own hours before.
SPIKE_ALONE = 1.2

#: Share (log) of a departure that a second instrument must show for the two to confirm each other. PM2.5 and PM10 do: a
#: dust front or a plume reaches both.
WITNESS = 0.4
WITNESSES = {"pm2p5": "pm10", "pm10": "pm2p5"}
#: Where the witness is silent, as PM10 often is in dust storms, departures must be larger by this much (log).
UNWITNESSED = 0.3
#: In dust (the neighbours' PM10 above this, ug m-3, and above so many times their PM2.5) fronts are sharp and the fine
#: share differs from place to place: departures must be larger by this much (log).
DUST_LEVEL, DUST_RATIO, DUST = 150.0, 2.5, 0.5

#: A departure that no history explains, whether new or lasting (log), and beyond all neighbours (but one of many).
GROSS, GROSS_SPREADS, GROSS_BEYOND = 0.85, 3.0, 0.3


@dataclass(frozen=True)
class Departure:
    """One pollutant at every station and hour, each (T, S).

    ``logs`` and their median ``last`` hours, the neighbourhood ``near``; departures from its median ``now``, ``usual``
    with its ``spread``, and ``recent``, the median of the hours before.
    """

    logs: Float
    last: Float
    near: Around
    now: Float
    usual: Float
    spread: Float
    recent: Float


def departures_of(time: NDArray[np.datetime64], logs: Float, near: Around) -> Departure:
    """Departures from the neighbours' median; usual 0 and spread the upper limit where the history is too short."""
    now = logs - near.median
    usual = by_day(time, now, lambda week: median_of(week, HISTORY_LEAST))
    spread = by_day(time, now, _spread)
    known = np.isfinite(usual)
    usual = np.where(known, np.clip(usual, -EXPLAINED, EXPLAINED), np.float32(0))
    spread = np.clip(np.where(known, spread, SPREAD[1]), *SPREAD).astype("float32")
    last = recent_median(logs, RECENT_HOURS)
    return Departure(logs, last, near, now, usual, spread, recent_median(now, RECENT_HOURS))


def _spread(week: Float) -> Float:
    """1.48 times the median absolute deviation: the standard deviation of a normal distribution; (S,)."""
    return np.float32(1.4826) * median_of(np.abs(week - median_of(week, HISTORY_LEAST)), HISTORY_LEAST)


def spikes(found: Departure, least: float | Float) -> Mask:
    """Values that leave their neighbours and their own last hours at once; without neighbours, their last hours.

    `least` is the smallest departure (log) that is a spike, see `SPIKE`.
    """
    limit = np.maximum(least, SPIKE_SPREADS * found.spread)
    before = np.where(np.isfinite(found.recent), found.recent, found.usual)
    jump, unusual = found.now - before, found.now - found.usual
    up = (jump > limit) & (unusual > limit) & (found.logs > found.near.high + SPIKE_BEYOND)
    down = (jump < -limit) & (unusual < -limit) & (found.logs < found.near.low - SPIKE_BEYOND)
    return up | down | _spikes_alone(found)


def _spikes_alone(found: Departure) -> Mask:
    """Jumps of stations that have too few neighbours for a median, unless what neighbour there is reports alike."""
    alone, jump = np.isnan(found.near.median), _jump(found)
    up = (jump > SPIKE_ALONE) & ~(found.logs <= found.near.high + SPIKE_BEYOND)
    return alone & (up | ((jump < -SPIKE_ALONE) & ~(found.logs >= found.near.low - SPIKE_BEYOND)))


def confirmed(found: Departure, witness: Departure) -> Mask:
    """Departures, and jumps, that another instrument of the station shows too, half as large (log) at least."""
    return _agree(found.now - found.usual, witness.now - witness.usual) | _agree(_jump(found), _jump(witness))


def caution(witness: Departure) -> Float:
    """What is added to the least departure where the witness is silent, (T, S)."""
    return np.where(np.isnan(witness.logs), np.float32(UNWITNESSED), np.float32(0))


def in_dust(found: Mapping[str, Departure]) -> Float:
    """What is added to the least departure where the neighbours report dust, (T, S)."""
    fine, coarse = (np.exp(found[name].near.median) for name in ("pm2p5", "pm10"))
    return np.where((coarse > DUST_RATIO * fine) & (coarse > DUST_LEVEL), np.float32(DUST), np.float32(0))


def _agree(size: Float, other: Float) -> Mask:
    return np.sign(size) * other > WITNESS * np.abs(size)


def _jump(found: Departure) -> Float:
    """Logs less their median of the hours before."""
    return found.logs - found.last


def gross(found: Departure, least: float | Float = GROSS) -> Mask:
    """Values so far from their neighbours that neither the station's usual departure nor any neighbour explains it."""
    limit = np.maximum(least, GROSS_SPREADS * found.spread)
    unusual = found.now - found.usual
    up = (unusual > limit) & (found.logs > found.near.high + GROSS_BEYOND)
    return up | ((unusual < -limit) & (found.logs < found.near.low - GROSS_BEYOND))


def misfit(found: Mapping[str, Departure]) -> Float:
    """How far a station is from what is usual for it beside its neighbours: mean over pollutants, (T, S) log."""
    sizes = np.stack([np.abs(one.now - one.usual) for one in found.values()])
    count = np.isfinite(sizes).sum(axis=0)
    return np.where(count > 0, np.nansum(sizes, axis=0) / np.maximum(count, 1), np.float32(np.nan))


def unit_jumps(pollutant: str, time: NDArray[np.datetime64], values: Float, trusted: Float, near: Around) -> Mask:
    """Values about 1000 times too large or small for the station's own last week and for its neighbours.

    Parameters
    ----------
    values : (T, S) as reported.
    trusted : the same, NaN outside the measuring range and where 0 or less.
    near : neighbourhood of log(trusted + offset).
    """
    least = _LEAST_LEVEL[pollutant]
    own = by_day(time, trusted, lambda week: median_of(week, HISTORY_LEAST))
    others = np.exp(near.median) - LOG_OFFSET[pollutant]
    positive = np.where(values > 0, values, np.float32(np.nan))
    own_ratio, ratio = (_ratio(positive, np.where(of >= least, of, np.nan)) for of in (own, others))
    limit, with_neighbours = np.log(UNIT_FACTOR), np.log(UNIT_FACTOR_NEIGHBOURS)
    of_own = (own_ratio > limit) & (np.isnan(ratio) | (ratio > with_neighbours))
    return of_own | ((ratio > limit) & ~(own_ratio < with_neighbours))


def _ratio(values: Float, level: Float) -> Float:
    """Size of log(values / level)."""
    return np.abs(np.log(values / level))
