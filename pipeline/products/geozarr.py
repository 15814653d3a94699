"""GeoZarr attributes: what a reader of Zarr that knows no CF needs to put the cube on a map.

The Zarr conventions ``proj`` (geo-proj v1), ``spatial`` (v1) and ``CF`` (v1), which the OGC's GeoZarr working group
builds on, as attributes of the group; its arrays inherit them. https://github.com/zarr-conventions
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from pyproj import CRS

#: Group attributes that belong to GeoZarr; NetCDF has no place for them.
REGISTER = "zarr_conventions"
_PREFIXES = ("proj:", "spatial:")

_HOME = "https://github.com/zarr-conventions"
_SCHEMAS = "https://raw.githubusercontent.com/zarr-conventions"
CONVENTIONS = [
    {
        "schema_url": f"{_SCHEMAS}/geo-proj/refs/tags/v1/schema.json",
        "spec_url": f"{_HOME}/geo-proj/blob/v1/README.md",
        "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "name": "proj:",
        "description": "Coordinate reference system information for geospatial data",
    },
    {
        "schema_url": f"{_SCHEMAS}/spatial/refs/tags/v1/schema.json",
        "spec_url": f"{_HOME}/spatial/blob/v1/README.md",
        "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        "name": "spatial:",
        "description": "Spatial coordinate information",
    },
    {
        "schema_url": f"{_SCHEMAS}/CF/refs/tags/v1/schema.json",
        "spec_url": "https://cfconventions.org/Data/cf-conventions/cf-conventions-1.11/cf-conventions.html",
        "uuid": "77c308c7-4db2-4774-8b2d-aa37e9997db6",
        "name": "CF",
        "version": "1.11",
        "description": "Climate and Forecast conventions for self-describing geospatial data",
    },
]


def attrs(coords: xr.Dataset) -> dict[str, Any]:
    """Group attributes for a grid.

    Parameters
    ----------
    coords : from `pipeline.grid.Grid.coords`, or a box of it: equally spaced, with bounds and the grid mapping ``crs``.

    Returns
    -------
    dict
        ``proj:code`` where an authority knows the CRS and ``proj:wkt2`` always; ``spatial:transform`` from array
        indices to edges of cells. Rows ascend: it begins at the lower left corner and both steps are above 0.
    """
    rows, columns = ("y", "x") if "y" in coords.dims else ("lat", "lon")
    left, bottom, right, top = box(coords)
    steps = [(right - left) / coords.sizes[columns], (top - bottom) / coords.sizes[rows]]
    dx, dy = (float(np.round(step, 10)) for step in steps)
    return {
        REGISTER: CONVENTIONS,
        **_crs(coords),
        "spatial:dimensions": [rows, columns],
        "spatial:shape": [coords.sizes[rows], coords.sizes[columns]],
        "spatial:bbox": [left, bottom, right, top],
        "spatial:transform_type": "affine",
        "spatial:transform": [dx, 0.0, left, 0.0, dy, bottom],
        "spatial:registration": "pixel",
    }


def box(coords: xr.Dataset) -> tuple[float, float, float, float]:
    """(left, bottom, right, top) edges of the cells in CRS units; cells over a pole are whole."""
    edges = []
    for name in ("x", "y") if "y" in coords.dims else ("lon", "lat"):
        axis, bounds = coords[name].values, coords[f"{name}_bnds"].values
        step = float(axis[1] - axis[0]) if len(axis) > 1 else float(bounds[0, 1] - bounds[0, 0])
        edges.append((float(np.round(axis[0] - step / 2, 10)), float(np.round(axis[-1] + step / 2, 10))))
    (left, right), (bottom, top) = edges
    return left, bottom, right, top


def _crs(coords: xr.Dataset) -> dict[str, str]:
    crs = CRS.from_wkt(coords["crs"].attrs["crs_wkt"])
    known = crs.to_authority(min_confidence=100)
    return ({"proj:code": ":".join(known)} if known else {}) | {"proj:wkt2": crs.to_wkt("WKT2_2019")}


def without(found: Mapping[str, Any]) -> dict[str, Any]:
    """Global attributes less those of GeoZarr: what NetCDF can hold."""
    return {name: value for name, value in found.items() if name != REGISTER and not name.startswith(_PREFIXES)}
