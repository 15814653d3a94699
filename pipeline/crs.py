"""Coordinate reference systems of grids: which are taken, and what CF says of them.

A grid may lie in latitude and longitude, on a rotated pole, or on any projection in a unit of length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from pipeline.errors import ConfigError

Float = NDArray[np.float64]

#: Units of length that a projection may have: PROJ's name -> UDUNITS' name.
LENGTHS = {"metre": "m", "kilometre": "km", "foot": "foot", "US survey foot": "US_survey_foot"}

#: CF attributes of latitude and longitude.
GEOGRAPHIC = {
    "lat": {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north"},
    "lon": {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east"},
}
_PROJECTION = {
    "y": {"standard_name": "projection_y_coordinate", "long_name": "y of the projection"},
    "x": {"standard_name": "projection_x_coordinate", "long_name": "x of the projection"},
}
_ROTATED = {
    "y": {"standard_name": "grid_latitude", "long_name": "latitude of the rotated pole", "units": "degrees"},
    "x": {"standard_name": "grid_longitude", "long_name": "longitude of the rotated pole", "units": "degrees"},
}


def parse(crs: str) -> CRS:
    """Read a CRS in degrees or a unit of length; ConfigError for any other."""
    try:
        found = CRS.from_user_input(crs)
    except CRSError as error:
        raise ConfigError(f"crs: expected a CRS that PROJ knows (EPSG:4326, say); found {crs!r}") from error
    in_length = found.is_projected and found.axis_info[0].unit_name in LENGTHS
    in_degrees = found.is_geographic and found.axis_info[0].unit_name == "degree"
    if len(found.axis_info) != 2 or not (in_length or in_degrees):
        units = ", ".join(LENGTHS)
        raise ConfigError(f"crs: expected degrees, or a projection in {units}; found {crs!r} ({found.type_name})")
    try:
        found.to_cf()
    except KeyError as missing:  # pyproj asks for every parameter of a rotated pole
        raise ConfigError(f"crs: expected a CRS with all its parameters; found {crs!r} without {missing}") from missing
    return found


def is_rotated(crs: CRS) -> bool:
    """Whether rows and columns are degrees about a pole that is not the Earth's."""
    return crs.is_geographic and crs.is_derived


def unit(crs: CRS) -> float:
    """Metres in the unit of length of a projection."""
    return crs.axis_info[0].unit_conversion_factor


def axis_attrs(crs: CRS, name: str) -> dict[str, str]:
    """CF attributes of a row or column coordinate: ``lat`` and ``lon``, or ``y`` and ``x``."""
    if name in GEOGRAPHIC:
        return GEOGRAPHIC[name]
    return _ROTATED[name] if is_rotated(crs) else _PROJECTION[name] | {"units": LENGTHS[crs.axis_info[0].unit_name]}


def grid_mapping(crs: CRS) -> dict[str, object]:
    """CF attributes of a CRS; a sphere is said by ``earth_radius`` (CF 1.11, appendix F), not by an ellipsoid."""
    attrs = crs.to_cf()
    if attrs.get("semi_major_axis") is not None and attrs["semi_major_axis"] == attrs["semi_minor_axis"]:
        attrs["earth_radius"] = attrs["semi_major_axis"]
        for name in ("semi_major_axis", "semi_minor_axis", "inverse_flattening"):
            del attrs[name]
    return attrs


def box_around(lattice: tuple[float, float, int, int], step: float, crs: CRS) -> tuple[float, float, float, float]:
    """(west, south, east, north) around the cells of a lattice, degrees; all longitudes where a pole is among them."""
    left, bottom, columns, rows = lattice
    right, top = left + step * columns, bottom + step * rows
    if crs.is_geographic and not is_rotated(crs):
        half = step / 2
        return left + half, bottom + half, right - half, top - half
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(*_around(left, bottom, right, top))
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        raise ConfigError(f"origin, size: {crs.srs} has no place on Earth for some cell of {lattice} by {step}")
    unrolled = np.unwrap(lon, period=360)
    if abs(unrolled[-1] - unrolled[0]) > 180:  # round a pole
        north = lat.mean() > 0
        return -180.0, (float(lat.min()) if north else -90.0), 180.0, (90.0 if north else float(lat.max()))
    west = (float(unrolled.min()) + 180) % 360 - 180
    return west, float(lat.min()), west + float(np.ptp(unrolled)), float(lat.max())


def _around(left: float, bottom: float, right: float, top: float, count: int = 181) -> tuple[Float, Float]:
    """Closed line along the edges of a box, counter-clockwise."""
    x, y = np.linspace(left, right, count), np.linspace(bottom, top, count)
    along = [x, np.full(count, right), x[::-1], np.full(count, left)]
    across = [np.full(count, bottom), y, np.full(count, top), y[::-1]]
    return np.concatenate(along), np.concatenate(across)
