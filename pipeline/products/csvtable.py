"""Series as a long CSV table: a row a period and cell that holds a concentration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.products.series import Series, Values


def write(series: Series, path: Path) -> None:
    """Write ``time`` (start, UTC), ``lat``, ``lon`` (degrees) and every variable, by time, then row, then column.

    Rows without a concentration (sea, hours or days too few) are left out. Six digits are more than rounding to 9 bits
    of mantissa leaves (see `pipeline.cube.write.bitround`).
    """
    lat, lon = _places(series)
    with path.open("w", newline="") as file:
        for number, (at, values) in enumerate(series.placed()):
            table = _table(series, series.bounds[at, 0], values, lat, lon)
            table.to_csv(file, index=False, header=number == 0, float_format="%.6g", date_format="%Y-%m-%dT%H:%M:%SZ")


def _places(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude of every cell as text with up to 6 decimals (0.1 m), (cells,) each."""
    lat, lon = series.coords["lat"], series.coords["lon"]
    if lat.ndim == 1:
        lat, lon = (axis.transpose(*series.spatial) for axis in (lat.broadcast_like(lon), lon.broadcast_like(lat)))
    return _as_text(lat.values), _as_text(lon.values)


def _as_text(degrees: np.ndarray) -> np.ndarray:
    return np.array([f"{value:.6f}".rstrip("0").rstrip(".") for value in degrees.ravel()], object)


def _table(series: Series, starts: np.ndarray, values: Values, lat: np.ndarray, lon: np.ndarray) -> pd.DataFrame:
    kept = np.isfinite(values["pm2p5"]).reshape(len(starts), -1)
    step, cell = np.nonzero(kept)
    columns = {"time": starts[step].astype("M8[h]").astype("M8[s]"), "lat": lat[cell], "lon": lon[cell]}
    for spec in series.fields:
        array = values[spec.name]
        columns[spec.name] = array.reshape(len(starts), -1)[step, cell] if spec.gridded else array[step]
    return pd.DataFrame(columns)
