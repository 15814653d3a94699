"""titanlib's spatial checks of PM2.5, each hour by itself: isolation, buddy check, spatial consistency test.

Reference: Baserud et al. (2020), TITAN automatic spatial quality control of meteorological in-situ observations,
Adv. Sci. Res. 17.
"""

from __future__ import annotations

import numpy as np
import titanlib
import xarray as xr
from numpy.typing import NDArray

from pipeline.qc.flags import FLAGS, INVALID, Bits, Float, Mask
from pipeline.qc.neighbours import HEIGHT, LEAST, RADIUS

#: Buddy check: stations within 100 km and 500 m of height, five at least; departure in standard deviations (log).
BUDDY = {"radius": [100e3], "num_min": [5], "threshold": 3.5, "max_elev_diff": 500.0, "elev_gradient": 0.0}
BUDDY |= {"min_std": 0.3, "num_iterations": 2}

#: Spatial consistency test: length scales in m; five stations at least, so that an isolated one is left alone.
SCT = {"num_min": 5, "num_max": 50, "inner_radius": 80e3, "outer_radius": 150e3, "num_iterations": 2}
SCT |= {"num_min_prof": 1000, "min_elev_diff": 200.0, "min_horizontal_scale": 10e3, "vertical_scale": 500.0}
SCT_THRESHOLD, SCT_NOISE_RATIO = 12.0, 0.5


def flag_spatially(cube: xr.Dataset, logs: Float, bits: Bits, first: int = 0) -> None:
    """Set the isolated, buddy and SCT bits from row `first` on, among the values that no other check makes invalid.

    Parameters
    ----------
    logs : (T, S) log(PM2.5 + offset) less the station's usual departure from its neighbours.
    bits : (T, S) of PM2.5, changed in place.
    """
    titanlib.set_omp_threads(1)
    place = np.stack([cube[name].to_numpy() for name in ("lat", "lon", "elevation")])
    for hour in range(first, len(logs)):
        at = _usable(bits[hour], logs[hour])
        bits[hour, at[_isolated(place[:, at])]] |= FLAGS["isolated"]
        for name, check in (("buddy", _buddy), ("sct", _sct)):
            at = _usable(bits[hour], logs[hour])
            suspect = check(titanlib.Points(*place[:, at]), logs[hour, at])
            bits[hour, at[suspect]] |= FLAGS[name]


def _usable(bits: Bits, logs: Float) -> NDArray[np.int64]:
    return np.flatnonzero((bits & INVALID == 0) & np.isfinite(logs))


def _isolated(place: NDArray[np.float64]) -> Mask:
    """Whether fewer than `LEAST` others report within `RADIUS` and `HEIGHT`: nothing to be compared with."""
    found = titanlib.isolation_check(titanlib.Points(*place), LEAST, RADIUS, HEIGHT)
    return np.asarray(found) == 1


def _buddy(points: titanlib.Points, logs: Float) -> Mask:
    return np.asarray(titanlib.buddy_check(points, logs, *BUDDY.values())) == 1


def _sct(points: titanlib.Points, logs: Float) -> Mask:
    threshold, noise = np.full(len(logs), SCT_THRESHOLD), np.full(len(logs), SCT_NOISE_RATIO)
    return np.asarray(titanlib.sct(points, logs, *SCT.values(), threshold, threshold, noise)[0]) == 1
