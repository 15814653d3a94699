"""Series as NetCDF-4: deflate and shuffle only, since CDO, NCO and GDAL read no other codec everywhere.

One process writes (threads crash the HDF5 library). Nothing in a file depends on when or where it was written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np

from pipeline.contract import FieldSpec
from pipeline.cube.layout import BLOCK, CHUNK
from pipeline.products.series import Series, TrackingId

#: The fill value of float variables, NetCDF's own.
MISSING: Any = netCDF4.default_fillvals["f4"]

_TIMES_A_CHUNK = 744

#: Of rounded values level 2 makes smaller files than 4, in two thirds of the time (docs/reference/benchmarks.md).
_DEFLATE = 2


def write(series: Series, path: Path, own: Mapping[str, Any]) -> None:
    """Write a series to `path`.

    Parameters
    ----------
    own : global attributes of the file: its ``id`` and ``product_version``.
    """
    with netCDF4.Dataset(path, "w", format="NETCDF4") as file:
        file.setncatts(series.global_attrs(own))
        _lay(file, series)
        tracking = TrackingId(series)
        for at, values in series.placed():
            for name, array in values.items():
                file[name][at] = np.where(np.isnan(array), MISSING, array) if array.dtype.kind == "f" else array
                tracking.update(array)
        file.tracking_id = str(tracking)


def _lay(file: netCDF4.Dataset, series: Series) -> None:
    """Define dimensions and variables (time unlimited) and write the coordinates."""
    sizes, spatial = series.coords.sizes, series.spatial
    for name in ("time", *spatial, *sorted({*map(str, sizes), "bnds"} - {*spatial})):
        file.createDimension(name, None if name == "time" else sizes.get(name, 2))
    times = min(_TIMES_A_CHUNK, max(len(series.bounds), BLOCK))
    _define(file, "time", ("time",), "f8", series.time_attrs, (times,))[:] = series.bounds[:, 0]
    _define(file, "time_bnds", ("time", "bnds"), "f8", {}, (times, 2))[:] = series.bounds
    for key, variable in sorted(series.coords.variables.items()):  # Zarr lists them as they happen to arrive
        _define(file, str(key), variable.dims, variable.dtype, variable.attrs)[...] = variable.values
    for spec in series.fields:
        _define_field(file, series, spec, times)


def _define_field(file: netCDF4.Dataset, series: Series, spec: FieldSpec, times: int) -> None:
    """A field, in chunks of 24 periods by up to 64 x 64 cells: a fair price for maps and for series."""
    edges = (_edge(series.coords.sizes[name]) for name in series.spatial)
    chunks = (BLOCK, *edges) if spec.gridded else (times,)
    fill = MISSING if spec.dtype == "float32" else False
    _define(file, spec.name, spec.dims(series.spatial), spec.dtype, series.field_attrs(spec), chunks, fill)


def _edge(size: int) -> int:
    """Cells of a chunk along an axis: as many in each as can be, since HDF5 packs the last one whole too."""
    return -(-size // -(-size // CHUNK))


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
    packed = {"zlib": True, "complevel": _DEFLATE, "shuffle": True} if len(dims) > 1 else {}
    native = np.dtype(dtype).newbyteorder("=")
    create: Any = file.createVariable  # its overloads tell each dtype apart
    variable = create(name, native, dims, chunksizes=chunks, fill_value=fill, **packed)
    variable.setncatts(attrs)
    return variable
