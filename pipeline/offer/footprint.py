"""Where a product lies, in the words of STAC: footprint, grid, dimensions and variables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pystac
from numpy.typing import NDArray
from pyproj import CRS
from pystac.extensions.datacube import DatacubeExtension, Dimension, Variable
from pystac.extensions.projection import ProjectionExtension

from pipeline.offer.inventory import Axes, Product

_STEPS = {"hourly": "PT1H", "daily": "P1D", "monthly": "P1M"}

Float = NDArray[np.float64]


def bbox(outline: Float) -> list[float]:
    """West, south, east, north; longitudes in [-180, 180], west above east where the dateline is crossed (RFC 7946)."""
    (west, south), (east, north) = outline.min(axis=0), outline.max(axis=0)
    if east - west >= 360:
        west, east = -180.0, 180.0
    west, east = (west - 360 if west >= 180 else west), (east - 360 if east > 180 else east)
    return [round(float(edge), 6) for edge in (west, south, east, north)]


def geometry(outline: Float) -> dict[str, Any]:
    """GeoJSON polygon of the outline; two boxes where it crosses the dateline (RFC 7946, 3.1.9)."""
    west, south, east, north = bbox(outline)
    if west <= east:
        turned = outline - [360 if outline[:, 0].min() >= 180 else 0, 0]
        return {"type": "Polygon", "coordinates": [np.round(turned, 6).tolist()]}
    boxes = [(west, 180.0), (-180.0, east)]
    return {"type": "MultiPolygon", "coordinates": [[_ring(left, south, right, north)] for left, right in boxes]}


def _ring(west: float, south: float, east: float, north: float) -> list[list[float]]:
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def describe_grid(item: pystac.Item, axes: Axes) -> None:
    """CRS, shape and affine transform of the cells in the order of the file, which begins in the south.

    See https://github.com/stac-extensions/projection.
    """
    code = CRS.from_wkt(axes.crs).to_epsg()
    (west, east, dx), (south, north, dy) = _edges(axes.x), _edges(axes.y)
    ProjectionExtension.ext(item, add_if_missing=True).apply(
        code=f"EPSG:{code}" if code else None,
        wkt2=None if code else axes.crs,
        bbox=[west, south, east, north],
        shape=[len(axes.y), len(axes.x)],
        transform=[dx, 0.0, west, 0.0, dy, south],
    )


def _edges(centres: Float) -> tuple[float, float, float]:
    """Outer edges of evenly spaced cells, and their size; 0 for a single cell, whose size nothing tells."""
    size = (centres[-1] - centres[0]) / max(len(centres) - 1, 1)
    found = centres[0] - size / 2, centres[-1] + size / 2, size
    return round(float(found[0]), 9), round(float(found[1]), 9), round(float(found[2]), 9)


def describe_cube(item: pystac.Item, product: Product, period: tuple[str, str]) -> None:
    """Dimensions and variables; see https://github.com/stac-extensions/datacube."""
    axes, step = product.axes, _STEPS.get(product.frequency.split("-")[0])
    dimensions = {"time": Dimension.from_dict({"type": "temporal", "extent": list(period), "step": step})}
    for letter, name, values in zip("yx", axes.spatial, (axes.y, axes.x), strict=True):
        dimensions[name] = Dimension.from_dict(_spatial(letter, values, axes.crs))
    fields = {name: found for name, found in product.variables.items() if "time" in found.dims}
    variables = {
        name: Variable(_variable(found.dims, found.units, found.description))
        for name, found in fields.items()
        if not name.startswith("time")
    }
    DatacubeExtension.ext(item, add_if_missing=True).apply(dimensions, variables)


def _spatial(letter: str, values: Float, crs: str) -> dict[str, Any]:
    extent = [float(values.min()), float(values.max())]
    found = {"type": "spatial", "axis": letter, "extent": extent, "step": _edges(values)[2] or None}
    return found | {"reference_system": CRS.from_wkt(crs).to_epsg() or crs}


def _variable(dims: tuple[str, ...], units: str, description: str) -> dict[str, Any]:
    found = {"dimensions": list(dims), "type": "data", "unit": units, "description": description}
    return {name: value for name, value in found.items() if value}
