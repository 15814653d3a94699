"""StationCube -> AQ-Net -> field on a grid or estimates at points: where the pipeline meets the network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from model import background, checkpoint, infer
from model.aqnet import AQNet
from model.outlook import OutlookNet
from model.outlook_infer import outlook_blocks
from model.outlook_inputs import HISTORY
from model.windows import Estimate, Observations, Points
from pipeline import covariates, qc
from pipeline.contract import HOUR, POLLUTANTS, QUALITY_BITS, STREAMS, check_station_cube
from pipeline.errors import ConfigError, InputError
from pipeline.grid import Grid, relief, terrain
from pipeline.harmonise import to_cube
from pipeline.products import export
from pipeline.sources import table

log = logging.getLogger("aqnet")

#: Hours before a UTC day that its estimates depend on, at most, and of the final stream hours after it.
LEAD_HOURS = TAIL_HOURS = 48

#: Published quantiles and the variables they go to.
QUANTILES = {"pm2p5_p05": 0.05, "pm2p5_p50": 0.5, "pm2p5_p95": 0.95}

#: Farther than this from a valid observation an estimate is marked as extrapolated: training hardly reached farther.
EXTRAPOLATED_KM = 200.0

#: With fewer valid observations in the hour every estimate is marked.
FEW_OBSERVATIONS = 10


@dataclass(frozen=True)
class Network:
    """A trained network and the SHA-256 of its weights."""

    aqnet: AQNet
    digest: str


def load(weights: Path | None = None) -> Network:
    """Load weights, the shipped ones by default.

    Raises
    ------
    ConfigError
        Naming the file, when it does not hold weights of this network.
    """
    path = weights or checkpoint.DEFAULT
    try:
        network = Network(checkpoint.load(path), checkpoint.digest(path))
    except ValueError as problem:
        raise ConfigError(str(problem)) from problem
    for way, found in (("back", network.aqnet.config.lead_hours), ("ahead", network.aqnet.config.tail_hours)):
        if found > LEAD_HOURS:
            raise ConfigError(f"{path}: expected a network that looks {way} {LEAD_HOURS} hours or less; found {found}")
    return network


def estimator(
    network: Network, known: Sequence[covariates.Field] = (), mode: str = "interim"
) -> Callable[[Observations, Points], Estimate]:
    """The network, with covariates where there are any, as an estimator like those of `model.baseline`."""
    if not known:
        return partial(infer.estimate, network.aqnet, mode=mode)
    return lambda record, places: background.estimate(
        network.aqnet, record, places, _sample(record, places, known, mode)[0], mode
    )


def observations(cube: xr.Dataset) -> Observations:
    """Arrays of a flagged StationCube, rejected values as NaN."""
    values = np.stack([qc.valid(cube, name).values for name in POLLUTANTS]).astype(np.float32)
    place = (cube[name].values.astype(np.float64) for name in ("lon", "lat", "elevation"))
    lon, lat, elevation = place
    return Observations(hours_since_1970(cube["time"].values), values, lon, lat, elevation, relief(lon, lat))


def hours_since_1970(time: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """Whole hours since 1970-01-01T00 UTC."""
    return time.astype("datetime64[h]").astype(np.int64)


def fields(
    cube: xr.Dataset,
    grid: Grid,
    start: np.datetime64,
    end: np.datetime64,
    network: Network,
    known: Sequence[covariates.Field] = (),
    stream: str = "interim",
) -> Iterator[xr.Dataset]:
    """Estimate every land cell, one UTC day at a time, so that memory does not grow with the period.

    Parameters
    ----------
    cube : flagged StationCube over [start, end) and the `LEAD_HOURS` before; for the final stream the hours up to
        `last_used` of the end, as far as there are any.
    grid : target grid.
    start, end : hours to make, UTC, half open.
    network : from `load`.
    known : covariates, see `model.background`; without any, nothing of that is run.
    stream : ``interim`` or ``final``.

    Yields
    ------
    Dataset
        The hours of a UTC day as `pipeline.contract.check_cube` wants them; float fields are NaN at sea.
    """
    check_station_cube(cube)
    record = observations(cube.sel(time=slice(None, last_used(end, stream) - HOUR)))
    places = _land(grid)
    first, stop = (int(n) for n in np.searchsorted(cube["time"].values, np.array([start, end], cube["time"].dtype)))
    for block in _blocks(network, record, places, slice(first, stop), known, stream):
        yield _field(block, cube["time"].values[block.hours], grid, stream)


def _land(grid: Grid) -> Points:
    """Centres of the land cells."""
    land = grid.land.ravel()
    return Points(*(axis[land] for axis in grid.points()))


def _blocks(
    network: Network,
    record: Observations,
    places: Points,
    hours: slice,
    known: Sequence[covariates.Field],
    mode: str = "interim",
) -> Iterator[infer.Block]:
    """Estimates of some hours of the record, a UTC day at a time, with covariates where there are any."""
    levels = tuple(QUANTILES.values())
    if not known:
        yield from infer.day_blocks(network.aqnet, record, places, levels, hours.start, hours.stop, mode)
        return
    sampled, at_places = _sample(record, places, known, mode)
    yield from background.day_blocks(network.aqnet, record, places, levels, sampled, hours.start, hours.stop, mode)
    at_places.warn("estimates")


def _sample(
    record: Observations, places: Points, known: Sequence[covariates.Field], mode: str
) -> tuple[background.Covariates, covariates.Sampler]:
    """Covariates at the stations of a record and at places; the latter are read as they are asked for."""
    two_sided = mode == "final"
    at_stations = covariates.Sampler(known, record.lon, record.lat, two_sided)(record.hours)
    at_places = covariates.Sampler(known, places.lon, places.lat, two_sided)
    return background.Covariates(at_stations, lambda hours: at_places(record.hours[hours])), at_places


def _field(block: infer.Block, time: NDArray[np.datetime64], grid: Grid, stream: str) -> xr.Dataset:
    """One block on the grid."""
    dims, land = ("time", *grid.spatial), grid.land.ravel()
    shape = (len(time), *grid.shape)

    def on_grid(values: NDArray[np.float32]) -> NDArray[np.float32]:
        whole = np.full((len(time), land.size), np.nan, np.float32)
        whole[:, land] = values
        return whole.reshape(shape)

    given = dict(zip(QUANTILES, block.quantiles, strict=True))
    given = {"pm2p5": block.mean, **given, "nearest_observation_distance": block.distance}
    data = {name: (dims, on_grid(values)) for name, values in given.items()}
    hourly = {"stream": np.full(len(time), STREAMS[stream], "int8"), "revision": np.zeros(len(time), "int32")}
    hourly["observation_count"] = block.count.astype("int32")
    flags = (dims, _quality(data["nearest_observation_distance"][1], block.count, grid.land))
    coords = {"time": time, grid.spatial[0]: grid.y, grid.spatial[1]: grid.x}
    return xr.Dataset(data | {"quality_flag": flags} | {k: (("time",), v) for k, v in hourly.items()}, coords)


def _quality(distance: NDArray[np.float32], count: NDArray[np.int64], land: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Bits of `QUALITY_BITS` (time, rows, columns)."""
    flag = np.zeros(distance.shape, np.uint8)
    flag[:, ~land] |= QUALITY_BITS["sea"]
    flag[land & ~(distance <= EXTRAPOLATED_KM)] |= QUALITY_BITS["extrapolated"]
    flag[(count < FEW_OBSERVATIONS)[:, None, None] & land] |= QUALITY_BITS["few_observations"]
    return flag


def first_hour(start: np.datetime64) -> np.datetime64:
    """First hour of observations that an estimate for `start` depends on.

    Before its UTC day lies what the network looks back to, and before that what the flags of those hours look back to.
    """
    return first_used(start) - qc.LOOKBACK_HOURS * HOUR


def first_used(start: np.datetime64) -> np.datetime64:
    """First hour whose flagged values an estimate for `start` uses: what the network looks back to."""
    return start.astype("datetime64[D]").astype("datetime64[h]") - LEAD_HOURS * HOUR


def last_used(end: np.datetime64, stream: str) -> np.datetime64:
    """Hour after the last that estimates before `end` depend on: of the final stream, after the tail of its UTC day."""
    if stream != "final":
        return end
    return -(-end.astype("datetime64[h]").astype(np.int64) // 24) * 24 * HOUR + np.datetime64(TAIL_HOURS, "h")


# ---- hours ahead ----


@dataclass(frozen=True)
class Outlook:
    """A trained outlook network, the name of its weights' file and their SHA-256."""

    network: OutlookNet
    name: str
    digest: str


def load_outlook(weights: Path | None = None) -> Outlook:
    """Load weights of the outlook; as `load`."""
    path = weights or checkpoint.DEFAULT_OUTLOOK
    try:
        return Outlook(checkpoint.load_outlook(path), path.name, checkpoint.digest(path))
    except ValueError as problem:
        raise ConfigError(str(problem)) from problem


def outlook_fields(cube: xr.Dataset, grid: Grid, hours: int, outlook: Outlook) -> Iterator[xr.Dataset]:
    """Forecast every land cell for some hours after the end of a StationCube, one UTC day at a time.

    Parameters
    ----------
    cube : flagged StationCube that ends at the issue time; its last 336 hours are read, fewer where it is shorter.
    grid : target grid.
    hours : hours to forecast, 1 to 168.
    outlook : from `load_outlook`.

    Yields
    ------
    Dataset
        As `fields`, of stream ``outlook``. `nearest_observation_distance` is that to the nearest station with a valid
        PM2.5 in the hours read, `observation_count` the number of these stations: no hour ahead has observations.
    """
    record, levels = observations(check_station_cube(cube)), tuple(QUANTILES.values())
    ahead = cube["time"].values[0] + np.arange(len(record.hours) + hours) * HOUR
    for block in outlook_blocks(outlook.network, record, _land(grid), levels, len(record.hours), hours):
        yield _field(block, ahead[block.hours], grid, "outlook")


def outlook_first_hour(issue: np.datetime64) -> np.datetime64:
    """First hour of observations that a forecast issued at `issue` depends on; as `first_hour`."""
    return outlook_first_used(issue) - qc.LOOKBACK_HOURS * HOUR


def outlook_first_used(issue: np.datetime64) -> np.datetime64:
    """First hour whose flagged values a forecast issued at `issue` uses."""
    return issue - HISTORY * HOUR


# ---- at points ----


def estimate(
    input_path: Path,
    points_path: Path,
    start: np.datetime64,
    end: np.datetime64,
    output: Path,
    weights: Path | None = None,
) -> Path:
    """Estimate PM2.5 at points for every hour in [start, end) and write a table: `aqnet estimate`.

    Parameters
    ----------
    input_path : StationTable, CSV or Parquet.
    points_path : CSV with ``station, lon, lat`` and, where known, ``elevation``.
    output : ``.csv``, ``.parquet`` or ``.nc``; columns time, station, pm2p5, pm2p5_p05, pm2p5_p50, pm2p5_p95,
        nearest_observation_distance.

    Raises
    ------
    InputError, ConfigError
        Naming the file and what is wrong with it.
    """
    export.check_table_name(output)
    network = load(weights)
    points = table.read_points(points_path)
    observed, lead = table.read_table(input_path), first_hour(start)
    if not observed["time"].between(lead, end, inclusive="left").any():
        held = f"{observed['time'].min()} to {observed['time'].max()}"
        raise InputError(f"{input_path}: expected observations for {start} to {end} UTC; found hours {held}")
    cube = qc.flag(to_cube([observed], lead, end), first_used(start))
    if not np.isfinite(qc.valid(cube, "pm2p5").values).any():
        raise InputError(f"{input_path}: expected valid PM2.5 from {lead} to {end} UTC; found none")
    estimates = at_points(cube, points, start, network)
    _warn_of_extrapolation(estimates)
    return export.write_table(estimates, output, points)


def _warn_of_extrapolation(estimates: pd.DataFrame) -> None:
    missing = int(estimates["pm2p5"].isna().sum())
    if missing:
        log.warning("%d of %d estimates are empty: no station near enough reported then", missing, len(estimates))
    far = int((estimates["nearest_observation_distance"] > EXTRAPOLATED_KM).sum())
    if far:
        text = "%d of %d estimates are more than %.0f km from any observation: their intervals are extrapolated"
        log.warning(text, far, len(estimates), EXTRAPOLATED_KM)


def at_points(
    cube: xr.Dataset,
    points: pd.DataFrame,
    start: np.datetime64,
    network: Network,
    known: Sequence[covariates.Field] = (),
) -> pd.DataFrame:
    """Estimate the hours of a flagged StationCube from `start` at points (columns station, lon, lat[, elevation]).

    Returns
    -------
    DataFrame
        One row an hour and point, by time and then in the points' order; ug m-3 and km.
    """
    record = observations(cube)
    first = int(np.searchsorted(cube["time"].values, start.astype(cube["time"].dtype)))
    lon, lat = points["lon"].to_numpy(float), points["lat"].to_numpy(float)
    ground = terrain(lon, lat).astype(float)
    if "elevation" in points:
        ground = points["elevation"].fillna(pd.Series(ground, points.index)).to_numpy(float)
    places = Points(lon, lat, ground, relief(lon, lat))
    blocks = list(_blocks(network, record, places, slice(first, len(record.hours)), known))
    columns = {"pm2p5": np.concatenate([block.mean for block in blocks])}
    for n, name in enumerate(QUANTILES):
        columns[name] = np.concatenate([block.quantiles[n] for block in blocks])
    columns["nearest_observation_distance"] = np.concatenate([block.distance for block in blocks])
    time = cube["time"].values[first:]
    keys = {"time": np.repeat(time, len(points)), "station": np.tile(points["station"].to_numpy(), len(time))}
    return pd.DataFrame(keys | {name: values.ravel() for name, values in columns.items()})
