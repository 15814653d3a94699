"""A seeded twin experiment: a known PM2.5 field, and what a CNEMC-like network would have reported of it.

Everything written here is SIMULATED. The pipeline's default run uses it, so a fresh checkout needs no download and
every estimate can be scored against the field that made the observations. `pipeline.twin.truth` makes the field; this
module makes the network: stations in cities, representativeness noise, six pollutants, gaps, planted faults, and the
files of the CNEMC archive. Built and compared with the real network in ``docs/explanation/simulation.md``.

Arrays of observations have shape (T hours, S stations).
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import netCDF4
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy import signal

from pipeline.atomic import replacing
from pipeline.contract import POLLUTANTS, STANDARD_NAMES, TIME_UNITS
from pipeline.errors import ConfigError, InputError
from pipeline.grid import Grid, is_land
from pipeline.twin.truth import Bbox, Cities, Float, Truth, found_cities, local_solar_hour, season

logger = logging.getLogger("aqnet")

Hours = NDArray[np.datetime64]

#: Hours of observations before the first hour of the truth, so that a run has its lead.
LEAD = np.timedelta64(96, "h")
#: The hour that a Beijing label (date D, hour h) ends at starts, in UTC, at D + h - 9 h.
LABEL = np.timedelta64(9, "h")

#: CNEMC has used 1001A to 3663A; simulated codes are 9001A to 9999A.
FIRST_CODE, MAX_STATIONS = 9001, 999
STATIONS_PER_CITY, TOWNS_PER_CITY, STATION_SPREAD_KM = 4.5, 2.0, 5.0

#: Representativeness of one station in log(PM2.5 + 1): standard deviation that persists, and that fades with an
#: e-folding time of 6 h. Noise of the instrument, ug m-3. Together 0.22 in the log, the nugget of the real network.
PERSISTENT_STD, FADING_STD, FADING_HOURS, INSTRUMENT_STD = 0.07, 0.15, 6.0, 2.5

SIMULATED = "SIMULATED by aqnet simulate: a made-up field and a made-up network, no measurement of anything"


@dataclass(frozen=True)
class Simulation:
    """Where one twin experiment lies: the archive folder, the station list, the planted faults and the truth.

    ``start`` and ``end`` are UTC hours, half open, of the truth; the archive begins 96 h earlier.
    """

    archive: Path
    stations: Path
    faults: Path
    truth: Path
    start: np.datetime64
    end: np.datetime64
    bbox: Bbox


@dataclass(frozen=True)
class _Gas:
    """How a pollutant goes with PM2.5: ``median exp(slope (l - 3.9) + diurnal + noise)``, contract units.

    ``peaks`` are (amplitude, hours in the cycle, local solar hour of the maximum); ``season`` multiplies PM2.5's.
    """

    median: float
    slope: float
    noise: float
    peaks: tuple[tuple[float, float, float], ...]
    season: float
    decimals: int = 0


_GASES = {
    "so2": _Gas(13.0, 0.22, 0.62, ((0.10, 24, 10.0),), 0.5),
    "no2": _Gas(41.0, 0.40, 0.32, ((0.20, 24, 22.5), (0.18, 12, 8.0)), 0.3),
    "o3": _Gas(21.0, -0.40, 0.55, ((0.52, 24, 14.5), (0.18, 12, 2.5)), -1.6),
    "co": _Gas(0.98, 0.42, 0.33, ((0.12, 24, 4.0), (0.12, 12, 8.5)), 0.2, decimals=1),
}
_COARSE = _Gas(30.0, 0.25, 0.75, ((0.10, 24, 18.0),), 0.0)

#: Names of the archive's rows, in its order.
_ROWS = {"PM2.5": "pm2p5", "PM10": "pm10", "SO2": "so2", "NO2": "no2", "O3": "o3", "CO": "co"}


@dataclass(frozen=True)
class _Fault:
    """A planted fault: what it does to a run of hours, given (PM2.5, the pollutant's own values) of the run, (h,)."""

    name: str
    pollutant: str
    hours: tuple[int, int]
    effect: Callable[[Float, Float], Float]


_FAULTS = (
    _Fault("stuck_sensor", "pm2p5", (12, 36), lambda _, own: np.full_like(own, np.nanmedian(own))),
    _Fault("zero_as_missing", "pm2p5", (3, 8), lambda _, own: np.zeros_like(own)),
    _Fault("spike", "pm2p5", (1, 1), lambda _, own: 8 * np.nan_to_num(own, nan=50.0) + 400),
    _Fault("pm10_below_pm2p5", "pm10", (6, 24), lambda pm2p5, _: np.floor(0.6 * pm2p5)),
    _Fault("unit_error", "co", (12, 36), lambda _, own: 1000 * own),
    _Fault("outage", "all", (12, 72), lambda _, own: np.full_like(own, np.nan)),
)
#: Share of stations that one fault strikes; share of values, and of a station's whole hours, that are just missing.
_FAULT_SHARE, _GAP_VALUE, _GAP_HOUR = 0.01, 0.008, 0.010


def simulate(
    out: Path,
    seed: int = 1,
    start: str | datetime | np.datetime64 = "2019-12-01",
    days: int = 8,
    bbox: Bbox = (105.0, 32.0, 125.0, 45.0),
    n_stations: int = 590,
    truth_resolution: float = 0.1,
) -> Simulation:
    """Write a twin experiment into ``out``; the same arguments write the same bytes.

    Parameters
    ----------
    out : folder to write; files of an earlier simulation in it are replaced.
    seed : seed of every random draw.
    start : first UTC hour of the truth, a whole hour; observations begin 96 h before it.
    days : length of the truth.
    bbox : (W, S, E, N), degrees; centres of the outermost cells of the truth.
    n_stations : stations of the network, at most 999.
    truth_resolution : cell size of ``truth.nc``, degrees.

    Raises
    ------
    ConfigError
        When an argument makes no simulation; nothing is written.
    """
    begin, grid = _check(start, days, n_stations), Grid(bbox, truth_resolution)
    places, network, weather, noise = (np.random.default_rng([seed, part]) for part in range(4))
    cities = found_cities(places, grid.bbox, int(TOWNS_PER_CITY * max(1, n_stations / STATIONS_PER_CITY)))
    stations = _place_stations(network, cities, n_stations, grid.bbox)
    done = Simulation(
        archive=out / "archive",
        stations=out / "stations.csv",
        faults=out / "faults.csv",
        truth=out / "truth.nc",
        start=begin,
        end=begin + np.timedelta64(days, "D"),
        bbox=grid.bbox,
    )
    done.archive.mkdir(parents=True, exist_ok=True)
    logger.info("SIMULATED data: %d stations, %s to %s UTC, seed %d, in %s", n_stations, begin, done.end, seed, out)
    times = _hours(done)
    field = _write_truth(done, Truth(weather, grid.bbox, cities), grid, stations, times, seed)
    observed = _observe(noise, field, times, stations)
    missing, faults = _spoil(noise, observed, times, stations["code"])
    _write_tables(done, stations, faults, seed)
    _write_archive(done.archive, observed, times, stations["code"].tolist(), missing)
    return done


def read_truth(path: Path) -> xr.DataArray:
    """Read the true PM2.5 of a simulation, (time, lat, lon), ug m-3, float32; its attrs say that it is simulated.

    Raises
    ------
    InputError
        When the file is not the truth of a simulation.
    """
    with xr.open_dataset(path) as data:
        if "simulated" not in data.attrs or "pm2p5" not in data:
            raise InputError(f"{path}: expected the truth.nc of aqnet simulate; found {', '.join(map(str, data))}")
        truth = data["pm2p5"].load()
    return truth.assign_attrs(truth.attrs | {"simulated": data.attrs["simulated"], "seed": data.attrs["seed"]})


def _check(start: str | datetime | np.datetime64, days: int, n_stations: int) -> np.datetime64:
    time = pd.Timestamp(start)
    time = time if time.tz is None else time.tz_convert(None)
    if time != time.floor("h"):
        raise ConfigError(f"start: expected a whole hour; found {start}")
    if days < 1:
        raise ConfigError(f"days: expected at least 1; found {days}")
    if not 1 <= n_stations <= MAX_STATIONS:
        raise ConfigError(f"stations: expected 1 to {MAX_STATIONS}; found {n_stations}")
    return time.to_datetime64().astype("M8[h]")


def _hours(simulation: Simulation) -> Hours:
    """UTC starts of all hours simulated: whole Beijing days around [start - 96 h, end): no file is cut."""
    first = (simulation.start - LEAD + LABEL).astype("M8[D]").astype("M8[h]")
    last = (simulation.end - np.timedelta64(1, "h") + LABEL).astype("M8[D]").astype("M8[h]")
    return np.arange(first - LABEL, last - LABEL + np.timedelta64(24, "h"))


def _place_stations(rng: np.random.Generator, cities: Cities, count: int, bbox: Bbox) -> pd.DataFrame:
    """Stations in the largest cities, about 5 km from their centres, on land: code, name, city, lon, lat."""
    monitored = min(len(cities.lon), max(1, round(count / STATIONS_PER_CITY)))
    share = cities.size[:monitored] / cities.size[:monitored].sum()
    city = np.repeat(np.arange(monitored), 1 + rng.multinomial(count - monitored, share))
    lon, lat = _near(rng, cities.lon[city], cities.lat[city], bbox)
    rank = pd.Series(city).groupby(city).cumcount() + 1
    return pd.DataFrame(
        {
            "code": [f"{FIRST_CODE + k}A" for k in range(count)],
            "name": [f"SIMULATED city {c + 1:03d} station {r}" for c, r in zip(city, rank, strict=True)],
            "city": [f"SIMULATED city {c + 1:03d}" for c in city],
            "lon": lon,
            "lat": lat,
        }
    )


def _near(rng: np.random.Generator, lon: Float, lat: Float, bbox: Bbox) -> tuple[Float, Float]:
    """Draw a point near each given one: the first of 20 tries on land and in the box; 4 decimals of a degree."""
    spread = STATION_SPREAD_KM / 111.2 * rng.standard_normal((2, 20, len(lon)))
    x = np.round(np.clip(lon + spread[0] / np.cos(np.radians(lat)), bbox[0], bbox[2]), 4)
    y = np.round(np.clip(lat + spread[1], bbox[1], bbox[3]), 4)
    first, each = is_land(x, y).argmax(axis=0), np.arange(len(lon))
    return x[first, each], y[first, each]


def _write_truth(done: Simulation, truth: Truth, grid: Grid, stations: pd.DataFrame, times: Hours, seed: int) -> Float:
    """Run the truth through all hours, write its [start, end) to the grid, and return ``l`` at the stations, (T, S)."""
    lon, lat, _, _ = grid.points()
    to_grid = truth.lattice.bilinear(lon, lat)
    to_stations = truth.lattice.bilinear(stations["lon"].to_numpy(), stations["lat"].to_numpy())
    at_stations = np.empty((len(times), len(stations)))
    with replacing(done.truth) as path:
        _truth_template(grid, done, seed).to_netcdf(path, engine="netcdf4")
        with netCDF4.Dataset(path, "a") as file:
            variable = _truth_variable(file, grid)
            for k, field in enumerate(truth.hours(times[0], len(times))):
                at_stations[k] = to_stations @ field.ravel()
                if done.start <= times[k] < done.end:
                    row = int((times[k] - done.start).astype(int))
                    variable[row] = np.round(_concentration(to_grid @ field.ravel()), 2).reshape(grid.shape)
    return at_stations


def _concentration(log_value: Float) -> Float:
    """PM2.5 in ug m-3 from ``l``, at least 1."""
    return np.maximum(np.expm1(log_value), 1.0)


def _truth_template(grid: Grid, done: Simulation, seed: int) -> xr.Dataset:
    """Coordinates and attributes of ``truth.nc``."""
    hours = np.arange(done.start, done.end).astype("int32")
    attrs = {"standard_name": "time", "units": TIME_UNITS, "calendar": "standard", "axis": "T", "bounds": "time_bnds"}
    template = grid.coords().assign_coords(
        time=("time", hours, attrs), time_bnds=(("time", "bnds"), np.stack([hours, hours + 1], axis=-1))
    )
    template.attrs = {
        "Conventions": "CF-1.11, ACDD-1.3",
        "title": "SIMULATED hourly PM2.5: the truth of a twin experiment",
        "source": SIMULATED,
        "simulated": SIMULATED,
        "seed": seed,
        "station_representativeness_std": f"{PERSISTENT_STD} persistent, {FADING_STD} fading, in log(PM2.5 + 1)",
        "instrument_std": f"{INSTRUMENT_STD} ug m-3",
        "comment": "point values at the cell centres, defined over sea too; see docs/explanation/simulation.md",
    }
    for name in template.variables:
        template[name].encoding["_FillValue"] = None
        template[name].encoding["coordinates"] = None
    template.encoding["coordinates"] = None
    return template.reset_coords([name for name in template.coords if name not in template.dims])


def _truth_variable(file: netCDF4.Dataset, grid: Grid) -> netCDF4.Variable:
    variable = file.createVariable(
        "pm2p5", "f4", ("time", "lat", "lon"), zlib=True, complevel=4, shuffle=True, chunksizes=(1, *grid.shape)
    )
    variable.standard_name = STANDARD_NAMES["pm2p5"]
    variable.long_name = "SIMULATED PM2.5, the truth"
    variable.units = "ug m-3"
    variable.cell_methods = "time: mean area: point"
    variable.grid_mapping = "crs"
    return variable


def _noise(rng: np.random.Generator, hours: int, count: int, memory_h: float) -> Float:
    """AR(1) noise of unit variance in time, (hours, count), e-folding after ``memory_h``."""
    keep = np.exp(-1 / memory_h)
    fresh = rng.standard_normal((hours, count))
    fresh[1:] *= np.sqrt(1 - keep**2)
    return np.asarray(signal.lfilter([1.0], [1.0, -keep], fresh, axis=0))


def _observe(rng: np.random.Generator, field: Float, times: Hours, stations: pd.DataFrame) -> dict[str, Float]:
    """What faultless instruments would have recorded, a (T, S) array a pollutant, rounded as in the archive."""
    hours, count = field.shape
    own = PERSISTENT_STD * rng.standard_normal(count) + FADING_STD * _noise(rng, hours, count, FADING_HOURS)
    seen = field + own
    lon = stations["lon"].to_numpy()
    pm2p5: Float = np.maximum(_concentration(seen) + INSTRUMENT_STD * rng.standard_normal((hours, count)), 1.0)
    coarse = _gas(rng, _COARSE, seen, times, lon)
    observed: dict[str, Float] = {
        "pm2p5": np.round(pm2p5),
        "pm10": np.round(pm2p5 * rng.lognormal(0, 0.12, pm2p5.shape) + coarse),
    }
    for name, gas in _GASES.items():
        observed[name] = np.round(_gas(rng, gas, seen, times, lon), gas.decimals)
    return observed


def _gas(rng: np.random.Generator, gas: _Gas, seen: Float, times: Hours, lon: Float) -> Float:
    """Concentration of a pollutant beside ``l`` = ``seen``, (T, S), at least the smallest value that is reported."""
    hours, count = seen.shape
    place = 0.5**0.5 * gas.noise * rng.standard_normal(count)
    log_value = gas.slope * (seen - 3.9) + place + 0.5**0.5 * gas.noise * _noise(rng, hours, count, 8.0)
    solar = np.stack([local_solar_hour(time, lon) for time in times])
    for amplitude, period, peak in gas.peaks:
        log_value += amplitude * np.cos(2 * np.pi * (solar - peak) / period)
    log_value += gas.season * (np.array([season(time) for time in times])[:, None] - 0.42)
    return np.maximum(gas.median * np.exp(log_value), 10.0**-gas.decimals)


def _spoil(
    rng: np.random.Generator, observed: dict[str, Float], times: Hours, codes: pd.Series
) -> tuple[int, pd.DataFrame]:
    """Make gaps, plant faults, choose the hour the network is missing; changes ``observed`` in place.

    Returns the index of the missing hour and one row a fault: station, pollutant, fault, start, end (UTC, half open).
    """
    shape = observed["pm2p5"].shape
    silent = rng.random(shape) < _GAP_HOUR
    for values in observed.values():
        values[silent | (rng.random(shape) < _GAP_VALUE)] = np.nan
    missing = int(rng.integers(len(times) // 2, len(times) - 24))
    rows = [("*", "all", "network_missing", times[missing], times[missing] + np.timedelta64(1, "h"))]
    each = max(1, round(_FAULT_SHARE * len(codes)))
    struck = iter(rng.permutation(len(codes)))
    for fault in _FAULTS:
        for _, station in zip(range(each), struck, strict=False):
            first, last = _plant(rng, fault, observed, int(station), missing)
            rows.append((codes[station], fault.pollutant, fault.name, times[first], times[last]))
    return missing, pd.DataFrame(rows, columns=["station", "pollutant", "fault", "start", "end"])


def _plant(
    rng: np.random.Generator, fault: _Fault, observed: dict[str, Float], station: int, missing: int
) -> tuple[int, int]:
    """Apply a fault to a random run of hours of one station, and return that run's first and last + 1 index.

    A run of one hour avoids the hour that will be missing, so that every fault leaves a trace in the files.
    """
    length = int(rng.integers(fault.hours[0], fault.hours[1] + 1))
    allowed = np.setdiff1d(np.arange(len(observed["pm2p5"]) - length), [missing])
    first = int(rng.choice(allowed))
    run = (slice(first, first + length), station)
    for name in POLLUTANTS if fault.pollutant == "all" else (fault.pollutant,):
        observed[name][run] = fault.effect(observed["pm2p5"][run], observed[name][run])
    return first, first + length


def _write_tables(done: Simulation, stations: pd.DataFrame, faults: pd.DataFrame, seed: int) -> None:
    """Write the station list, the planted faults (times as ``YYYY-MM-DDTHH``) and a README that says SIMULATED."""
    with replacing(done.stations) as path:
        stations.to_csv(path, index=False, lineterminator="\n")
    with replacing(done.faults) as path:
        faults.to_csv(path, index=False, date_format="%Y-%m-%dT%H", lineterminator="\n")
    with replacing(done.truth.with_name("README.md")) as path:
        path.write_text(_README.format(simulated=SIMULATED, seed=seed, start=done.start, end=done.end), "utf-8")


_README = """# SIMULATED data

{simulated}. Seed {seed}; truth from {start} to {end} UTC.

- `archive/`: what the simulated network reported, laid out as the CNEMC archive (Beijing time, an hour's end)
- `stations.csv`: the simulated stations; codes 9001A and up belong to no real station
- `faults.csv`: faults planted in the archive (UTC starts, half open); random gaps are not listed
- `truth.nc`: the PM2.5 field that made the observations
"""


def _write_archive(folder: Path, observed: dict[str, Float], times: Hours, codes: list[str], missing: int) -> None:
    """Write one zip a month of one CSV a Beijing day, with fixed time stamps; zips of another run are removed."""
    for old in folder.glob("china_sites_*.zip"):
        old.unlink()
    labels = times + LABEL
    days = labels.astype("M8[D]")
    for month in np.unique(labels.astype("M8[M]")):
        inside = np.unique(days[labels.astype("M8[M]") == month])
        with replacing(folder / f"china_sites_{_digits(month)}.zip") as path, zipfile.ZipFile(path, "w") as archive:
            for day in inside:
                hours = [int(k) for k in np.flatnonzero(days == day) if k != missing]
                entry = zipfile.ZipInfo(f"china_sites_{_digits(day)}.csv", (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, "".join(_lines(observed, labels, codes, hours)))


def _lines(observed: dict[str, Float], labels: Hours, codes: list[str], hours: list[int]) -> Iterator[str]:
    """Lines of one daily file: the header, then a row an hour and pollutant; a missing value is empty."""
    yield ",".join(["date", "hour", "type", *codes]) + "\n"
    for k in hours:
        hour = (labels[k] - labels[k].astype("M8[D]")).astype(int)
        for row, name in _ROWS.items():
            cells = ",".join("" if value != value else f"{value:.10g}" for value in observed[name][k].tolist())
            yield f"{_digits(labels[k].astype('M8[D]'))},{hour},{row},{cells}\n"


def _digits(time: np.datetime64) -> str:
    return str(time).replace("-", "")
