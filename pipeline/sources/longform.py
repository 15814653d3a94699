"""Files with one row a station, hour and quantity, put into StationTable rows (one a station and hour)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.contract import POLLUTANTS, line_column


@dataclass(frozen=True)
class Readings:
    """Values as a file lists them, each array of shape (N,).

    Attributes
    ----------
    time : datetime64, UTC start of the averaging hour, whole hours.
    station : ``network:code``, any sequence of strings; a Categorical is fastest.
    pollutant : index in `pipeline.contract.POLLUTANTS`.
    value : float, in the contract's units; NaN for missing.
    line : line of the file.
    lon, lat, elevation : WGS84 degrees and metres (NaN where not known).
    """

    time: NDArray[np.datetime64]
    station: NDArray[np.object_] | pd.Categorical
    pollutant: NDArray[np.int64]
    value: NDArray[np.float64]
    line: NDArray[np.integer]
    lon: NDArray[np.float64]
    lat: NDArray[np.float64]
    elevation: NDArray[np.float64]


def to_table(readings: Readings, precedence: NDArray[np.int64] | None = None) -> pd.DataFrame:
    """Put readings into a StationTable with lines, sorted by time and station.

    Missing values are left out. Of two values of one station, hour and pollutant the one of higher `precedence` (N,)
    counts, and of equal ones the later line. A row has the coordinates of the last of its values in that order.
    """
    r = readings
    keep = np.flatnonzero(np.isfinite(r.value))
    order = (r.line[keep],) if precedence is None else (r.line[keep], precedence[keep])
    keep = keep[np.lexsort(order)]
    codes, names = pd.factorize(r.station[keep], sort=True)
    hour = r.time[keep].astype("M8[h]").astype("int64")
    first = hour.min(initial=0) if len(hour) else 0
    key, row = np.unique((hour - first) * max(len(names), 1) + codes, return_inverse=True)
    values = np.full((len(key), len(POLLUTANTS)), np.nan, dtype="float32")
    lines = np.zeros((len(key), len(POLLUTANTS)), dtype="int32")
    values[row, r.pollutant[keep]] = r.value[keep]
    lines[row, r.pollutant[keep]] = r.line[keep]
    hour, station = np.divmod(key, max(len(names), 1))
    latest = np.empty(len(key), dtype="int64")
    latest[row] = keep
    table = {
        "time": (hour + first).astype("M8[h]").astype("M8[ns]"),
        "station": pd.Categorical.from_codes(station, pd.Index([str(name) for name in names])),
        "lon": r.lon[latest],
        "lat": r.lat[latest],
        "elevation": r.elevation[latest],
    }
    table |= {name: values[:, i] for i, name in enumerate(POLLUTANTS)}
    table |= {line_column(name): lines[:, i] for i, name in enumerate(POLLUTANTS)}
    return pd.DataFrame(table)
