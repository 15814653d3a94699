"""How a field lies on a map: axis coordinates, degrees, and labels of the graticule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from pipeline.errors import ProductError
from pipeline.pages.coast import Bbox

Float = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """How a field lies on paper: axis coordinates of its centres, their degrees, and how to get from one to the other.

    ``x`` (columns,), ``y`` (rows,) in axis units (degrees or m); ``lon``, ``lat`` (rows, columns) degrees.
    """

    x: Float
    y: Float
    lon: Float
    lat: Float
    to_axes: Callable[[Float, Float], tuple[Float, Float]]
    to_degrees: Callable[[Float, Float], tuple[Float, Float]]
    projected: bool

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top edge of the cells."""
        dx, dy = (self.x[1] - self.x[0]) / 2, (self.y[1] - self.y[0]) / 2
        return self.x[0] - dx, self.x[-1] + dx, self.y[0] - dy, self.y[-1] + dy

    @property
    def bbox(self) -> Bbox:
        """(W, S, E, N) around the cells, a degree wider so that no line ends inside the map."""
        return self.lon.min() - 1, self.lat.min() - 1, self.lon.max() + 1, self.lat.max() + 1

    @property
    def aspect(self) -> float:
        """Axis units up that look as long as one across: 1 / cos(central latitude) in degrees, 1 when projected."""
        return 1.0 if self.projected else float(1 / np.cos(np.radians((self.y[0] + self.y[-1]) / 2)))


def view_of(field: xr.DataArray) -> View:
    """Read the geometry of a (lat, lon) field, or of a (y, x) field with 2-D ``lat``, ``lon`` and a ``crs``.

    Raises
    ------
    ProductError
        When the field is not a map.
    """
    if field.ndim != 2 or min(field.shape) < 2:
        raise ProductError(f"map: expected a field of two dimensions, 2 x 2 or more; found {dict(field.sizes)}")
    rows, columns = (field[name].values.astype("float64") for name in field.dims)
    if field.dims == ("lat", "lon"):
        lon, lat = np.meshgrid(columns, rows)
        middle = float(columns.mean())
        return View(columns, rows, lon, lat, lambda x, y: (_near_meridian(x, middle), y), lambda x, y: (x, y), False)
    if "crs" not in field.coords:
        raise ProductError(f"map: a field on {field.dims} needs a coordinate 'crs' with the grid mapping; found none")
    crs = CRS.from_cf(field["crs"].attrs)
    project = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform
    unproject = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform
    lat, lon = (field[name].values.astype("float64") for name in ("lat", "lon"))
    return View(columns, rows, _near_meridian(lon, float(lon[0, 0])), lat, project, unproject, True)


def _near_meridian(lon: Float, middle: float) -> Float:
    """Longitudes moved by whole turns to within 180 degrees of ``middle``."""
    return (np.asarray(lon) - middle + 180) % 360 - 180 + middle


def within(levels: Float, degrees: Float) -> Float:
    """Those of `levels` that lie in the range of `degrees`."""
    return levels[(levels >= degrees.min()) & (levels <= degrees.max())]


def ticks(axis: Float, degrees: Float, levels: Float, plus: str, minus: str) -> tuple[Float, list[str]]:
    """Where lines of whole degrees meet an edge of the map, and what to write there."""
    shown = within(levels, degrees)
    order = np.argsort(degrees)
    labels = [degrees_text(v, plus + minus) for v in shown]
    return np.interp(shown, degrees[order], axis[order]), labels


def degrees_text(value: float, signs: str) -> str:
    """An angle as maps have it: ``116.4°E``; `signs` are "EW", and longitudes run past 180, or "NS"."""
    turned = (value + 180) % 360 - 180 if signs == "EW" and abs(value) > 180 else value
    return f"{abs(turned):g}°{signs[0] if turned > 0 else signs[1] if turned < 0 else ''}"
