"""What the outlook hours of a cube and of its downloads say of themselves: that they are a forecast, whose and of when.

A cube holds the outlook of one issue time, so global attributes can name it; they are there as long as the cube holds
an outlook hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.contract import FIELD_NAMES, STREAMS
from pipeline.cube.layout import BLOCK, FILL, TIME_ATTRS, Group, to_hours
from pipeline.errors import ProductError

#: What the names of global attributes about the outlook begin with.
PREFIX = "outlook_"

#: Scalar coordinate of a file of outlook hours alone, named as CF's standard name.
ISSUE_TIME = "forecast_reference_time"

_ISSUE_ATTRS = {"standard_name": ISSUE_TIME, "long_name": "issue time of the outlook, UTC"} | {
    name: TIME_ATTRS[name] for name in ("units", "calendar", "units_metadata")
}

COMMENT = (
    "Hours whose stream is 2 are a forecast from the observations of the 336 hours before outlook_issue_time. There "
    "nearest_observation_distance is the distance to the nearest station with a valid PM2.5 observation in those 336 "
    "hours, and observation_count the number of these stations."
)


# ---- in the cube ----


def analysed_from(group: Group | None, hour: int) -> bool:
    """Whether a cube holds an analysed hour from `hour` (since 1970) on."""
    if group is None:
        return False
    stream = group["stream"][:][group["time"][:] >= hour]
    return bool(((stream != FILL["stream"]) & (stream != STREAMS["outlook"])).any())


def take_back(group: Group, published: Group, first: int, last: int) -> None:
    """Empty the outlook hours that were published outside [first, last), hours since 1970.

    They become as if never produced, but for ``revision``, which counts this too.
    """
    hours, stream = published["time"][:], published["stream"][:]
    stale = (stream == STREAMS["outlook"]) & ((hours < first) | (hours >= last))
    for day in np.unique(np.flatnonzero(stale) // BLOCK):
        at = slice(day * BLOCK, min((day + 1) * BLOCK, len(stale)))
        gone = FILL | {"revision": published["revision"][at][stale[at]] + 1}
        for name in FIELD_NAMES:
            values = group[name][at]
            values[stale[at]] = gone.get(name, np.nan)
            group[name][at] = values


def attrs(issue: np.datetime64, weights: str, digest: str) -> dict[str, str]:
    """Global attributes of a cube with an outlook.

    Parameters
    ----------
    issue : first hour of the outlook, UTC.
    weights, digest : name and SHA-256 of the outlook network's weights.
    """
    said = {
        "issue_time": f"{issue.astype('M8[s]')}Z",
        "weights": weights,
        "weights_digest": digest,
        "comment": COMMENT,
    }
    return {PREFIX + name: value for name, value in said.items()}


def without(found: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes less those about the outlook."""
    return {name: value for name, value in found.items() if not name.startswith(PREFIX)}


# ---- in what is cut from it ----


def ahead(cube: xr.Dataset) -> NDArray[np.bool_]:
    """Which hours are an outlook, (T,)."""
    return np.asarray(cube["stream"].values == STREAMS["outlook"])


def issue_time(cube: xr.Dataset) -> np.datetime64:
    """First hour of a cube's outlook, UTC.

    Raises
    ------
    ProductError
        When the cube does not say it.
    """
    said = cube.attrs.get(PREFIX + "issue_time")
    if said is None:
        raise ProductError(f"cube: expected attribute '{PREFIX}issue_time' beside hours of stream 2; found none")
    return np.datetime64(to_hours(said), "h")


def issued(cube: xr.Dataset) -> xr.Dataset:
    """Give hours of an outlook, and of nothing else, their issue time as the scalar coordinate `ISSUE_TIME`."""
    if not ahead(cube).all():
        return cube
    return cube.assign_coords({ISSUE_TIME: ((), float(to_hours(issue_time(cube))), _ISSUE_ATTRS)})


def describe(cube: xr.Dataset) -> dict[str, Any]:
    """Global attributes of some hours of a cube: those of analyses, of an outlook or, where it holds both, its own."""
    if not ahead(cube).any():
        return without(cube.attrs)
    if not ahead(cube).all():
        return dict(cube.attrs)
    return cube.attrs | {
        "title": f"Outlook issued {issue_time(cube)} UTC: {cube.attrs['title']}",
        "summary": f"Forecast, not analysis. {COMMENT}",
        "source": "AQ-Net outlook from hourly station observations before the issue time",
        "processing_level": "gridded forecast from quality-controlled station observations",
    }
