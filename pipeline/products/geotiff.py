"""Series as GeoTIFF, for GIS: one file a variable, one band a period, north at the top."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import from_bounds

from pipeline.contract import FieldSpec
from pipeline.products import geozarr
from pipeline.products.series import Series

#: What a float cell without a value holds; integers use the variable's own fill value or none.
NODATA = -9999.0

#: GDAL keeps written blocks up to this; its own default is a twentieth of the machine's memory.
_CACHE_MB = 16


def write(series: Series, path: Path, variable: str) -> None:
    """Write one gridded variable, deflated in tiles; band n is period n, described by its start in UTC.

    Raises
    ------
    KeyError
        When the series has no such gridded variable.
    RuntimeError
        When the file does not hold what was written: GDAL closes a file on a full disk without a word.
    """
    spec = gridded(series)[variable]
    try:
        with rasterio.Env(GDAL_NUM_THREADS="1", GDAL_CACHEMAX=_CACHE_MB):
            _check(path, _write(series, path, spec))
    except RasterioError as error:
        raise RuntimeError(f"{path}: {error}") from error


def _write(series: Series, path: Path, spec: FieldSpec) -> list[int]:
    """Write the bands; return a checksum of each."""
    written = []
    with rasterio.open(path, "w", **_profile(series, spec)) as file:
        file.update_tags(**_tags(series, spec))
        for _, values in series.placed():
            for field in values[spec.name]:
                data = np.ascontiguousarray(np.where(np.isnan(field), NODATA, field)[::-1], spec.dtype)
                written.append(crc32(data.data))
                file.write(data, len(written))
                _describe(file, len(written), series.bounds[len(written) - 1], spec)
    return written


def _check(path: Path, written: Sequence[int]) -> None:
    with rasterio.open(path) as file:
        for band, checksum in enumerate(written, 1):
            if crc32(file.read(band)) != checksum:
                raise RuntimeError(f"{path}: band {band} does not hold what was written")


def gridded(series: Series) -> dict[str, FieldSpec]:
    """Variables that have a place on the map, by name."""
    return {spec.name: spec for spec in series.fields if spec.gridded}


def _profile(series: Series, spec: FieldSpec) -> dict[str, Any]:
    rows, columns = (series.coords.sizes[name] for name in series.spatial)
    floating = spec.dtype == "float32"
    tiled = {"tiled": True, "blockxsize": 256, "blockysize": 256} if min(rows, columns) >= 256 else {}
    return {
        "driver": "GTiff",
        "width": columns,
        "height": rows,
        "count": len(series.bounds),
        "dtype": spec.dtype,
        "nodata": NODATA if floating else None,
        "crs": CRS.from_wkt(series.coords["crs"].attrs["crs_wkt"]),
        "transform": from_bounds(*geozarr.box(series.coords), columns, rows),
        "compress": "deflate",
        "predictor": 3 if floating else 2,
        "interleave": "band",
        "BIGTIFF": "IF_SAFER",
        **tiled,
    }


def _tags(series: Series, spec: FieldSpec) -> dict[str, str]:
    """Where the file comes from, and what its numbers are."""
    attrs = series.global_attrs({})
    kept = ("title", "summary", "license", "source", "revision", "input_digest", "weights_digest")
    said = {f"VARIABLE_{name}": value for name, value in spec.attrs.items() if isinstance(value, str)}
    return {name: str(attrs[name]) for name in kept if name in attrs} | {"VARIABLE": spec.name} | said


def _describe(file: Any, band: int, bounds: np.ndarray, spec: FieldSpec) -> None:
    first, last = (f"{edge}Z" for edge in bounds.astype("M8[h]").astype("M8[s]"))
    file.set_band_description(band, f"{spec.name} {first}")
    if units := spec.attrs.get("units"):
        file.set_band_unit(band, str(units))
    file.update_tags(band, time_start=first, time_end=last)
