"""The nearest stations of many points, and their distances, when stations come and go.

A point's list of nearest stations is made once; which of them report is then a matter of running down the list.

Shapes: S stations of a record, Q points, J candidates, K neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from model.compiled import in_threads
from model.geometry import _WGS84, _earth_centred, _geodesic
from model.kriging_loops import choose
from model.windows import Float

#: Candidates a point has beyond the neighbours that are wanted, and beyond those candidates: near ties may swap.
SPARE, _EXTRA = 16, 4

#: Distance up to which `distances` bends the chord, km; points whose lists are made at once, or multiples of it.
_BENT, _CHUNK = 1000.0, 512

Index = NDArray[np.int32]


class Neighbours(NamedTuple):
    """Nearest stations of each point: `station` (Q, K) int32 of the record, `km` (Q, K) float32 ascending."""

    station: Index
    km: NDArray[np.float32]


def distances(a: Float, b: Float) -> NDArray[np.float64]:
    """Kilometres (...) along WGS84 between places given by their Earth-centred positions (..., 3), in equatorial radii.

    The chord is bent with the curvature that the ellipsoid has half-way along it, in its direction: for a quadric
    x'Ax = 1 that is (d'Ad) / |Am|, m the middle and d the direction (do Carmo 1976, section 3-3). Up to 1000 km this is
    within 3e-8 of the geodesic.
    """
    chord, middle, stretch = b - a, (a + b) / 2, np.array([1.0, 1.0, 1 / (1 - _WGS84.es)])
    length, bent = np.sqrt((chord**2).sum(-1)), np.sqrt(chord**2 @ stretch)
    ratio = np.divide(bent, length, out=np.ones_like(length), where=length > 0)
    bend = ratio**2 * np.sqrt((middle**2 @ stretch) / (middle**2 @ stretch**2))
    return np.asarray(2 / bend * np.arcsin(np.minimum(length * bend / 2, 1.0)) * _WGS84.a / 1000)


class Finder:
    """Finds the nearest reporting stations of fixed points."""

    def __init__(self, lon: Float, lat: Float, station_lon: Float, station_lat: Float, k: int) -> None:
        self.lon, self.lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
        self.station_lon, self.station_lat = np.asarray(station_lon, np.float64), np.asarray(station_lat, np.float64)
        self.candidates = self.search(np.arange(len(self.lon)), np.arange(len(self.station_lon)), k + SPARE)

    def search(self, points: NDArray[np.int64], stations: NDArray[np.int64], k: int) -> Neighbours:
        """Nearest k of some stations for some points; all stations when there are fewer."""
        k = min(k, len(stations))
        found = Neighbours(np.empty((len(points), k), np.int32), np.empty((len(points), k), np.float32))
        places = _earth_centred(self.station_lon[stations], self.station_lat[stations])
        if not k:
            return found
        tree = cKDTree(places)

        def work(part: slice) -> None:
            at = _earth_centred(self.lon[points[part]], self.lat[points[part]])
            near = np.sort(tree.query(at, k=np.arange(1, min(k + _EXTRA, len(stations)) + 1))[1], axis=1)
            km = self._distances(points[part], stations[near], distances(at[:, None], places[near]))
            order = np.argsort(km, axis=1, kind="stable")[:, :k]
            found.station[part] = stations[np.take_along_axis(near, order, axis=1)]
            found.km[part] = np.take_along_axis(km, order, axis=1)

        in_threads(work, len(points), _CHUNK)
        return found

    def _distances(
        self, rows: NDArray[np.int64], stations: NDArray[np.int64], km: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Replace long distances by the geodesic."""
        i, j = np.nonzero(km > _BENT)
        far = stations[i, j]
        km[i, j] = _geodesic(self.lon[rows[i]], self.lat[rows[i]], self.station_lon[far], self.station_lat[far])
        return km

    def reporting(self, stations: NDArray[np.int64], k: int) -> Neighbours:
        """Nearest k of the reporting stations for every point; k is at most their number."""
        found = Neighbours(np.zeros((len(self.lon), k), np.int32), np.zeros((len(self.lon), k), np.float32))
        mark = np.zeros(len(self.station_lon), bool)
        mark[stations] = True
        short = np.flatnonzero(choose(*self.candidates, mark, *found) < k)
        if len(short):
            found.station[short], found.km[short] = self.search(short, stations, k)
        return found
