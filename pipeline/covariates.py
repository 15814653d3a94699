"""Gridded covariates: CF NetCDF or Zarr fields that a run may use beside its observations.

A field is read where it is needed, linearly in space; nothing is known outside its grid (half a cell beyond the outer
centres) or where all but a small part of its neighbourhood is missing. In time it is that of its last hour at or before
the one asked for, no older than its step; two-sided, linear between the hours around.

Shapes: T hours, N places, J fields.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from scipy.sparse import csr_array

from pipeline import provenance
from pipeline.config import Covariate
from pipeline.errors import ConfigError
from pipeline.grid import Grid

log = logging.getLogger("aqnet")

Float = NDArray[np.float64]
Index = NDArray[np.int64]
Places = NDArray[np.floating]

#: Factors to ug m-3 from the units that a background may have (CF-1.11, section 3.1), some as they are often written.
TO_UG_M3 = {
    "ug m-3": 1.0,
    "ug/m3": 1.0,
    "ug/m^3": 1.0,
    "ug m^-3": 1.0,
    "microgram m-3": 1.0,
    "micrograms/m3": 1.0,
    "mg m-3": 1e3,
    "g m-3": 1e6,
    "kg m-3": 1e9,
    "kg/m3": 1e9,
    "kg m**-3": 1e9,
}

#: Units that make a coordinate latitude or longitude (CF-1.11, sections 4.1 and 4.2).
_DEGREES = {
    "latitude": ("degrees_north", "degree_north", "degree_N", "degrees_N", "degreeN", "degreesN"),
    "longitude": ("degrees_east", "degree_east", "degree_E", "degrees_E", "degreeE", "degreesE"),
}
_PROJECTED = ("projection_y_coordinate", "projection_x_coordinate")
_METRES = {"m": 1.0, "metre": 1.0, "meter": 1.0, "metres": 1.0, "meters": 1.0, "km": 1e3}
_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")

#: Weight that the known cells around a place must have together.
_ENOUGH = 0.5

#: Hours read at once.
_CHUNK = 24

_TRANSFORMS: dict[str, Callable[[Float], Float]] = {"none": lambda x: x, "log": np.log, "cuberoot": np.cbrt}


@dataclass(frozen=True)
class Field:
    """One opened field.

    Attributes
    ----------
    spec : as configured.
    data : (time, y, x) or (y, x), read when asked; y and x ascend.
    y, x : degrees, or the projection's units; x may pass 360.
    times : whole hours since 1970-01-01T00 UTC that the field's times lie in, ascending; None where it has no time.
    to_axes : from WGS84 longitude and latitude to x and y; None where they are that.
    factor : of the values, to ug m-3 for a background.
    """

    spec: Covariate
    data: xr.DataArray
    y: Float
    x: Float
    times: Index | None
    to_axes: Transformer | None
    factor: float

    @property
    def step(self) -> int:
        """Hours between the field's times, their median."""
        return 1 if self.times is None else int(np.median(np.diff(self.times)))

    @property
    def wraps(self) -> bool:
        """Whether the columns go round the Earth."""
        return self.to_axes is None and bool(abs(self.x[-1] + np.diff(self.x)[-1] - self.x[0] - 360) < 1e-3)

    def __str__(self) -> str:
        return f"{self.spec.path}: variable '{self.spec.variable}'"


def open_all(specs: Iterable[Covariate]) -> tuple[Field, ...]:
    """Open configured fields; none of their values is read.

    Raises
    ------
    ConfigError
        Naming the file, the variable, what was expected and what was found.
    """
    fields = tuple(open_field(spec) for spec in specs)
    paths = {field.spec.path.resolve() for field in fields}
    if len({path.name for path in paths}) < len(paths):
        raise ConfigError(
            "covariates: expected files of different names, by which the lineage tells them; found the same"
        )
    return fields


def open_field(spec: Covariate) -> Field:
    """Open one field, see `open_all`."""
    whole = _open(spec)
    if spec.variable not in whole.data_vars:
        found = ", ".join(map(str, whole.data_vars)) or "none"
        raise ConfigError(f"{spec.path}: expected a variable '{spec.variable}'; found {found}")
    data = whole[spec.variable]
    here = f"{spec.path}: variable '{spec.variable}'"
    factor = _factor(spec, data, here)
    time, axes = _time_name(data), _axes(data, here)
    data = _squeezed(data, time, axes.names, here)
    times = _times(data[time], here) if time is not None else None
    if times is not None and len(times) == 1:
        data, times = data.isel({time: 0}), None
    order = ([time] if times is not None else []) + list(axes.names)
    return Field(
        spec, data.transpose(*order)[axes.flip], axes.y, axes.x, times, _transformer(whole, data, axes), factor
    )


def check(fields: Sequence[Field], grid: Grid, start: np.datetime64, end: np.datetime64) -> None:
    """Check that every field knows some cell of the grid in some hour of [start, end).

    Raises
    ------
    ConfigError
        Naming the field and both extents.
    """
    lon, lat = (axis.ravel() for axis in grid.lon_lat())
    hours = np.arange(start, end).astype("datetime64[h]").astype(np.int64)
    for field in fields:
        if not _locate(field, lon, lat)[1].any():
            found = f"{field.x[0]:g} .. {field.x[-1]:g} by {field.y[0]:g} .. {field.y[-1]:g}"
            raise ConfigError(f"{field}: expected a grid that covers some of bbox {grid.bbox}; found {found}")
        if not (_when(field, hours, False)[0] >= 0).any():
            assert field.times is not None
            held = " to ".join(str(np.datetime64(int(field.times[k]), "h")) for k in (0, -1))
            raise ConfigError(f"{field}: expected hours from {start} to {end} UTC; found {held}")


def digests(specs: Iterable[Covariate]) -> dict[str, str]:
    """SHA-256 of the files, by name; of a Zarr folder, that of the list of its files' own."""
    return {spec.path.name: _digest(spec.path) for spec in specs}


def _digest(path: Path) -> str:
    if path.is_file():
        return provenance.digest_file(path)
    files = {str(file.relative_to(path)): provenance.digest_file(file) for file in path.rglob("*") if file.is_file()}
    return hashlib.sha256(provenance.manifest(files).encode()).hexdigest()


def describe(specs: Iterable[Covariate]) -> dict[str, str]:
    """Global attribute of a product that names its covariates; none without any."""
    words = "; ".join(f"{s.variable} of {s.path.name} ({s.kind}, transform {s.how})" for s in specs)
    return {"covariates": words} if words else {}


# ---- values ----


class Sampler:
    """Values of some fields at some places, hour by hour; counts what is unknown.

    Parameters
    ----------
    fields : from `open_all`.
    lon, lat : (N,) WGS84 degrees.
    two_sided : whether a field may be interpolated towards its next time.
    """

    def __init__(self, fields: Sequence[Field], lon: Places, lat: Places, two_sided: bool = False) -> None:
        self.fields, self.two_sided, self.count = fields, two_sided, len(lon)
        self._places = [_bind(field, lon, lat) for field in fields]
        self._fixed = [
            _at(places, _read(field, places, None)) if field.times is None else None
            for field, places in zip(fields, self._places, strict=True)
        ]
        self.asked, self.unknown = 0, 0

    def __call__(self, hours: Index) -> NDArray[np.float32]:
        """Values (J, T, N) in hours since 1970-01-01T00 UTC, transformed; NaN where unknown."""
        out = np.full((len(self.fields), len(hours), self.count), np.nan, np.float32)
        for j, (field, places) in enumerate(zip(self.fields, self._places, strict=True)):
            for start in range(0, len(hours), _CHUNK):
                part = slice(start, start + _CHUNK)
                fixed = self._fixed[j]
                out[j, part] = _values(field, places, hours[part], self.two_sided) if fixed is None else fixed
        self.asked += out[0].size if len(out) else 0
        self.unknown += int(np.isnan(out).any(axis=0).sum())
        return out

    def warn(self, what: str) -> None:
        """Log how many values were unknown so far, of `what`."""
        if self.unknown:
            names = ", ".join(field.spec.variable for field in self.fields)
            text = "covariates (%s) are unknown at %d of %d %s, which are made without any"
            log.warning(text, names, self.unknown, self.asked, what)


@dataclass(frozen=True)
class _Places:
    """How a field is read at places: a box of it, and the weights (N, box cells) of its cells."""

    box: tuple[slice, slice]
    weights: csr_array


def _bind(field: Field, lon: Places, lat: Places) -> _Places:
    """Bilinear weights; a place outside the grid has none."""
    (i, v, j, u), inside = _locate(field, lon, lat)
    rows = np.stack([i, i, i + 1, i + 1], axis=-1)
    columns = np.stack([j, j + 1, j, j + 1], axis=-1) % len(field.x)
    weight = np.stack([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u], axis=-1) * inside[:, None]
    used = weight > 0
    box = _span(rows[used]), _span(columns[used])
    height, width = (part.stop - part.start for part in box)
    at = np.where(used, (rows - box[0].start) * width + columns - box[1].start, 0)
    starts = np.arange(0, 4 * len(lon) + 1, 4)
    return _Places(box, csr_array((weight.ravel(), at.ravel(), starts), shape=(len(lon), height * width)))


def _span(index: Index) -> slice:
    return slice(int(index.min()), int(index.max()) + 1) if index.size else slice(0, 1)


def _locate(field: Field, lon: Places, lat: Places) -> tuple[tuple[Index, Float, Index, Float], NDArray[np.bool_]]:
    """Lower row, weight of the next, lower column, weight of the next; and whether places are inside the grid."""
    x, y = (np.asarray(axis, np.float64) for axis in (lon, lat))
    axis_x = field.x
    if field.to_axes is None:
        first = field.x[0] - (field.x[1] - field.x[0]) / 2
        x = first + (x - first) % 360
        axis_x = np.append(field.x, field.x[0] + 360) if field.wraps else field.x
        x = np.where(field.wraps & (x < field.x[0]), x + 360, x)
    else:
        x, y = field.to_axes.transform(x, y)
    i, v, inside_y = _between(field.y, y)
    j, u, inside_x = _between(axis_x, x)
    return (i, v, j, u), inside_x & inside_y


def _between(axis: Float, at: Float) -> tuple[Index, Float, NDArray[np.bool_]]:
    """Index of the node below, weight of the next, and whether `at` is within half a step of the axis."""
    i = np.clip(np.searchsorted(axis, at, "right") - 1, 0, len(axis) - 2)
    weight = np.clip((at - axis[i]) / (axis[i + 1] - axis[i]), 0.0, 1.0)
    low, high = axis[0] - (axis[1] - axis[0]) / 2, axis[-1] + (axis[-1] - axis[-2]) / 2
    return i, np.nan_to_num(weight), (at >= low - 1e-9) & (at <= high + 1e-9)


def _values(field: Field, places: _Places, hours: Index, two_sided: bool) -> Float:
    """Values (T, N)."""
    before, after, share = _when(field, hours, two_sided)
    out = np.full((len(hours), places.weights.shape[0]), np.nan)
    known = before >= 0
    if known.any():
        wanted, at = np.unique(np.stack([before[known], after[known]]), return_inverse=True)
        found, (low, high) = _at(places, _read(field, places, wanted)), at.reshape(2, -1)
        part = share[known, None]
        out[known] = np.where(part > 0, (1 - part) * found[low] + part * found[high], found[low])
    return out


def _when(field: Field, hours: Index, two_sided: bool) -> tuple[Index, Index, Float]:
    """Index of the field's time at or before each hour (-1: none in its step), of the next, and that one's share."""
    nothing = np.zeros(len(hours))
    if field.times is None:
        return nothing.astype(np.int64), nothing.astype(np.int64), nothing
    before = np.searchsorted(field.times, hours, "right") - 1
    age = hours - field.times[np.maximum(before, 0)]
    before = np.where((before >= 0) & (age < field.step), before, -1)
    after = np.minimum(np.maximum(before, 0) + 1, len(field.times) - 1)
    gap = field.times[after] - field.times[np.maximum(before, 0)]
    near = two_sided & (gap > 0) & (gap <= field.step)
    return before, np.where(near, after, np.maximum(before, 0)), np.where(near, age / np.maximum(gap, 1), 0.0)


def _read(field: Field, places: _Places, times: Index | None) -> Float:
    """Transformed values (times or 1, box cells); what the transform does not take is NaN."""
    part = field.data[(..., *places.box)]
    raw = np.asarray((part if times is None else part[times]).values, np.float64) * field.factor
    raw = np.maximum(raw, 0.0) if field.spec.kind == "background" else raw
    with np.errstate(invalid="ignore", divide="ignore"):
        found = _TRANSFORMS[field.spec.how](raw)
    return np.where(np.isfinite(found), found, np.nan).reshape(1 if times is None else len(times), -1)


def _at(places: _Places, values: Float) -> Float:
    """Weighted means (times, N) of the known cells around each place."""
    known = np.isfinite(values)
    total = (places.weights @ np.where(known, values, 0.0).T).T
    weight = (places.weights @ known.T.astype(np.float64)).T
    enough = weight >= _ENOUGH
    return np.where(enough, total / np.where(enough, weight, 1.0), np.nan)


# ---- what a file must be ----


@dataclass(frozen=True)
class _Axes:
    """Names of the dimensions (y, x), their values ascending, what turns the data so, whether they are projected."""

    names: tuple[str, str]
    y: Float
    x: Float
    flip: tuple[object, ...]
    projected: bool


def _open(spec: Covariate) -> xr.Dataset:
    """Open with scale factors and fill values applied, times left as numbers."""
    try:
        if spec.path.is_dir():
            return xr.open_zarr(spec.path, decode_times=False, consolidated=False, chunks=None)
        return xr.open_dataset(spec.path, decode_times=False)
    except (OSError, ValueError, RuntimeError, KeyError) as problem:
        first = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise ConfigError(f"{spec.path}: expected a NetCDF file or Zarr folder; found: {first}") from None


def _factor(spec: Covariate, data: xr.DataArray, here: str) -> float:
    units = data.attrs.get("units")
    if not isinstance(units, str):
        raise ConfigError(f"{here}: expected an attribute 'units' (CF-1.11, section 3.1); found none")
    if spec.kind == "feature":
        return 1.0
    factor = TO_UG_M3.get(units.strip().replace("µ", "u").replace("μ", "u"))
    if factor is None:
        raise ConfigError(f"{here}: expected a background in one of {', '.join(TO_UG_M3)}; found units '{units}'")
    return factor


def _time_name(data: xr.DataArray) -> str | None:
    for name in map(str, data.dims):
        attrs = data[name].attrs if name in data.coords else {}
        if attrs.get("standard_name") == "time" or " since " in str(attrs.get("units", "")):
            return name
    return None


def _axes(data: xr.DataArray, here: str) -> _Axes:
    """Find latitude and longitude, or y and x of a projection, among the dimensions' coordinates."""
    known = [str(name) for name in data.dims if name in data.coords]
    for projected, kinds in ((False, ("latitude", "longitude")), (True, _PROJECTED)):
        names = [next((n for n in known if _is(data[n].attrs, kind)), None) for kind in kinds]
        if names[0] is not None and names[1] is not None:
            return _ascending(data, (names[0], names[1]), projected, here)
    expected = "latitude and longitude in degrees_north and degrees_east, or projection_y_ and projection_x_coordinate"
    raise ConfigError(
        f"{here}: expected dimensions with coordinates {expected}; found {', '.join(map(str, data.dims))}"
    )


def _is(attrs: dict[str, object], kind: str) -> bool:
    return attrs.get("standard_name") == kind or attrs.get("units") in _DEGREES.get(kind, ())


def _ascending(data: xr.DataArray, names: tuple[str, str], projected: bool, here: str) -> _Axes:
    y, x = (data[name].values.astype(np.float64) for name in names)
    if projected:
        y, x = (axis * _metres(data[name], here) for name, axis in zip(names, (y, x), strict=True))
    elif len(x) > 1 and np.diff(x)[0] > 0:
        x = x[0] + np.append(0.0, np.cumsum(np.diff(x) % 360))
    back = slice(None, None, -1)
    flip = tuple(back if len(axis) > 1 and axis[1] < axis[0] else slice(None) for axis in (y, x))
    y, x = y[flip[0]], x[flip[1]]
    for name, axis in zip(names, (y, x), strict=True):
        if len(axis) < 2 or not (np.diff(axis) > 0).all():
            raise ConfigError(f"{here}: expected two or more values of '{name}' in order; found {len(axis)} values")
    return _Axes(names, y, x, (..., *flip), projected)


def _metres(axis: xr.DataArray, here: str) -> float:
    units = axis.attrs.get("units")
    if units not in _METRES:
        raise ConfigError(f"{here}: expected '{axis.name}' in m or km; found units {units!r}")
    return _METRES[units]


def _squeezed(data: xr.DataArray, time: str | None, names: tuple[str, str], here: str) -> xr.DataArray:
    rest = [str(name) for name in data.dims if name not in (time, *names)]
    if wide := [f"{name} ({data.sizes[name]})" for name in rest if data.sizes[name] != 1]:
        raise ConfigError(f"{here}: expected dimensions time, latitude and longitude; found {', '.join(wide)} too")
    return data.isel(dict.fromkeys(rest, 0))


def _times(time: xr.DataArray, here: str) -> Index:
    """Whole hours since 1970 that the times lie in."""
    calendar = str(time.attrs.get("calendar", "standard")).lower()
    if calendar not in _CALENDARS:
        raise ConfigError(f"{here}: expected times in the standard calendar; found '{calendar}'")
    try:
        decoded = xr.decode_cf(xr.Dataset(coords={"time": ("time", time.values, time.attrs)}))["time"].values
    except (ValueError, OverflowError) as problem:
        raise ConfigError(f"{here}: expected times as CF-1.11, section 4.4; found: {problem}") from None
    hours = decoded.astype("datetime64[h]").astype(np.int64)
    if not len(hours) or not (np.diff(hours) > 0).all():
        raise ConfigError(f"{here}: expected times in order, at most one an hour; found {len(hours)} times")
    return hours


def _transformer(whole: xr.Dataset, data: xr.DataArray, axes: _Axes) -> Transformer | None:
    """From longitude and latitude to a projected field's x and y, by its grid mapping (CF-1.11, section 5.6)."""
    if not axes.projected:
        return None
    name = data.attrs.get("grid_mapping", data.encoding.get("grid_mapping"))
    try:
        crs = CRS.from_cf(whole[name].attrs)
    except (KeyError, CRSError) as problem:
        where = data.encoding.get("source", data.name)
        raise ConfigError(f"{where}: expected a grid mapping that PROJ knows; found {name!r}: {problem}") from None
    return Transformer.from_crs("EPSG:4326", crs, always_xy=True)
