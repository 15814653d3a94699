"""Downloads cut from the published cube: monthly NetCDF-4 files, a plain Zarr folder and their checksums.

Everything is written beside its place and renamed, so that a file is there whole or not at all; nothing in a file
depends on when or where it was exported, so that the same hours make the same bytes. Time flows through in blocks of
24 hours: memory does not grow with the period. One process writes (threads crash the HDF5 library).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import netCDF4
import numpy as np
import pandas as pd
import xarray as xr
import zarr
from numpy.typing import NDArray

from pipeline import outlook_fields
from pipeline.atomic import replacing
from pipeline.contract import FIELD_NAMES, FIELDS, STREAMS, FieldSpec
from pipeline.errors import ConfigError, ProductError
from pipeline.grid import extent
from pipeline.layout import BLOCK, CHUNK, FILL, TIME_ATTRS, Group, field_attrs, lay, plain, time_coverage, to_hours
from pipeline.provenance import digest_file

log = logging.getLogger("aqnet")

Bbox = tuple[float, float, float, float]

#: Global attributes that a reader wants to see first; history comes last.
_FIRST = ("Conventions", "title", "summary", "id", "product_version", "revision", "tracking_id", "keywords")

_MISSING: Any = netCDF4.default_fillvals["f4"]
_NO_ID = f"urn:uuid:{uuid5(NAMESPACE_URL, '')}"


def subset(
    cube: xr.Dataset, stream: str | None = None, start: object = None, end: object = None, bbox: Bbox | None = None
) -> xr.Dataset:
    """Produced hours in [start, end) and the cells whose centres lie in a box, as a lazy view.

    Parameters
    ----------
    cube : what `write.open_cube` returned.
    stream : ``interim``, ``final`` or ``outlook``; any when None.
    start, end : UTC; the cube's own when None.
    bbox : (west, south, east, north), degrees; west > east crosses the dateline. On a projected grid the smallest
        rectangle of rows and columns around those cells.

    Raises
    ------
    ProductError
        When no hour or no cell is left.
    """
    hours, produced = _hours(cube), cube["stream"].values
    keep = produced != FILL["stream"] if stream is None else produced == STREAMS[stream]
    if start is not None:
        keep &= hours >= to_hours(start)
    if end is not None:
        keep &= hours < to_hours(end)
    if not keep.any():
        period = f"{start or '...'} to {end or '...'}"
        raise ProductError(f"export: the cube holds no {stream or 'produced'} hour in {period}")
    cube = cube.isel(time=_positions(keep))
    return cube.isel(_window(cube, bbox)) if bbox else cube


def _positions(keep: NDArray[np.bool_]) -> slice | NDArray[np.intp]:
    """Return where ``keep`` holds, as a slice where it can be: Zarr reads a slice many times faster than a list."""
    at = np.flatnonzero(keep)
    return slice(int(at[0]), int(at[-1]) + 1) if at[-1] - at[0] + 1 == len(at) else at


def _hours(cube: xr.Dataset) -> NDArray[np.int64]:
    return cube["time"].values.astype("datetime64[h]").astype("int64")


def _window(cube: xr.Dataset, bbox: Bbox) -> dict[str, slice]:
    """Rows and columns around the cells with centres in ``bbox``."""
    west, south, east, north = bbox
    margin = 1e-6
    inside = (cube["lat"] >= south - margin) & (cube["lat"] <= north + margin)
    inside = inside & ((cube["lon"] - west + margin) % 360 <= (east - west) % 360 + 2 * margin)
    if not inside.any():
        raise ProductError(f"export: no cell of the cube lies in bbox {bbox}")
    window = {}
    for name in inside.dims:
        (at,) = np.nonzero(inside.any([other for other in inside.dims if other != name]).values)
        window[str(name)] = slice(int(at[0]), int(at[-1]) + 1)
    return window


def export_netcdf(
    cube: xr.Dataset,
    out_dir: str | Path,
    domain: str,
    stream: str,
    version: str,
    *,
    start: object = None,
    end: object = None,
    bbox: Bbox | None = None,
) -> list[Path]:
    """Write one NetCDF-4 file a calendar month of the hours that ``stream`` produced.

    Names are ``pm25_<domain>_aqnet_<stream>_v<version>_hourly_<first day>-<last day>.nc``. Deflate level 4 with
    shuffle: CDO, NCO and GDAL read no other codec everywhere. See `subset` for the arguments it takes.

    Returns
    -------
    The files, earliest first.
    """
    part = subset(cube, stream, start, end, bbox)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    months = part["time"].values.astype("datetime64[M]")
    files = []
    for month in np.unique(months):
        piece = part.isel(time=_positions(months == month))
        first, last = (str(day).replace("-", "") for day in piece["time"].values[[0, -1]].astype("datetime64[D]"))
        name = f"pm25_{domain}_aqnet_{stream}_v{version}_hourly_{first}-{last}.nc"
        with replacing(out_dir / name) as path:
            own = {"id": name.removesuffix(".nc"), "product_version": version}
            _write_netcdf(outlook_fields.issued(piece), path, own)
        files.append(out_dir / name)
        log.info("wrote %s", out_dir / name)
    return files


def _attrs(cube: xr.Dataset, own: Mapping[str, str]) -> dict[str, Any]:
    """Global attributes of a download: the cube's, with the extent, period and identifier of this part of it."""
    found = {**outlook_fields.describe(cube), **extent(cube), **time_coverage(_hours(cube))}
    attrs = {**found, "tracking_id": _NO_ID, **own}
    order = {name: place for place, name in enumerate(_FIRST)} | {"history": len(attrs)}
    return {name: attrs[name] for name in sorted(attrs, key=lambda name: order.get(name, len(_FIRST)))}


def _blocks(cube: xr.Dataset) -> Iterator[tuple[slice, dict[str, NDArray[Any]]]]:
    """Place along time and values of every field, 24 hours at a time."""
    for first in range(0, cube.sizes["time"], BLOCK):
        at = slice(first, min(first + BLOCK, cube.sizes["time"]))
        yield at, {name: cube[name].isel(time=at).values for name in FIELD_NAMES}


def _write_netcdf(cube: xr.Dataset, path: Path, own: Mapping[str, str]) -> None:
    with netCDF4.Dataset(path, "w", format="NETCDF4") as file:
        file.setncatts(_attrs(cube, own))
        _lay_netcdf(file, cube)
        file.tracking_id = _write_blocks(cube, file.variables, missing=_MISSING)


def _write_blocks(cube: xr.Dataset, arrays: Mapping[str, Any] | Group, missing: float = np.nan) -> str:
    """Stream every field, NaN as ``missing``; return a UUID of all values, times and places."""
    digest = hashlib.sha256(_hours(cube).tobytes())
    for name in ("lat", "lon"):
        digest.update(cube[name].values.tobytes())
    for at, values in _blocks(cube):
        for name, array in values.items():
            arrays[name][at] = np.where(np.isnan(array), missing, array) if array.dtype.kind == "f" else array
            digest.update(np.ascontiguousarray(array).data)
    return f"urn:uuid:{uuid5(NAMESPACE_URL, digest.hexdigest())}"


def _lay_netcdf(file: netCDF4.Dataset, cube: xr.Dataset) -> None:
    """Define dimensions and variables (time unlimited) and write the coordinates."""
    spatial = ("y", "x") if "y" in cube.dims else ("lat", "lon")
    static = cube.coords.to_dataset().drop_dims("time")
    for name in ("time", *spatial, *sorted({*map(str, static.sizes), "bnds"} - {*spatial})):
        file.createDimension(name, None if name == "time" else cube.sizes.get(name, 2))
    hours = _hours(cube)
    _define(file, "time", ("time",), "f8", TIME_ATTRS, chunks=(744,))[:] = hours
    _define(file, "time_bnds", ("time", "bnds"), "f8", {}, chunks=(744, 2))[:] = np.stack([hours, hours + 1], axis=-1)
    for key, variable in sorted(static.variables.items()):  # Zarr lists them as they happen to arrive
        _define(file, str(key), variable.dims, variable.dtype, variable.attrs)[...] = variable.values
    for spec in FIELDS:
        _define_field(file, spec, spatial)


def _define_field(file: netCDF4.Dataset, spec: FieldSpec, spatial: tuple[str, str]) -> None:
    """A field, in chunks of a day by 64 x 64 cells: a fair price for maps and for series."""
    chunks = (BLOCK, *(min(CHUNK, len(file.dimensions[name])) for name in spatial)) if spec.gridded else (744,)
    fill = _MISSING if spec.dtype == "float32" else False
    attrs = field_attrs(spec, spatial)
    if outlook_fields.ISSUE_TIME in file.variables:
        attrs["coordinates"] = " ".join(filter(None, [attrs.get("coordinates"), outlook_fields.ISSUE_TIME]))
    _define(file, spec.name, spec.dims(spatial), spec.dtype, attrs, chunks, fill)


def _define(
    file: netCDF4.Dataset,
    name: str,
    dims: tuple[Any, ...],
    dtype: np.typing.DTypeLike,
    attrs: Mapping[str, object],
    chunks: tuple[int, ...] | None = None,
    fill: float | bool = False,
) -> Any:
    """One variable; ``fill`` False leaves it without ``_FillValue``."""
    packed = {"zlib": True, "complevel": 4, "shuffle": True} if len(dims) > 1 else {}
    native = np.dtype(dtype).newbyteorder("=")
    create: Any = file.createVariable  # its overloads tell each dtype apart
    variable = create(name, native, dims, chunksizes=chunks, fill_value=fill, **packed)
    variable.setncatts(attrs)
    return variable


def export_zarr(
    cube: xr.Dataset,
    path: str | Path,
    *,
    start: object = None,
    end: object = None,
    bbox: Bbox | None = None,
) -> Path:
    """Write the produced hours as a plain Zarr v3 folder with consolidated metadata; see `subset` for the arguments.

    The folder takes its place whole; a Zarr that was there is renamed away just before.

    Raises
    ------
    ConfigError
        When something other than a Zarr is there.
    """
    part, path = subset(cube, None, start, end, bbox), Path(path)
    if path.exists() and not (path / "zarr.json").is_file():
        raise ConfigError(f"{path}: expected nothing there or a Zarr to replace; found something else, left as it is")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as folder:
        group = zarr.open_group(folder, mode="w")
        lay(group, part.coords.to_dataset().drop_dims("time"), _hours(part))
        group.attrs.update(plain(_attrs(part, {"id": path.stem})))
        group.attrs["tracking_id"] = _write_blocks(part, group)
        _consolidate(folder)
    log.info("wrote %s", path)
    return path


def _consolidate(folder: Path) -> None:
    """Put every array's metadata into the root's, where xarray looks for it first."""
    arrays = {file.parent.name: json.loads(file.read_text()) for file in sorted(folder.glob("*/zarr.json"))}
    root = json.loads((folder / "zarr.json").read_text())
    root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": arrays}
    (folder / "zarr.json").write_text(json.dumps(root, indent=2))


def check_table_name(path: Path) -> Path:
    """Return `path` if `write_table` can write it; ConfigError otherwise."""
    if path.suffix not in (".csv", ".parquet", ".nc"):
        raise ConfigError(f"{path}: expected a name that ends in .csv, .parquet or .nc")
    return path


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write estimates at points as ``.csv``, ``.parquet`` or ``.nc`` (dims time, station), whole or not at all.

    Parameters
    ----------
    table : columns ``time`` (hour starts, UTC), ``station`` and any of the cube's fields; one row an hour and station.

    Raises
    ------
    ConfigError
        When the name ends otherwise.
    """
    path = check_table_name(Path(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        if path.suffix == ".csv":
            table.to_csv(part, index=False, date_format="%Y-%m-%dT%H:%M:%S")
        elif path.suffix == ".parquet":
            table.to_parquet(part, index=False)
        else:
            _as_dataset(table).to_netcdf(part, engine="netcdf4")
    return path


def _as_dataset(table: pd.DataFrame) -> xr.Dataset:
    """Reshape a table of hours and stations to (time, station), stations in the table's order, with CF attributes."""
    data = table.set_index(["time", "station"]).to_xarray().sel(station=table["station"].unique())
    for spec in FIELDS:
        if spec.name in data:
            data[spec.name].attrs = dict(spec.attrs)
    data["time"].attrs = {name: TIME_ATTRS[name] for name in ("standard_name", "long_name", "units_metadata", "axis")}
    data["time"].encoding = {"units": TIME_ATTRS["units"], "calendar": TIME_ATTRS["calendar"], "dtype": "int32"}
    data["station"].attrs = {"long_name": "identifier of the point", "cf_role": "timeseries_id"}
    return data.assign_attrs(Conventions="CF-1.11", featureType="timeSeries", title="PM2.5 at points, AQ-Net")


def sha256sums(out_dir: str | Path) -> Path:
    """Write ``SHA256SUMS`` of the files in a folder (not in folders below it), as ``sha256sum -c`` reads it."""
    out_dir = Path(out_dir)
    names = sorted(file.name for file in out_dir.iterdir() if file.is_file() and not file.name.startswith("."))
    lines = [f"{digest_file(out_dir / name)}  {name}\n" for name in names if name != "SHA256SUMS"]
    with replacing(out_dir / "SHA256SUMS") as path:
        path.write_text("".join(lines))
    return out_dir / "SHA256SUMS"
