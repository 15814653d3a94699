"""Estimates at points as a file: CSV, Parquet, or a NetCDF file of time series that follows CF-1.11 and ACDD-1.3."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipeline.atomic import replacing
from pipeline.contract import FIELDS, FieldSpec
from pipeline.cube.layout import GLOBAL_ATTRS, TIME_ATTRS, time_coverage
from pipeline.errors import ConfigError
from pipeline.grid import HEIGHT, extent
from pipeline.products.netcdf import MISSING

_HEIGHT = {
    "standard_name": "height",
    "long_name": "nominal height above the ground",
    "units": "m",
    "positive": "up",
    "axis": "Z",
}
_PLACES = {
    "lat": {"standard_name": "latitude", "long_name": "latitude of the point", "units": "degrees_north"},
    "lon": {"standard_name": "longitude", "long_name": "longitude of the point", "units": "degrees_east"},
    "elevation": {"standard_name": "surface_altitude", "long_name": "elevation of the ground", "units": "m"},
}
_SUMMARY = (
    "Hourly mean PM2.5 near the ground at points, estimated from station observations by a neural network with learned "
    "nearest-neighbour weights, with the 5th, 50th and 95th percentile of each value and the distance to the nearest "
    "observation."
)


def check_table_name(path: Path) -> Path:
    """Return `path` if `write_table` can write it; ConfigError otherwise."""
    if path.suffix not in (".csv", ".parquet", ".nc"):
        raise ConfigError(f"{path}: expected a name that ends in .csv, .parquet or .nc")
    return path


def write_table(table: pd.DataFrame, path: str | Path, points: pd.DataFrame | None = None) -> Path:
    """Write estimates at points as ``.csv``, ``.parquet`` or ``.nc``, whole or not at all.

    Parameters
    ----------
    table : columns ``time`` (hour starts, UTC), ``station`` and any of the cube's fields; one row an hour and station.
    path : its suffix chooses the format. NetCDF has the dimensions point and time, and the identifiers as ``station``
        (point): CF lets no string have the name of its dimension (section 1.3).
    points : ``station, lon, lat`` and, where known, ``elevation`` of the points; NetCDF holds them.

    Raises
    ------
    ConfigError
        When the name ends otherwise.
    """
    path = check_table_name(Path(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        if path.suffix == ".csv":
            table.to_csv(part, index=False, date_format="%Y-%m-%dT%H:%M:%S")
        elif path.suffix == ".parquet":
            table.to_parquet(part, index=False)
        else:
            _as_dataset(table, points).assign_attrs(id=path.stem).to_netcdf(part, engine="netcdf4")
    return path


def _as_dataset(table: pd.DataFrame, points: pd.DataFrame | None) -> xr.Dataset:
    """Reshape a table of hours and stations to (point, time), points in the table's order, as CF variables."""
    stations = table["station"].unique()
    values = table.set_index(["time", "station"]).to_xarray().sel(station=stations)
    hours = values["time"].values.astype("M8[h]").astype("int32")
    data = xr.Dataset({"station": ("point", stations.astype(object), _STATION), "height": ((), HEIGHT, _HEIGHT)})
    data["time"] = ("time", hours, TIME_ATTRS)
    data["time_bnds"] = (("time", "bnds"), np.stack([hours, hours + 1], axis=-1))
    for name, place in ({} if points is None else _places(points, stations)).items():
        data[name] = ("point", place, _PLACES[name])
    for name in map(str, data.variables):
        data[name].encoding["_FillValue"] = None
    named = " ".join(name for name in (*_PLACES, "height", "station") if name in data)
    for spec in FIELDS:
        if spec.name in values:
            data[spec.name] = (
                ("point", "time"),
                values[spec.name].transpose("station", "time").values,
                _field_attrs(spec, named),
            )
            data[spec.name].encoding = {"_FillValue": MISSING, "zlib": True, "shuffle": True}
    return data.assign_attrs(_global_attrs(data, hours.astype("int64")))


_STATION = {"long_name": "identifier of the point", "cf_role": "timeseries_id"}


def _places(points: pd.DataFrame, stations: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    found = points.set_index("station").loc[stations]
    return {name: found[name].to_numpy(float) for name in _PLACES if name in found and found[name].notna().all()}


def _field_attrs(spec: FieldSpec, coordinates: str) -> dict[str, Any]:
    attrs = {**spec.attrs, "coordinates": coordinates, "coverage_content_type": "auxiliaryInformation"}
    if spec.concentration:
        attrs |= {"coverage_content_type": "modelResult", "cell_methods": "time: mean"}
    if spec.name == "pm2p5":
        attrs["ancillary_variables"] = "pm2p5_p05 pm2p5_p50 pm2p5_p95 nearest_observation_distance"
    return attrs


def _global_attrs(data: xr.Dataset, hours: NDArray[np.int64]) -> dict[str, Any]:
    """ACDD-1.3 attributes; the extent only where the points' places are known."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        **GLOBAL_ATTRS,
        "title": "PM2.5 at points, AQ-Net",
        "summary": _SUMMARY,
        "cdm_data_type": "Station",
        "featureType": "timeSeries",
        "processing_level": "estimates at points from quality-controlled station observations",
        "comment": "Times are the starts of averaging hours in UTC.",
        **(extent(data) if "lat" in data else {}),
        **time_coverage(hours),
        "date_created": now,
        "history": f"{now} aqnet estimate",
    }
