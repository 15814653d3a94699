"""Damaged NetCDF: of its variables and attributes, then of its bytes; and a plain reading of it by netCDF4 alone."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import netCDF4
import numpy as np

from benchmarks.fuzz.mutate import BYTE_CHANGES
from benchmarks.fuzz.plain import MOLAR, Claim, factors, hours_since_1970
from benchmarks.fuzz.pools import UNITS

_PM25 = "mass_concentration_of_pm2p5_ambient_aerosol_particles_in_air"
_NAMES = {
    _PM25: "pm2p5",
    "mass_concentration_of_pm10_ambient_aerosol_particles_in_air": "pm10",
    "mass_concentration_of_sulfur_dioxide_in_air": "so2",
    "mass_concentration_of_nitrogen_dioxide_in_air": "no2",
    "mass_concentration_of_ozone_in_air": "o3",
    "mass_concentration_of_carbon_monoxide_in_air": "co",
    "mole_fraction_of_sulfur_dioxide_in_air": "so2",
    "mole_fraction_of_nitrogen_dioxide_in_air": "no2",
    "mole_fraction_of_ozone_in_air": "o3",
    "mole_fraction_of_carbon_monoxide_in_air": "co",
}
_SINCE = re.compile(
    r"(second|sec|minute|min|hour|hr|day)s? since (\d{4})-(\d\d?)-(\d\d?)"
    r"(?:[T ](\d\d?):(\d\d)(?::(\d\d)(?:\.\d+)?)?)? ?(Z|UTC|GMT|[+-]\d\d:?\d\d)?",
    re.IGNORECASE,
)
_LENGTH = {"second": 1, "sec": 1, "minute": 60, "min": 60, "hour": 3600, "hr": 3600, "day": 86400}


@dataclass
class Variable:
    """Dimensions, values and attributes of a variable."""

    dims: tuple[str, ...]
    values: np.ndarray
    attrs: dict[str, Any]


@dataclass(frozen=True)
class Cube:
    """A valid file: variables and global attributes."""

    variables: dict[str, Variable]
    attrs: dict[str, Any] = field(default_factory=lambda: {"Conventions": "CF-1.11", "featureType": "timeSeries"})

    @property
    def data(self) -> bytes:
        """The bytes of the file, in the classic format."""
        return written(self, "NETCDF3_CLASSIC")


def written(cube: Cube, kind: str) -> bytes:
    """Write a file of the netCDF format `kind`."""
    out = netCDF4.Dataset("file", "w", format=kind, memory=1024)
    try:
        for name, size in _sizes(cube).items():
            out.createDimension(name, size)
        for name, variable in cube.variables.items():
            attrs = dict(variable.attrs)
            fill = attrs.pop("_FillValue", None)
            made = out.createVariable(name, variable.values.dtype, variable.dims, fill_value=fill)
            made.set_auto_maskandscale(False)
            made.setncatts(attrs)
            made[...] = variable.values
        out.setncatts(cube.attrs)
    except BaseException:
        out.close()
        raise
    return bytes(out.close())


def _sizes(cube: Cube) -> dict[str, int]:
    return {
        dim: size
        for variable in cube.variables.values()
        for dim, size in zip(variable.dims, variable.values.shape, strict=True)
    }


def seeds() -> tuple[Cube, ...]:
    """One file a layout of CF: (time, station) without and with bounds, (station, time), indexed and contiguous."""
    codes = np.array([list("net:a "), list("b     "), list("net:c ")], dtype="S1")
    place = {
        "code": Variable(("station", "letters"), codes, {"cf_role": "timeseries_id"}),
        "x": Variable(("station",), np.array([10.0, 11, 12]), {"standard_name": "longitude", "units": "degrees_east"}),
        "y": Variable(("station",), np.array([50.0, 51, 52]), {"standard_name": "latitude", "units": "degrees_north"}),
        "z": Variable(("station",), np.array([5.0, 6, 7]), {"standard_name": "surface_altitude", "units": "m"}),
    }
    hours = np.array([439654.0, 439655, 439656, 439657])
    time = Variable(("time",), hours, {"standard_name": "time", "units": "hours since 1970-01-01"})
    values = np.arange(12, dtype="float32").reshape(4, 3) + 0.5
    values[1, 1] = -1
    pm = Variable(
        ("time", "station"), values, {"standard_name": _PM25, "units": "ug m-3", "_FillValue": np.float32(-1)}
    )
    ozone = {"standard_name": "mole_fraction_of_ozone_in_air", "units": "1e-9", "scale_factor": 0.1, "add_offset": 1.0}
    o3 = Variable(("time", "station"), (10 * values).astype("int16"), ozone | {"_FillValue": np.int16(-10)})
    bounds = Variable(("time", "edge"), np.column_stack([hours, hours + 1]), {})
    ends = Variable(("time",), hours + 1, time.attrs | {"bounds": "edges"})
    turned = {"pm": Variable(("station", "time"), values.T.copy(), pm.attrs)}
    of = np.array([0, 2, 1, 0, 2], dtype="int32")
    row = Variable(("row",), np.array([439654.0, 439654, 439655, 439655, 439656]), time.attrs)
    ragged = Variable(("row",), np.array([3, 4, 5, -1, 7], dtype="float32"), pm.attrs)
    index = Variable(("row",), of, {"instance_dimension": "station"})
    rows = Variable(("row",), np.array([439654.0, 439655, 439655, 439654, 439656]), time.attrs)
    counts = Variable(("station",), np.array([2, 1, 2], dtype="int32"), {"sample_dimension": "row"})
    return tuple(
        Cube(place | more)
        for more in (
            {"t": time, "pm": pm, "o3": o3},
            {"t": ends, "edges": bounds, "pm": pm},
            {"t": time} | turned,
            {"t": row, "of": index, "pm": ragged},
            {"t": rows, "size": counts, "pm": ragged},
        )
    )


def mutated(seed: Cube, rng: Random) -> bytes:
    """One damaged copy: up to three changes of variables and attributes, or some of bytes."""
    changes, raw = rng.choice(((1, 0), (1, 0), (1, 0), (1, 0), (2, 0), (2, 0), (3, 0), (0, 1), (1, 1)))
    cube = copy.deepcopy(seed)
    for _ in range(changes):
        try:
            with np.errstate(all="ignore"):
                rng.choice(CHANGES)(rng, cube)
        except (LookupError, ValueError, TypeError):
            continue  # a change that this file does not allow
    kind = "NETCDF4" if rng.random() < 0.2 else rng.choice(("NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET"))
    try:
        data = written(cube, kind)
    except (RuntimeError, OSError, ValueError, TypeError, LookupError, OverflowError, AttributeError, UnicodeError):
        data = seed.data
        raw = max(raw, 1)
    for _ in range(raw):
        data = rng.choice(BYTE_CHANGES)(rng, data, [data])
    return data


def _pick(rng: Random, cube: Cube, *wanted: str) -> Variable:
    return cube.variables[rng.choice([name for name in wanted or cube.variables if name in cube.variables])]


def _unit(rng: Random, cube: Cube) -> None:
    _pick(rng, cube, "pm", "o3").attrs["units"] = rng.choice((*UNITS, "mol mol-1", "1e-6", 1.0, np.array([1, 2])))


def _time_unit(rng: Random, cube: Cube) -> None:
    cube.variables["t"].attrs["units"] = rng.choice(
        ("hours since 1970-01-01 00:00:00", "hours since 1970-01-01 00:00 +08:00", "hours since 1970-1-1T00:00:00Z",
         "days since 1970-01-01", "seconds since 1970-01-01", "minutes since 2019-01-01", "months since 1970-01-01",
         "years since 1970-01-01", "hours since 1970-01-01 00:00:00 CST", "hours since 0001-01-01", "hours", "", "hour",
         "hours since 1970-13-01", "hours since 70-01-01", "hours since 1970-01-01 00:30:00",
         "fortnights since 1970-01-01", "hours since 1970-01-01 24:00", "Hours Since 1970-01-01",
         "hours since 1970-01-01 -0800",
         3, "h since 1970-01-01", "hours since 1970-01-01 08:00:00 +08:00",
         "hours since 9999-01-01", "hours since 1970-01-01 00:00:00.5")
    )  # fmt: skip


def _calendar(rng: Random, cube: Cube) -> None:
    names = ("noleap", "360_day", "julian", "standard", "Gregorian", "proleptic_gregorian", "none", "", "all_leap", 1)
    cube.variables["t"].attrs["calendar"] = rng.choice(names)


def _attribute(rng: Random, cube: Cube) -> None:
    """Add, change or take away an attribute of any variable."""
    variable = _pick(rng, cube)
    name = rng.choice((*variable.attrs, "units", "standard_name", "bounds", "cell_methods", "time_label", "calendar"))
    if rng.random() < 0.3:
        variable.attrs.pop(name, None)
    else:
        texts = (
            "",
            "x",
            "time",
            "edges",
            "time: mean",
            "time: maximum",
            "time: point",
            "area: mean",
            "begin",
            "end",
            "timeseries_id",
        )
        variable.attrs[name] = rng.choice(
            (*texts, "timeseries_id", *_NAMES, f"{_PM25} status_flag", 1, 2.5, np.arange(3), "longitude", "µ")
        )


def _packing(rng: Random, cube: Cube) -> None:
    variable = _pick(rng, cube, "pm", "o3", "t", "x")
    kind = variable.values.dtype.type
    name = rng.choice(
        ("_FillValue", "missing_value", "scale_factor", "add_offset", "valid_range", "valid_max", "_Unsigned")
    )
    values = {
        "_FillValue": kind(rng.choice((-1, 0, 2, 99))),
        "missing_value": kind(rng.choice((0, 1, 3))),
        "_Unsigned": "true",
    }
    values |= {"valid_range": np.array([0, 5], kind), "valid_max": kind(4)}
    variable.attrs[name] = values.get(
        name, rng.choice((0.1, 1000.0, 0.0, math.nan, math.inf, -1.0, np.float32(0.1), np.int16(2), "2"))
    )


def _value(rng: Random, cube: Cube) -> None:
    variable = _pick(rng, cube, "pm", "o3", "x", "y", "z")
    new = (0, -5, -999, -9999, 1e36, 9.96921e36, 1e39, math.nan, math.inf, -math.inf, 400, 1e-30)
    variable.values.flat[rng.randrange(variable.values.size)] = rng.choice(new)


def _time(rng: Random, cube: Cube) -> None:
    variable = _pick(rng, cube, "t", "edges")
    shift = rng.choice((0.5, 1.0, -1.0, 8.0, 1 / 3600, 1e-7, 24.0, 1e6, 1e12, 1e300, math.nan, math.inf))
    if rng.random() < 0.5:
        variable.values += shift
    else:
        variable.values.flat[rng.randrange(variable.values.size)] += shift


def _same_time(rng: Random, cube: Cube) -> None:
    values = cube.variables["t"].values
    values[rng.randrange(len(values))] = values[rng.randrange(len(values))]


def _kind(rng: Random, cube: Cube) -> None:
    variable = _pick(rng, cube, "pm", "o3", "t", "x", "y", "of", "size")
    kind = rng.choice(("float32", "float64", "int8", "int16", "int32", "S1"))
    fill = variable.attrs.get("_FillValue")
    with np.errstate(all="ignore"):
        variable.values = np.full(variable.values.shape, b"7") if kind == "S1" else variable.values.astype(kind)
    if fill is not None:
        variable.attrs["_FillValue"] = variable.values.dtype.type(b"7" if kind == "S1" else fill)


def _index(rng: Random, cube: Cube) -> None:
    variable = _pick(rng, cube, "of", "size")
    variable.values.flat[rng.randrange(variable.values.size)] = rng.choice((-1, 0, 1, 2, 3, 99, 2**31 - 1))


def _code(rng: Random, cube: Cube) -> None:
    values = cube.variables["code"].values
    values[rng.randrange(3)] = rng.choice(
        (values[0], np.frombuffer(b"      ", "S1"), np.frombuffer(b"\xff\x00a b\n", "S1"))
    )


def _turned(rng: Random, cube: Cube) -> None:
    variable = _pick(rng, cube)
    variable.dims, variable.values = variable.dims[::-1], variable.values.T.copy()


def _dimension(rng: Random, cube: Cube) -> None:
    """Give a dimension of one variable another name."""
    variable = _pick(rng, cube)
    at = rng.randrange(len(variable.dims))
    variable.dims = (*variable.dims[:at], rng.choice(("x", "time", "station", "row")), *variable.dims[at + 1 :])


def _gone(rng: Random, cube: Cube) -> None:
    del cube.variables[rng.choice(list(cube.variables))]


def _twice(rng: Random, cube: Cube) -> None:
    cube.variables["again"] = copy.deepcopy(_pick(rng, cube))


def _names_swapped(rng: Random, cube: Cube) -> None:
    one, other = _pick(rng, cube), _pick(rng, cube)
    name = "standard_name"
    one.attrs[name], other.attrs[name] = other.attrs.get(name, "x"), one.attrs.get(name, "y")


def _feature(rng: Random, cube: Cube) -> None:
    cube.attrs["featureType"] = rng.choice(("trajectory", "point", "timeseries", "TimeSeries", "", 3, "profile"))


#: Changes of a file; the likelier ones stand there more than once.
CHANGES: tuple[Callable[[Random, Cube], None], ...] = (
    _unit, _unit, _time_unit, _time_unit, _time_unit, _calendar, _attribute, _attribute, _attribute, _packing, _packing,
    _packing, _value, _value, _time, _time, _same_time, _kind, _kind, _index, _code, _turned, _dimension, _gone, _twice,
    _names_swapped, _feature,
)  # fmt: skip


def claims(data: bytes) -> dict[int, list[Claim]]:
    """What each line of a file says: a line is a place along the dimension of the observations."""
    try:
        with netCDF4.Dataset("file", memory=data) as found:
            found.set_auto_maskandscale(False)
            found.set_auto_chartostring(False)
            return _claims(found)
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, OverflowError, UnicodeError):
        return {}


def _claims(found: netCDF4.Dataset) -> dict[int, list[Claim]]:
    code = _by(found, "cf_role", "timeseries_id")
    codes = [bytes(letters.tobytes()).decode().strip("\0 ") for letters in code[...]]
    dim = code.dimensions[0]
    time = _by(found, "standard_name", "time")
    hours = _hours(found, time)
    lines: dict[int, list[Claim]] = {}
    for variable in found.variables.values():
        pollutant = _NAMES.get(str(_attr(variable, "standard_name")))
        if pollutant is None:
            continue
        factor = _factor(variable, pollutant)
        values = _unpacked(variable)
        along = next(name for name in variable.dimensions if name != dim)
        for at in np.ndindex(values.shape):
            place = dict(zip(variable.dimensions, at, strict=True))
            station = codes[place[dim] if dim in place else _station(found, place[along], dim)].split(":", 1)[-1]
            hour = hours[tuple(place[name] for name in time.dimensions)]
            if math.isnan(values[at]) or hour is None:
                continue
            value = math.inf if factor is None else float(values[at]) * factor
            lines.setdefault(place[along] + 1, []).append(Claim(station, hour, pollutant, value, abs(value) < 1e30))
    return lines


def _attr(variable: Any, name: str) -> Any:
    return variable.getncattr(name) if name in variable.ncattrs() else None


def _by(found: netCDF4.Dataset, name: str, value: str) -> Any:
    """The variable of an attribute."""
    return next(variable for variable in found.variables.values() if str(_attr(variable, name)) == value)


def _unpacked(variable: Any) -> np.ndarray:
    """Values as CF-1.11, sections 2.5.1 and 8.1 have it: NaN where missing, scaled and moved."""
    raw = variable[...]
    values = raw.astype("float64")
    for name in ("_FillValue", "missing_value"):
        if (mark := _attr(variable, name)) is not None:
            values[np.isin(raw, mark)] = math.nan
    scale, offset = _attr(variable, "scale_factor"), _attr(variable, "add_offset")
    with np.errstate(all="ignore"):
        values = values * (1 if scale is None else float(scale)) + (0 if offset is None else float(offset))
    values[~np.isfinite(values) | np.isclose(raw.astype("float64"), 9.96921e36, rtol=1e-5)] = math.nan
    return values


def _factor(variable: Any, pollutant: str) -> float | None:
    unit, name = str(_attr(variable, "units")), str(_attr(variable, "standard_name"))
    if unit == "1" and name.startswith("mole_fraction"):
        unit = "mol mol-1"
    if unit in ("1e-9", "1e-6", "mol mol-1") and pollutant not in MOLAR:
        return None
    return factors(pollutant, unit, 25.0)


def _hours(found: netCDF4.Dataset, time: Any) -> dict[tuple[int, ...], int | None]:
    """UTC start of the averaging hour at each index of the time variable, None where it is none."""
    since = _SINCE.fullmatch(str(_attr(time, "units")).strip())
    calendar = str(_attr(time, "calendar") or "standard").lower()
    if since is None or calendar not in ("standard", "gregorian", "proleptic_gregorian"):
        return dict.fromkeys(np.ndindex(time.shape))
    year, month, day, hour, minute, second = (int(part or 0) for part in since.groups()[1:7])
    zone = re.fullmatch(r"([+-])(\d\d):?(\d\d)", since[8] or "+00:00")
    east = 0.0 if zone is None else (1 if zone[1] == "+" else -1) * (int(zone[2]) + int(zone[3]) / 60)
    base = hours_since_1970(year, month, day, hour, minute, second)
    if base is None:
        return dict.fromkeys(np.ndindex(time.shape))
    step = _LENGTH[since[1].lower()] / 3600
    edges = found.variables[time.bounds] if "bounds" in time.ncattrs() else None
    early = 1.0 if edges is None and _attr(time, "time_label") == "end" else 0.0
    counts = _unpacked(time if edges is None else edges)
    starts = counts if edges is None else counts[..., 0]
    return {at: _whole(base - east + float(starts[at]) * step - early) for at in np.ndindex(starts.shape)}


def _whole(hours: float) -> int | None:
    """The hour, where a time is one to the nearest second."""
    return round(hours) if math.isfinite(hours) and abs(hours - round(hours)) < 0.51 / 3600 else None


def _station(found: netCDF4.Dataset, row: int, dim: str) -> int:
    """Station of a row of a ragged array."""
    for variable in found.variables.values():
        if _attr(variable, "instance_dimension") == dim:
            return int(variable[row])
        if _attr(variable, "sample_dimension") is not None:
            return int(np.repeat(np.arange(len(variable[...])), variable[...].astype("int64"))[row])
    raise LookupError("no station")
