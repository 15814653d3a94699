"""What quality control found in a month, small enough to keep for every month of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipeline.contract import HOUR, POLLUTANTS
from pipeline.qc.clocks import between, cycles
from pipeline.qc.departure import LOG_OFFSET
from pipeline.qc.flags import FLAGS, INVALID, Bits, Float, summary
from pipeline.qc.neighbours import around, nearest_columns

#: Flags that concern a station as a whole.
STATION_FLAGS = ("duplicate_station", "time_shift", "moved")
#: In a shorter month of a run the clock is judged by the days before it too.
CLOCK_DAYS = 7
#: Decimals of degrees within which two stations stand at one place (11 m).
_PLACE_DECIMALS = 4
#: Share of its hours that a station must have reported to be anyone's example.
_EXAMPLE_SHARE = 0.3


@dataclass(frozen=True)
class Record:
    """One month.

    Attributes
    ----------
    counts : flags by pollutant, see `pipeline.qc.flags.summary`.
    daily : PM2.5 by day (index): ``reported``, ``invalid`` and the count of each flag.
    stations : one row a station (index): ``lon``, ``lat``, then PM2.5 as in `daily`.
    shares : share of the PM2.5 values reported that are invalid, days x stations; NaN where none was reported.
    concerned : hours of `STATION_FLAGS`: ``station``, ``flag``, ``first``, ``last``, ``hours``, ``beside`` (whom a
        copy repeats).
    one_place : stations at one coordinate, which report different series: ``stations``, ``lon``, ``lat``.
    example : of the month's worst station that has neighbours, by hour: ``pm2p5``, ``neighbours`` (median), ``bits``.
    cycles, between : clocks, see `pipeline.qc.clocks`.
    """

    counts: pd.DataFrame
    daily: pd.DataFrame
    stations: pd.DataFrame
    shares: pd.DataFrame
    concerned: pd.DataFrame
    one_place: pd.DataFrame
    example: pd.DataFrame
    cycles: pd.DataFrame
    between: pd.DataFrame


def record(flagged: xr.Dataset, start: np.datetime64) -> Record:
    """Sum up a flagged StationCube from `start` on; where that is a few days, clocks are judged by those before too."""
    own = flagged.sel(time=slice(start, None))
    bits, names = own["qc_pm2p5"].to_numpy(), own["station"].values
    day = own["time"].values.astype("datetime64[D]")
    days, number = np.unique(day, return_inverse=True)
    by_day = np.stack([_tally(bits[number == n], axis=0) for n in range(len(days))])  # (days, columns, S)
    stations = pd.DataFrame(by_day.sum(axis=0).T, names, COLUMNS)
    stations = stations.assign(lon=own["lon"].values, lat=own["lat"].values)
    return Record(
        counts=summary(own),
        daily=pd.DataFrame(by_day.sum(axis=2), days, COLUMNS),
        stations=stations,
        shares=pd.DataFrame(_share(by_day[:, 1], by_day[:, 0]), days, names),
        concerned=pd.DataFrame(_concerned(own), columns=["station", "flag", "first", "last", "hours", "beside"]),
        one_place=pd.DataFrame(_one_place(stations), columns=["stations", "lon", "lat"]),
        example=_example(own, stations),
        cycles=cycles(flagged if len(days) < CLOCK_DAYS else own),
        between=between(flagged),
    )


#: Columns of `Record.daily` and `Record.stations`.
COLUMNS = ["reported", "invalid", *FLAGS]


def _tally(bits: Bits, axis: int) -> NDArray[np.int64]:
    """Values reported, those of them invalid, and those with each flag, along an axis; (columns, ...)."""
    reported = bits & FLAGS["missing"] == 0
    each = [((bits & bit) != 0).sum(axis=axis) for bit in FLAGS.values()]
    return np.stack([reported.sum(axis=axis), (reported & (bits & INVALID != 0)).sum(axis=axis), *each])


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> Float:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan).astype("float32")


def _concerned(own: xr.Dataset) -> Iterator[tuple[object, ...]]:
    time, names = own["time"].values, own["station"].values
    every = np.bitwise_or.reduce([own[f"qc_{name}"].to_numpy() for name in POLLUTANTS])
    for flag in STATION_FLAGS:
        mask = every & FLAGS[flag] != 0
        for column in np.flatnonzero(mask.any(axis=0)):
            hours = np.flatnonzero(mask[:, column])
            beside = _whom(own, int(column), hours) if flag == "duplicate_station" else ""
            yield names[column], flag, time[hours[0]], time[hours[-1]] + HOUR, len(hours), beside


def _whom(own: xr.Dataset, column: int, hours: NDArray[np.int64]) -> str:
    """Station whose PM2.5 equals that of a copy in most of the copy's flagged hours."""
    values = own["pm2p5"].to_numpy()[hours]
    equal = (values == values[:, [column]]).sum(axis=0)
    equal[column] = -1
    return str(own["station"].values[int(equal.argmax())])


def _one_place(stations: pd.DataFrame) -> Iterator[tuple[str, float, float]]:
    """Stations that reported, by shared coordinate."""
    active = stations[stations["reported"] > 0]
    at = active[["lon", "lat"]].round(_PLACE_DECIMALS)
    for _, group in at.groupby(["lon", "lat"]):
        if len(group) > 1:
            yield ", ".join(group.index), float(group["lon"].iloc[0]), float(group["lat"].iloc[0])


def _example(own: xr.Dataset, stations: pd.DataFrame) -> pd.DataFrame:
    """Hourly series of the station with the largest invalid share, beside its neighbours' median (ug m-3)."""
    near = nearest_columns(own)
    usable = (stations["reported"] >= _EXAMPLE_SHARE * own.sizes["time"]).to_numpy() & (near[:, 0] < len(near))
    share = np.where(usable, stations["invalid"] / stations["reported"].clip(lower=1), -1)
    worst = int(share.argmax())
    offset = LOG_OFFSET["pm2p5"]
    sound = np.where(own["qc_pm2p5"].to_numpy() & INVALID == 0, own["pm2p5"].to_numpy(), np.float32(np.nan))
    median = np.exp(around(np.log(sound + np.float32(offset)), near[[worst]]).median[:, 0]) - offset
    columns = {"pm2p5": own["pm2p5"].to_numpy()[:, worst], "neighbours": median}
    columns["bits"] = own["qc_pm2p5"].to_numpy()[:, worst]
    table = pd.DataFrame(columns, pd.DatetimeIndex(own["time"].values))
    table.attrs = {"station": str(own["station"].values[worst]), "share": float(share[worst])}
    return table
