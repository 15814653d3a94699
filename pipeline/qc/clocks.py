"""Whether a network's clock is right: its mean daily cycle in local solar time beside the known one.

A zone that was declared wrongly moves every station of a network alike; no station then stands apart from its
neighbours. But ozone peaks in the early afternoon everywhere, and nitrogen dioxide and fine particles dip then.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipeline.qc.departure import LOG_OFFSET
from pipeline.qc.flags import FLAGS, INVALID
from pipeline.qc.neighbours import around, nearest_columns
from pipeline.qc.shift import shift

#: Mean daily cycles by local solar hour (hour of UTC + longitude / 15, rounded), log anomalies: China, all of 2019.
REFERENCE = {
    "o3": "-.251 -.281 -.309 -.338 -.375 -.421 -.443 -.356 -.168 .041 .221 .358 "
    ".452 .498 .510 .491 .426 .309 .173 .050 -.048 -.125 -.178 -.219",
    "no2": ".072 .045 .024 .009 .012 .050 .113 .135 .087 .005 -.087 -.177 "
    "-.249 -.271 -.257 -.215 -.127 -.003 .099 .151 .166 .161 .135 .103",
    "pm2p5": ".035 .025 .018 .011 .008 .017 .036 .057 .061 .044 .010 -.029 "
    "-.065 -.097 -.118 -.122 -.104 -.062 -.008 .038 .062 .067 .058 .047",
}
CYCLES = {name: np.array(text.split(), dtype="float64") for name, text in REFERENCE.items()}

#: Offsets tried, hours; positive when a network's times are late.
OFFSETS = np.arange(-11, 13)
#: An offset of so many hours is an error; smaller ones are season, latitude, sites.
ERROR_HOURS = 3
#: Least days to judge by, with several pollutants and with one (the first and last half day of a record do not count).
LEAST_DAYS, LEAST_DAYS_ONE = 2.0, 5.0
#: Least fit of the best offset, and by how much it must exceed the fit of none (see `judge`).
LEAST_FIT, MARGIN = 0.8, 0.5
#: Stations of two networks that must have each other near to be compared.
LEAST_STATIONS = 3


def clock(cube: xr.Dataset) -> pd.DataFrame:
    """Judge the clock of every network of a flagged StationCube; see `judge` for the columns."""
    return judge(cycles(cube))


def cycles(cube: xr.Dataset) -> pd.DataFrame:
    """Mean daily cycles of a flagged StationCube.

    Returns
    -------
    DataFrame with one row a network and pollutant: ``network``, ``pollutant``, ``stations``, ``days`` (hours with a
    mean / 24), and ``cycle``, (24,) log anomalies by local solar hour.
    """
    rows = [_cycle(cube, network, name) for network in networks(cube) for name in CYCLES]
    found = pd.DataFrame(rows, columns=["network", "pollutant", "stations", "days", "cycle"])
    return found[found["days"] > 0].reset_index(drop=True)


def networks(cube: xr.Dataset) -> list[str]:
    """Names before the colon of the stations' identifiers, sorted."""
    return sorted({name.partition(":")[0] for name in cube["station"].values.tolist()})


def _columns(cube: xr.Dataset, network: str) -> NDArray[np.int64]:
    of = [name.partition(":")[0] == network for name in cube["station"].values.tolist()]
    return np.flatnonzero(of)


def _cycle(cube: xr.Dataset, network: str, name: str) -> dict[str, object]:
    part = cube.isel(station=_columns(cube, network))
    logs = _logs(part, name)
    used = np.isfinite(logs).any(axis=0)
    hour = part["time"].values.astype("datetime64[h]").astype("int64") % 24
    found = list(_bands(logs[:, used], part["lon"].values[used], hour))
    stations, days, sums = (np.array(column) for column in zip(*found, strict=True)) if found else ([0], [0], [0])
    weight = np.asarray(stations, dtype="float64")
    cycle = (np.asarray(sums).reshape(len(weight), -1) * weight[:, None]).sum(axis=0) / max(weight.sum(), 1)
    key: dict[str, object] = {"network": network, "pollutant": name, "stations": int(weight.sum())}
    return key | {"days": float(np.max(days)), "cycle": cycle}


def _logs(cube: xr.Dataset, name: str) -> NDArray[np.float64]:
    """Logs of the values that nothing but their time speaks against, (T, S)."""
    sound = (cube[f"qc_{name}"].to_numpy() & (INVALID & ~FLAGS["time_shift"])) == 0
    return np.log(np.where(sound, cube[name].to_numpy(), np.nan) + LOG_OFFSET[name])


def _bands(
    logs: NDArray[np.float64], lon: NDArray[np.float64], hour: NDArray[np.int64]
) -> Iterator[tuple[int, float, NDArray[np.float64]]]:
    """Stations, days and cycle (24,) of the stations of each solar hour angle."""
    band = np.round(lon / 15).astype("int64")
    for one in np.unique(band):
        series = _detrended(_mean(logs[:, band == one]))
        known = np.isfinite(series)
        by_hour = [series[known & (hour == h)] for h in range(24)]
        if all(len(values) for values in by_hour):
            cycle = np.roll([values.mean() for values in by_hour], one)
            yield int((band == one).sum()), known.sum() / 24, cycle


def _mean(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over stations (T,) of each one's departure from its own mean, NaN where none reports."""
    known = np.isfinite(logs)
    own = np.where(known, logs, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    count = known.sum(axis=1)
    return np.where(count > 0, np.where(known, logs - own, 0).sum(axis=1) / np.maximum(count, 1), np.nan)


def _detrended(series: NDArray[np.float64]) -> NDArray[np.float64]:
    """A series less its mean of the day around each hour: what weather makes of a week is no daily cycle."""
    around_it = pd.Series(series).rolling(24, center=True, min_periods=18).mean().to_numpy()
    return series - around_it


def judge(found: pd.DataFrame) -> pd.DataFrame:
    """Compare mean daily cycles, of one or of many months, with the reference cycles.

    The fit at an offset is the sum over pollutants of -log(1 - rho^2), rho the correlation of the 24 hours where
    positive.

    Parameters
    ----------
    found : from `cycles`; cycles of one network and pollutant are averaged by their days.

    Returns
    -------
    DataFrame with one row a network: ``stations``, ``days``, ``pollutants``, ``offset_hours`` (best; positive: times
    are late), ``fit``, ``fit_unshifted``, and ``verdict``: ``right``, ``wrong`` or ``cannot tell``.
    """
    rows = [_judge(str(network), part) for network, part in pooled(found).groupby("network")] if len(found) else []
    columns = ["stations", "days", "pollutants", "offset_hours", "fit", "fit_unshifted", "verdict"]
    return pd.DataFrame(rows, columns=["network", *columns]).set_index("network")


def pooled(found: pd.DataFrame) -> pd.DataFrame:
    """One row a network and pollutant: cycles averaged by their days, days added up."""
    rows = [
        {"network": network, "pollutant": name, "stations": part["stations"].max(), "days": part["days"].sum()}
        | {"cycle": np.average(np.stack(part["cycle"].tolist()), axis=0, weights=part["days"])}
        for (network, name), part in found.groupby(["network", "pollutant"], sort=False)
    ]
    return pd.DataFrame(rows)


def _judge(network: str, part: pd.DataFrame) -> dict[str, object]:
    known = zip(part["cycle"].tolist(), part["pollutant"].tolist(), strict=True)
    fits = np.sum([_fits(cycle, CYCLES[name]) for cycle, name in known], axis=0)
    best, none = int(np.argmax(fits)), int(np.flatnonzero(OFFSETS == 0)[0])
    days, offset = float(part["days"].max()), int(OFFSETS[best])
    return {
        "network": network,
        "stations": int(part["stations"].max()),
        "days": round(days, 1),
        "pollutants": " ".join(part["pollutant"]),
        "offset_hours": offset,
        "fit": round(float(fits[best]), 2),
        "fit_unshifted": round(float(fits[none]), 2),
        "verdict": _verdict(days, len(part), offset, float(fits[best]), float(fits[none])),
    }


def _verdict(days: float, pollutants: int, offset: int, fit: float, unshifted: float) -> str:
    least = LEAST_DAYS if pollutants > 1 else LEAST_DAYS_ONE
    if days < least or fit < LEAST_FIT:
        return "cannot tell"
    if abs(offset) < ERROR_HOURS:
        return "right"
    return "wrong" if fit - unshifted > MARGIN else "cannot tell"


def _fits(cycle: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    rho = np.array([np.corrcoef(np.roll(cycle, -offset), reference)[0, 1] for offset in OFFSETS])
    return -np.log1p(-(np.clip(np.nan_to_num(rho), 0, 0.98) ** 2))


def between(cube: xr.Dataset) -> pd.DataFrame:
    """Compare the clocks of networks that overlap in space.

    Returns
    -------
    DataFrame with one row an ordered pair of networks: ``network``, ``beside``, ``stations`` compared,
    ``offset_hours`` (median of the stations' best lags; positive: the first network's times are late) and ``share``
    of the stations whose best lag lies within an hour of it.
    """
    pairs = [(one, other) for one in networks(cube) for other in networks(cube) if one != other]
    rows = [row for one, other in pairs if (row := _beside(cube, one, other))]
    return pd.DataFrame(rows, columns=["network", "beside", "stations", "offset_hours", "share"])


def _beside(cube: xr.Dataset, one: str, other: str) -> dict[str, object] | None:
    own, count = _columns(cube, one), cube.sizes["station"]
    near = nearest_columns(cube)[own]
    near = np.sort(np.where(np.isin(near, _columns(cube, other)), near, count), axis=1)
    logs = {name: _logs(cube, name).astype("float32") for name in CYCLES}
    medians = {name: around(series, near).median for name, series in logs.items()}
    found = shift({name: series[:, own] for name, series in logs.items()}, medians)
    judged = found.pollutants > 0
    if judged.sum() < LEAST_STATIONS:
        return None
    offset = float(np.median(found.lag[judged]))
    share = float(np.mean(np.abs(found.lag[judged] - offset) <= 1))
    return {"network": one, "beside": other, "stations": int(judged.sum()), "offset_hours": offset, "share": share}
