"""What the cube looks like as Zarr: its attributes, time axis, chunks, codec and fill values.

The cube of record (`pipeline.cube.write`) and its plain Zarr export are laid by the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from pipeline.contract import FIELDS, TIME_UNITS, FieldSpec
from pipeline.grid import HEIGHT
from pipeline.products import geozarr

#: A `zarr.Group` of arrays; ``Any`` because zarr types what a group holds as array, group or scalar at once.
Group = Any

BLOCK = 24
CHUNK = 64
SHARD_CHUNKS = 8

#: What an hour that was never produced holds; every other field is NaN there.
FILL = {"quality_flag": 255, "stream": -1, "revision": 0, "observation_count": -1}

#: The standard name table that names are taken from: the one that compliance-checker 6.1 brings along.
STANDARD_NAMES_VERSION = 93

TIME_ATTRS = {
    "standard_name": "time",
    "long_name": "start of the averaging hour, UTC",
    "units": TIME_UNITS,
    "calendar": "standard",
    "units_metadata": "leap_seconds: utc",
    "axis": "T",
    "bounds": "time_bnds",
}

_EACH_HOUR = "nearest_observation_distance quality_flag stream revision observation_count"
_ANCILLARY = {
    "pm2p5": f"pm2p5_p05 pm2p5_p50 pm2p5_p95 {_EACH_HOUR}",
    "pm2p5_p05": _EACH_HOUR,
    "pm2p5_p50": _EACH_HOUR,
    "pm2p5_p95": _EACH_HOUR,
}

_MORE: dict[str, dict[str, str]] = {
    "quality_flag": {"coverage_content_type": "qualityInformation"},
    "stream": {"standard_name": "status_flag"},
    "revision": {"standard_name": "status_flag"},  # "an indication of ... other status of another data variable"
    "observation_count": {"standard_name": "number_of_observations"},
}

GLOBAL_ATTRS = {
    "Conventions": "CF-1.11, ACDD-1.3",
    "title": "AQ-Net hourly gridded PM2.5 reanalysis",
    "summary": "Hourly mean PM2.5 near the ground on a regular grid, estimated from station observations by a neural "
    "network with learned nearest-neighbour weights, with the 5th, 50th and 95th percentile of each value, the "
    "distance to the nearest observation and a quality flag.",
    "keywords": "EARTH SCIENCE > ATMOSPHERE > AIR QUALITY > PARTICULATES, PM2.5, reanalysis",
    "keywords_vocabulary": "GCMD Science Keywords",
    "standard_name_vocabulary": f"CF Standard Name Table v{STANDARD_NAMES_VERSION}",
    "source": "AQ-Net analysis of hourly station observations",
    "processing_level": "gridded analysis of quality-controlled station observations",
    "cdm_data_type": "Grid",
    "comment": "Times are the starts of averaging hours in UTC. Sea cells hold no concentration.",
    "references": "AQ-Net, SCIA 2025, https://arxiv.org/abs/2502.11941",
    "license": "https://creativecommons.org/licenses/by/4.0/",
    "creator_name": "aqnet-reanalysis developers",
    "creator_type": "group",
    "institution": "aqnet-reanalysis",
    "project": "aqnet-reanalysis",
    "acknowledgement": "Made from the observations of air-quality networks; the lineage file names every input.",
    # Whoever runs the pipeline says who they are (`RunConfig.attributes`); until then, names that can be no one's:
    # RFC 2606 keeps .example free.
    "naming_authority": "example.aqnet-reanalysis",
    "creator_url": "https://aqnet-reanalysis.example",
    "creator_email": "contact@aqnet-reanalysis.example",
    "publisher_name": "aqnet-reanalysis developers",
    "publisher_type": "group",
    "publisher_url": "https://aqnet-reanalysis.example",
    "publisher_email": "contact@aqnet-reanalysis.example",
    "geospatial_vertical_min": HEIGHT,
    "geospatial_vertical_max": HEIGHT,
    "geospatial_vertical_units": "m",
    "geospatial_vertical_positive": "up",
    "geospatial_bounds_vertical_crs": "height above ground, which has no EPSG code; geospatial_bounds is 2-D",
}

#: Global attributes (ACDD-1.3) that say who stands for a product: what whoever runs the pipeline may set.
OPERATOR_ATTRS = (
    "acknowledgement",
    "contributor_name",
    "contributor_role",
    "creator_email",
    "creator_institution",
    "creator_name",
    "creator_type",
    "creator_url",
    "institution",
    "license",
    "metadata_link",
    "naming_authority",
    "program",
    "project",
    "publisher_email",
    "publisher_institution",
    "publisher_name",
    "publisher_type",
    "publisher_url",
)


def to_hours(time: object) -> int:
    """Hours since 1970-01-01T00 UTC of a date-time (naive is UTC)."""
    stamp = pd.Timestamp(time)  # type: ignore[arg-type]
    return int((stamp.tz_convert(None) if stamp.tz else stamp).to_datetime64().astype("datetime64[h]").astype("int64"))


def field_attrs(spec: FieldSpec, spatial: tuple[str, str]) -> dict[str, Any]:
    """CF attributes of a cube variable: the contract's, plus its links to the variables that explain it."""
    attrs = {**spec.attrs, **_MORE.get(spec.name, {})}
    attrs.setdefault("coverage_content_type", "modelResult" if spec.concentration else "auxiliaryInformation")
    if "ancillary_variables" not in attrs and spec.name in _ANCILLARY:
        attrs["ancillary_variables"] = _ANCILLARY[spec.name]
    if spec.gridded:
        attrs["grid_mapping"] = "crs"
        places = ["lat", "lon"] if spatial == ("y", "x") else []
        if coordinates := " ".join([*places, *(["height"] if spec.concentration else [])]):
            attrs["coordinates"] = coordinates
    return attrs


def time_coverage(hours: NDArray[np.int64]) -> dict[str, str]:
    """ACDD-1.3 ``time_coverage_*`` attributes of ascending hours since 1970-01-01; the end is that of the last hour."""
    first, last = np.array([hours[0], hours[-1] + 1]).astype("datetime64[h]").astype("datetime64[s]")
    return {
        "time_coverage_start": f"{first}Z",
        "time_coverage_end": f"{last}Z",
        "time_coverage_duration": f"PT{int(hours[-1] - hours[0]) + 1}H",
        "time_coverage_resolution": "PT1H",
    }


def lay(
    group: Group,
    coords: xr.Dataset,
    hours: NDArray[np.int64],
    fields: Sequence[FieldSpec] = FIELDS,
    time_attrs: Mapping[str, str] = TIME_ATTRS,
) -> None:
    """Lay the empty cube: coordinates of the grid, the hours, and every field at its fill value.

    Parameters
    ----------
    group : an empty group.
    coords : from `pipeline.grid.Grid.coords`.
    hours : (T,) starts of hours, or (T, 2) both ends of longer periods, hours since 1970-01-01.
    fields : what to lay; the cube's by default.
    time_attrs : attributes of ``time``.
    """
    spatial = ("y", "x") if "y" in coords.dims else ("lat", "lon")
    group.attrs.update(geozarr.attrs(coords))
    for name, variable in coords.variables.items():
        _create(group, str(name), variable.dims, variable.shape, variable.dtype, variable.attrs)[...] = variable.values
    shape = tuple(coords.sizes[name] for name in spatial)
    _create(group, "time", ("time",), (0,), "int64", time_attrs)
    _create(group, "time_bnds", ("time", "bnds"), (0, 2), "int64", {})
    for spec in fields:
        size = (0, *shape) if spec.gridded else (0,)
        _create(group, spec.name, spec.dims(spatial), size, spec.dtype, field_attrs(spec, spatial), FILL.get(spec.name))
    extend(group, hours)


def _create(
    group: Group,
    name: str,
    dims: Iterable[object],
    shape: tuple[int, ...],
    dtype: np.typing.DTypeLike,
    attrs: Mapping[str, object],
    fill: float | None = None,
) -> Any:
    """One Zarr array; without ``fill`` a float is filled with NaN and the rest with 0."""
    if fill is None:
        fill = np.nan if np.dtype(dtype).kind == "f" else 0
    named = {"dimension_names": dims, "attributes": plain(attrs)}
    return group.create_array(name, shape=shape, dtype=dtype, fill_value=fill, **named, **_chunking(name, shape))


def _chunking(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    """Fields: a day by 64 x 64 cells a chunk, by up to 512 x 512 a shard; time: a year; static coordinates: whole."""
    if 0 not in shape:
        return {"chunks": shape}
    if len(shape) < 3:
        return {"chunks": (366 * BLOCK if name.startswith("time") else BLOCK, *shape[1:])}
    chunks = [min(CHUNK, size) for size in shape[1:]]
    shards = [chunk * min(SHARD_CHUNKS, -(-size // chunk)) for size, chunk in zip(shape[1:], chunks, strict=True)]
    return {"chunks": (BLOCK, *chunks), "shards": (BLOCK, *shards), "compressors": [_codec()]}


def _codec() -> BloscCodec:
    return BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")


def plain(attrs: Mapping[str, object]) -> dict[str, Any]:
    """Attributes as JSON holds them: they come back from Zarr equal to this."""
    return {name: _plain(value) for name, value in attrs.items()}


def _plain(value: object) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def extend(group: Group, hours: NDArray[np.int64]) -> None:
    """Give every variable with a time dimension the length of ``hours`` and write the time axis; never shortens.

    See `lay` for ``hours``.
    """
    bounds = hours if hours.ndim == 2 else np.stack([hours, hours + 1], axis=-1)
    for _, array in group.arrays():
        if (array.metadata.dimension_names or ("",))[0] == "time":
            array.resize((len(hours), *array.shape[1:]))
    group["time"][:] = bounds[:, 0]
    group["time_bnds"][:] = bounds
