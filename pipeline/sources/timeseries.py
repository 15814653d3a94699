"""Stations in NetCDF: CF discrete sampling geometries of featureType timeSeries (CF-1.11, chapter 9, appendix H.2).

All layouts are read: (station, time) and (time, station) arrays, one station, incomplete arrays whose times differ by
station, and contiguous (``row_size``) and indexed ragged arrays. What a variable is says its ``standard_name``, not its
name. The bytes are decoded in a worker process (`pipeline.sources.isolated`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipeline.contract import HOUR, POLLUTANTS, STANDARD_NAMES, line_column
from pipeline.errors import InputError
from pipeline.sources import isolated
from pipeline.sources.archive import RawFile
from pipeline.sources.columns import MAX_NUMBER, YEARS
from pipeline.sources.csvfile import Truncated, shown
from pipeline.sources.sites import SiteList
from pipeline.sources.source import CONVENTIONS, Source
from pipeline.sources.units import factor

CONVENTION = CONVENTIONS["timeseries"]

#: standard_name -> pollutant; a name with a modifier (``... status_flag``) is another quantity and passed over.
NAMES = {standard: pollutant for pollutant, standard in STANDARD_NAMES.items()} | {
    "mole_fraction_of_sulfur_dioxide_in_air": "so2",
    "mole_fraction_of_nitrogen_dioxide_in_air": "no2",
    "mole_fraction_of_ozone_in_air": "o3",
    "mole_fraction_of_carbon_monoxide_in_air": "co",
}

ALTITUDES = ("altitude", "surface_altitude", "height_above_mean_sea_level")
CALENDARS = ("standard", "gregorian", "proleptic_gregorian")

#: Times that mean the same to every library; UDUNITS' shorter forms do not.
_TIME_UNITS = re.compile(
    r"(second|sec|minute|min|hour|hr|day)s? since \d{4}-\d{1,2}-\d{1,2}"
    r"([T ]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?)? ?(Z|UTC|GMT|[+-]\d{2}:?\d{2})?",
    re.IGNORECASE,
)
#: What the library leaves in cells of floats that were never written (NetCDF Users Guide, appendix B): missing.
UNWRITTEN = float(np.float32(9.969209968386869e36))

_CODER = xr.coders.CFDatetimeCoder(use_cftime=False, time_unit="s")
_MAGIC = (b"CDF", b"\x89HDF\r\n\x1a\n")

Result = TypeVar("Result")


def parse(raw: RawFile, _sites: SiteList | None, _truncated: Truncated) -> Iterator[pd.DataFrame]:
    """Yield the StationTable of one file; see `pipeline.sources.source.Source`."""
    yield isolated.run(read, raw.where, raw.data)


def read(where: str, data: bytes) -> pd.DataFrame:
    """Decode the bytes of one NetCDF file (classic or NetCDF-4) into a StationTable.

    Raises
    ------
    InputError
        Naming the variable, what was expected and what was found.
    """
    if not data.startswith(_MAGIC):
        raise InputError(f"{where}: expected a NetCDF file; found one that begins with {data[:8]!r}")
    with _decoded(where, lambda: _opened(data)) as found:
        cube = _Cube(where, found)
        _check_feature(cube)
        stations = _stations(cube)
        return _table(stations, _observations(cube, stations))


def _opened(data: bytes) -> xr.Dataset:
    import netCDF4  # in the worker only

    store = xr.backends.NetCDF4DataStore(netCDF4.Dataset("file", memory=data))
    return xr.open_dataset(store, decode_times=False, decode_coords=False)


def _decoded(where: str, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except MemoryError:
        raise
    except Exception as error:  # whatever xarray, netCDF4 and HDF5 raise on damaged bytes
        found = f"{type(error).__name__}: {shown(error)}"
        raise InputError(f"{where}: expected a readable NetCDF file; found {found}") from error


@dataclass(frozen=True)
class _Cube:
    """An open file: variables by name or attribute, and errors that name the file."""

    where: str
    data: xr.Dataset = field(repr=False)

    def error(self, name: object, expected: str, found: object) -> InputError:
        return InputError(f"{self.where}, variable '{shown(name)}': expected {expected}; found {shown(found)}")

    def text(self, name: str, attribute: str) -> str | None:
        """An attribute of a variable as text, None where it has none."""
        value = self.data[name].attrs.get(attribute)
        if value is None or isinstance(value, str):
            return value
        raise self.error(name, f"text as {attribute}", repr(value))

    def having(self, attribute: str, *values: str) -> list[str]:
        """Names of the variables whose attribute is one of `values`."""
        found = ((str(name), variable.attrs.get(attribute)) for name, variable in self.data.variables.items())
        return [name for name, value in found if isinstance(value, str) and value in values]

    def one(self, attribute: str, *values: str) -> str | None:
        """Name of the only variable of that attribute, None where there is none."""
        found = self.having(attribute, *values)
        if len(found) > 1:
            raise self.error(found[1], f"one variable of {attribute} '{values[0]}'", ", ".join(found))
        return found[0] if found else None

    def dims(self, name: str) -> tuple[str, ...]:
        return tuple(str(dim) for dim in self.data[name].dims)

    def values(self, name: str) -> NDArray[Any]:
        return _decoded(self.where, lambda: self.data[name].values)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Values as float64, NaN where missing."""
        values = self.values(name)
        stored = np.dtype(self.data[name].encoding.get("dtype", values.dtype))  # xarray unpacks text to numbers, too
        if values.dtype.kind not in "iuf" or stored.kind not in "iuf":
            raise self.error(name, "numbers", stored)
        if self.data[name].encoding.get("scale_factor") == 0:
            raise self.error(name, "a scale_factor that is not 0", 0)
        with np.errstate(invalid="ignore"):  # a signalling NaN, of damaged bytes
            return values.astype("float64")

    def whole(self, name: str, low: int, high: int) -> NDArray[np.int64]:
        """Values as whole numbers in [low, high]."""
        values = self.numbers(name)
        bad = ~((values >= low) & (values <= high) & (values == np.floor(values)))
        if bad.any():
            raise self.error(name, f"whole numbers in {low}..{high}", values[bad][0])
        return values.astype("int64")


def _check_feature(cube: _Cube) -> None:
    feature = cube.data.attrs.get("featureType")
    if feature is not None and str(feature).lower() != "timeseries":
        raise InputError(f"{cube.where}: expected featureType timeSeries (stations); found {str(feature)[:60]!r}")


@dataclass(frozen=True)
class _Stations:
    """Dimension (None for a single station), ``network:code``, and place of each station; arrays of shape (S,)."""

    variable: str
    dim: str | None
    names: list[str]
    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    elevation: NDArray[np.float64]


def _stations(cube: _Cube) -> _Stations:
    variable = cube.one("cf_role", "timeseries_id")
    if variable is None:
        raise InputError(f"{cube.where}: expected a variable with cf_role timeseries_id (station codes); found none")
    dims = cube.dims(variable)
    if len(dims) > 1:
        raise cube.error(variable, "station codes along one dimension", dims)
    names = _names(cube, variable)
    place = {kind: _place(cube, kind, dims, len(names)) for kind in ("longitude", "latitude")}
    height = _elevation(cube, dims, len(names))
    return _Stations(variable, dims[0] if dims else None, names, place["longitude"], place["latitude"], height)


def _names(cube: _Cube, variable: str) -> list[str]:
    """Station identifiers; a code without its network is of ``timeseries:``."""
    values = np.atleast_1d(cube.values(variable))
    if values.dtype.kind not in "OUSiu":
        raise cube.error(variable, "station codes", values.dtype)
    try:
        codes = [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]
    except UnicodeDecodeError as error:
        raise cube.error(variable, "station codes in UTF-8", error) from error
    codes = [code.strip("\0 ") for code in codes]
    if repeated := _twice(codes):
        raise cube.error(variable, "each station once", f"'{repeated[0]}' twice")
    return [code if ":" in code or not code else f"timeseries:{code}" for code in codes]


def _twice(codes: list[str]) -> list[str]:
    found = pd.Series(codes, dtype=object)
    return sorted(found[found.duplicated() & (found != "")].unique())


def _place(cube: _Cube, kind: str, dims: tuple[str, ...], size: int) -> NDArray[np.float64]:
    name = cube.one("standard_name", kind)
    if name is None:
        raise InputError(f"{cube.where}: expected a variable with standard_name {kind}; found none")
    if cube.dims(name) not in (dims, ()):
        raise cube.error(name, f"one {kind} a station {dims} (stations do not move)", cube.dims(name))
    units = cube.text(name, "units")
    if units is not None and not units.lower().startswith("degree"):
        raise cube.error(name, "degrees", units)
    return np.broadcast_to(cube.numbers(name), (size,)).copy()


def _elevation(cube: _Cube, dims: tuple[str, ...], size: int) -> NDArray[np.float64]:
    name = cube.one("standard_name", *ALTITUDES)
    if name is None or cube.dims(name) not in (dims, ()):
        return np.full(size, np.nan)
    if cube.text(name, "units") not in ("m", "meter", "meters", "metre", "metres"):
        raise cube.error(name, "metres", cube.text(name, "units"))
    return np.broadcast_to(cube.numbers(name), (size,)).copy()


@dataclass(frozen=True)
class _Observations:
    """One row a station and time: station number, UTC start, place in the file from 1 (N,), and values (N, P)."""

    where: str
    station: NDArray[np.int64]
    time: NDArray[np.datetime64]
    line: NDArray[np.int64]
    values: NDArray[np.float32]


def _observations(cube: _Cube, stations: _Stations) -> _Observations:
    found = _quantities(cube)
    dims = cube.dims(next(iter(found.values())))
    for name in found.values():
        if set(cube.dims(name)) != set(dims):
            raise cube.error(name, f"the dimensions {dims} of the other pollutants", cube.dims(name))
    layout = _layout(cube, stations, dims)
    times = _starts(cube, layout)
    values = np.full((layout.size, len(POLLUTANTS)), np.nan, dtype="float32")
    for pollutant, name in found.items():
        values[:, POLLUTANTS.index(pollutant)] = _concentration(cube, pollutant, name, layout)
    keep = np.isfinite(values).any(axis=1)
    _check_times(cube, layout.time, times[keep])
    return _Observations(cube.where, layout.station[keep], times[keep], layout.line[keep], values[keep])


def _quantities(cube: _Cube) -> dict[str, str]:
    """Variable of each pollutant."""
    found = {p: cube.one("standard_name", *(s for s, name in NAMES.items() if name == p)) for p in POLLUTANTS}
    kept = {pollutant: name for pollutant, name in found.items() if name is not None}
    if not kept:
        wanted = f"a standard_name of a pollutant, such as {next(iter(NAMES))}"
        raise InputError(f"{cube.where}: expected a variable with {wanted}; found none")
    for name in kept.values():
        methods = cube.text(name, "cell_methods") or "time: mean"
        if not re.search(r"\btime: (?:\w+: )*mean\b", methods) and re.search(r"\btime:", methods):
            raise cube.error(name, "hourly means (cell_methods time: mean)", methods)
    return kept


@dataclass(frozen=True)
class _Layout:
    """How arrays become rows: `order` of the dimensions, flattened; station number and place in the file (N,)."""

    time: str
    order: tuple[str, ...]
    sizes: tuple[int, ...]
    station: NDArray[np.int64]
    line: NDArray[np.int64]

    @property
    def size(self) -> int:
        return len(self.station)


def _layout(cube: _Cube, stations: _Stations, dims: tuple[str, ...]) -> _Layout:
    time = _time_variable(cube)
    others = [dim for dim in dims if dim != stations.dim]
    if len(others) != 1 or len(dims) > 2:
        raise cube.error(time, f"pollutants along a time and the station dimension {stations.dim}", dims)
    length = cube.data.sizes[others[0]]
    if len(dims) == 1 and stations.dim is not None:
        order: tuple[str, ...] = (others[0],)
        station, line = _ragged(cube, stations, others[0]), np.arange(1, length + 1)
    else:
        order = (others[0], stations.dim) if stations.dim is not None else (others[0],)
        count = len(stations.names) if stations.dim in dims else 1
        station, line = np.tile(np.arange(count), length), np.repeat(np.arange(1, length + 1), count)
    if not set(cube.dims(time)) <= set(order) or others[0] not in cube.dims(time):
        raise cube.error(time, f"times along {order}", cube.dims(time))
    return _Layout(time, order, tuple(cube.data.sizes[dim] for dim in order), station, line)


def _time_variable(cube: _Cube) -> str:
    name = cube.one("standard_name", "time") or ("time" if "time" in cube.data.variables else None)
    if name is None:
        raise InputError(f"{cube.where}: expected a variable with standard_name time; found none")
    return name


def _ragged(cube: _Cube, stations: _Stations, dim: str) -> NDArray[np.int64]:
    """Station number of each observation of a ragged array (CF-1.11, sections 9.3.3 and 9.3.4)."""
    count, length = len(stations.names), cube.data.sizes[dim]
    if (index := cube.one("instance_dimension", str(stations.dim))) is not None:
        if cube.dims(index) != (dim,):
            raise cube.error(index, f"a station number for each of {dim}", cube.dims(index))
        return cube.whole(index, 0, count - 1)
    if (sizes := cube.one("sample_dimension", dim)) is None:
        raise cube.error(stations.variable, f"{dim} told by instance_dimension or sample_dimension", "neither")
    if cube.dims(sizes) != (stations.dim,):
        raise cube.error(sizes, f"a number of observations for each {stations.dim}", cube.dims(sizes))
    rows = cube.whole(sizes, 0, length)
    if rows.sum() != length:
        raise cube.error(sizes, f"{length} observations in all, as {dim} has", rows.sum())
    return np.repeat(np.arange(count), rows)


def _flat(cube: _Cube, name: str, values: NDArray[Any], layout: _Layout) -> NDArray[Any]:
    """Values of a variable as rows (N,), repeated along the dimensions it does not have."""
    dims = [dim for dim in layout.order if dim in cube.dims(name)]
    values = values.transpose([cube.dims(name).index(dim) for dim in dims])
    shape = tuple(n if dim in dims else 1 for dim, n in zip(layout.order, layout.sizes, strict=True))
    return np.broadcast_to(values.reshape(shape), layout.sizes).reshape(-1)


def _concentration(cube: _Cube, pollutant: str, name: str, layout: _Layout) -> NDArray[np.float32]:
    units = cube.text(name, "units")
    ratio = str(cube.data[name].attrs["standard_name"]).startswith("mole_fraction")
    known = "mol mol-1" if ratio and units == "1" else units or ""
    scale = factor(pollutant, known, CONVENTION.celsius)
    if scale is None:
        raise cube.error(name, f"a unit of concentration of {pollutant}", f"units {units!r}")
    values = _flat(cube, name, cube.numbers(name), layout) * scale
    values[values == UNWRITTEN * scale] = np.nan
    for found in values[np.abs(values) > MAX_NUMBER][:1]:
        raise cube.error(name, "finite concentrations", f"{found:g}")
    return values.astype("float32")


def _starts(cube: _Cube, layout: _Layout) -> NDArray[np.datetime64]:
    """UTC start of the averaging hour of each row, to the second; NaT where there is no time."""
    name = layout.time
    bounds = cube.text(name, "bounds")
    if bounds is not None:
        return _flat(cube, name, _from_bounds(cube, name, bounds), layout)
    label = cube.text(name, "time_label") or CONVENTION.label
    if label not in ("begin", "end"):
        raise cube.error(name, "time_label begin or end", label)
    times = _instants(cube, name, name)
    return _flat(cube, name, times - HOUR if label == "end" else times, layout)


def _from_bounds(cube: _Cube, name: str, bounds: str) -> NDArray[np.datetime64]:
    if bounds not in cube.data.variables or cube.dims(bounds)[:-1] != cube.dims(name):
        raise cube.error(name, f"bounds along {cube.dims(name)} and 2", bounds)
    if (edges := _instants(cube, bounds, name)).shape[-1] != 2:
        raise cube.error(bounds, "two bounds a time", edges.shape)
    start, width = edges[..., 0], np.diff(edges, axis=-1)[..., 0]
    for found in width[~np.isnat(width) & (width != HOUR)][:1]:
        raise cube.error(bounds, "averages over one hour", f"{found.astype('m8[s]')}")
    return start


def _instants(cube: _Cube, name: str, time: str) -> NDArray[np.datetime64]:
    """Times of a variable in UTC, decoded by the units and calendar of `time`, to the nearest second."""
    units, calendar = cube.text(time, "units"), cube.text(time, "calendar") or "standard"
    if units is None or not _TIME_UNITS.fullmatch(units.strip()):
        raise cube.error(time, "units such as 'hours since 1970-01-01'", repr(units))
    if calendar.lower() not in CALENDARS:
        raise cube.error(time, f"a calendar of {', '.join(CALENDARS)}", calendar)
    if (own := cube.text(name, "units")) not in (None, units):
        raise cube.error(name, f"the units of {time}", own)
    variable = xr.Variable(cube.dims(name), cube.numbers(name), {"units": units.strip(), "calendar": calendar.lower()})
    found = _decoded(f"{cube.where}, variable '{name}'", lambda: _CODER.decode(variable).values)
    return (found.astype("M8[ms]") + np.timedelta64(500, "ms")).astype("M8[s]")


def _check_times(cube: _Cube, name: str, times: NDArray[np.datetime64]) -> None:
    """Every row that has a value has the start of an hour, and the file is not one of longer means."""
    if np.isnat(times).any():
        raise cube.error(name, "a time for every value", "a missing one")
    for found in times[times != times.astype("M8[h]")][:1]:
        raise cube.error(name, "starts of hours", found)
    years = times.astype("M8[Y]").astype("int64") + 1970
    for found in times[(years < YEARS[0]) | (years > YEARS[-1])][:1]:
        raise cube.error(name, f"times in {YEARS[0]}..{YEARS[-1]}", found)
    hours = np.unique(times.astype("M8[h]")).astype("int64")
    step = int(np.gcd.reduce(np.diff(hours))) if len(hours) > 2 else 1
    if step > 1 and cube.text(name, "bounds") is None:
        kind = "a daily file" if step % 24 == 0 else f"one of {step} hours a time"
        raise cube.error(name, "hourly means, or bounds that say so", kind)


def _table(stations: _Stations, found: _Observations) -> pd.DataFrame:
    """StationTable with lines, sorted by time and station."""
    _check_rows(stations, found)
    order = np.lexsort((found.station, found.time))
    station, values = found.station[order], found.values[order]
    lines = np.where(np.isnan(values), 0, found.line[order][:, None]).astype("int32")
    table: dict[str, object] = {
        "time": found.time[order].astype("M8[ns]"),
        "station": pd.Categorical.from_codes(station, pd.Index(stations.names, dtype="str")),
        "lon": stations.lon[station],
        "lat": stations.lat[station],
        "elevation": stations.elevation[station],
    }
    table |= dict(zip(POLLUTANTS, values.T, strict=True))
    return pd.DataFrame(table | dict(zip(map(line_column, POLLUTANTS), lines.T, strict=True)))


def _check_rows(stations: _Stations, found: _Observations) -> None:
    for i in np.unique(found.station):
        where = f"{found.where}, station '{shown(stations.names[i])}'"
        if not stations.names[i]:
            where = f"{found.where}, variable '{stations.variable}'"
            raise InputError(f"{where}: expected a code for station {i + 1}; found none")
        if not (-180 <= stations.lon[i] <= 360 and -90 <= stations.lat[i] <= 90):
            place = f"({stations.lon[i]}, {stations.lat[i]})"
            raise InputError(f"{where}: expected longitude in [-180, 360] and latitude in [-90, 90]; found {place}")
    key = found.station * np.int64(1 << 32) + found.time.astype("M8[h]").astype("int64")
    values, first = np.unique(key, return_index=True)
    if len(values) != len(key):
        row = np.setdiff1d(np.arange(len(key)), first)[0]
        name = stations.names[found.station[row]]
        raise InputError(
            f"{found.where}, station '{shown(name)}': expected each hour once; found {found.time[row]} twice"
        )


SOURCE = Source(conventions=(CONVENTION,), parse=parse, suffixes=(".nc", ".nc4"))
