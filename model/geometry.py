"""Distances on the Earth and the nearest stations of a point.

Shapes: S stations, Q points, A and B any two sets of places. Longitude comes before latitude; WGS84 degrees in,
kilometres out. Longitudes may run over [-180, 180] or [0, 360].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pyproj import Geod
from scipy.spatial import cKDTree

from model.windows import Float

_WGS84 = Geod(ellps="WGS84")

#: Candidates taken beyond k, since straight lines through the Earth may order near ties differently.
_EXTRA = 8

#: IUGG mean radius (2a + b) / 3, km, and the distance up to which an arc of it stands for the geodesic, km.
_MEAN_RADIUS = 6371.0088
_ARC_LIMIT = 3000.0

#: Horizontal kilometres that one kilometre of height counts for; chosen on the CNEMC record of 2019.
TERRAIN_FACTOR = 400.0


def neighbours(
    points_lon: Float, points_lat: Float, station_lon: Float, station_lat: Float, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Nearest stations of each point, nearest first.

    Candidates come from a k-d tree of Earth-centred positions, which knows neither date line nor poles; their order
    and distance are those of the WGS84 geodesic (Karney 2013, doi:10.1007/s00190-012-0578-z).

    Parameters
    ----------
    points_lon, points_lat : (Q,) degrees.
    station_lon, station_lat : (S,) degrees.
    k : stations wanted; all S when there are fewer.

    Returns
    -------
    index : (Q, min(k, S)) int64 into the stations; ties go to the lower index.
    distance : (Q, min(k, S)) km, ascending along the second axis.
    """
    k = min(k, len(station_lon))
    wanted = min(k + _EXTRA, len(station_lon))
    tree = cKDTree(_earth_centred(station_lon, station_lat))
    candidates = tree.query(_earth_centred(points_lon, points_lat), k=np.arange(1, wanted + 1))[1]
    candidates = np.sort(candidates.reshape(len(points_lon), wanted), axis=1)
    km = _geodesic(
        np.asarray(points_lon)[:, None],
        np.asarray(points_lat)[:, None],
        np.asarray(station_lon)[candidates],
        np.asarray(station_lat)[candidates],
    )
    order = np.argsort(km, axis=1, kind="stable")[:, :k]
    index = np.take_along_axis(candidates, order, axis=1).astype(np.int64)
    return index, np.take_along_axis(km, order, axis=1)


def distance_matrix(lon_a: Float, lat_a: Float, lon_b: Float, lat_b: Float) -> NDArray[np.float64]:
    """Distance between every place of one set and every place of another.

    Up to `_ARC_LIMIT` the straight line through the Earth is bent to an arc of the mean radius, which is within
    0.013 % of the WGS84 geodesic (0.0015 % at 1000 km) and a hundred times cheaper; beyond it is the geodesic.

    Returns
    -------
    (A, B) km.
    """
    a, b = _earth_centred(lon_a, lat_a), _earth_centred(lon_b, lat_b)
    chord = np.sqrt(sum((a[:, None, axis] - b[None, :, axis]) ** 2 for axis in range(3)))
    km = 2.0 * _MEAN_RADIUS * np.arcsin(np.minimum(chord * _WGS84.a / 2000.0 / _MEAN_RADIUS, 1.0))
    i, j = np.nonzero(km > _ARC_LIMIT)
    km[i, j] = _geodesic(np.asarray(lon_a)[i], np.asarray(lat_a)[i], np.asarray(lon_b)[j], np.asarray(lat_b)[j])
    return km


def terrain_distance(d_km: Float, dz_m: Float, factor: float = TERRAIN_FACTOR) -> NDArray[np.float64]:
    """Distance that counts a difference in height as a horizontal one: sqrt(d^2 + (factor dz)^2), both in km.

    Parameters
    ----------
    d_km : horizontal distance, km.
    dz_m : difference in elevation, m, broadcastable to `d_km`.
    factor : horizontal kilometres a kilometre of height counts for; 0 leaves `d_km`.
    """
    return np.hypot(np.asarray(d_km, np.float64), factor * np.asarray(dz_m, np.float64) / 1000.0)


def _earth_centred(lon: Float, lat: Float) -> NDArray[np.float64]:
    """Positions on the ellipsoid, Earth-centred, (N, 3), in equatorial radii."""
    lam, phi = np.radians(np.asarray(lon, np.float64)), np.radians(np.asarray(lat, np.float64))
    normal = 1.0 / np.sqrt(1.0 - _WGS84.es * np.sin(phi) ** 2)
    across = normal * np.cos(phi)
    return np.column_stack([across * np.cos(lam), across * np.sin(lam), normal * (1.0 - _WGS84.es) * np.sin(phi)])


def _geodesic(lon_a: Float, lat_a: Float, lon_b: Float, lat_b: Float) -> NDArray[np.float64]:
    """Elementwise WGS84 geodesic of broadcastable coordinates, km."""
    ends = [np.asarray(c, np.float64) for c in np.broadcast_arrays(lon_a, lat_a, lon_b, lat_b)]
    metres = _WGS84.inv(ends[0].ravel(), ends[1].ravel(), ends[2].ravel(), ends[3].ravel())[2]
    return np.asarray(metres).reshape(ends[0].shape) / 1000.0
