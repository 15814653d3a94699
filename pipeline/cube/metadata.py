"""A fast check that a cube describes itself as CF-1.11 and ACDD-1.3 want it, made before every publication.

It holds what this product promises (docs/reference/product.md), in milliseconds; the whole of both conventions is
checked by the test suite, with a checker of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from pipeline.contract import FIELDS
from pipeline.cube.layout import FILL, time_coverage

#: Global attributes: ACDD-1.3 "highly recommended" and "recommended" ones, and those that tell a product's origin.
REQUIRED = (
    *("Conventions", "title", "summary", "keywords", "source", "history", "license", "processing_level", "comment"),
    *("standard_name_vocabulary", "creator_name", "creator_type", "institution", "project", "date_created"),
    *("geospatial_lat_min", "geospatial_lat_max", "geospatial_lon_min", "geospatial_lon_max", "time_coverage_start"),
    *("time_coverage_end", "time_coverage_duration", "time_coverage_resolution", "config_digest"),
    *("input_digest", "weights_digest", "code_version", "flow_run_id", "revision"),
)
CONVENTIONS = ("CF-1.11", "ACDD-1.3")


def problems(cube: xr.Dataset) -> list[str]:
    """What is missing or contradicts the data, a line each; empty when all is well.

    Parameters
    ----------
    cube : what `pipeline.cube.reader.open_cube` returns, or a candidate.
    """
    return [*_global(cube), *_fields(cube), *_coordinates(cube), *_coverage(cube)]


def _global(cube: xr.Dataset) -> Iterator[str]:
    for name in REQUIRED:
        if not str(cube.attrs.get(name, "")).strip():
            yield f"global attribute '{name}' is missing"
    found = str(cube.attrs.get("Conventions", "")).replace(" ", "").split(",")
    if tuple(found) != CONVENTIONS:
        yield f"global attribute 'Conventions' is {cube.attrs.get('Conventions')!r}, expected {', '.join(CONVENTIONS)}"


def _fields(cube: xr.Dataset) -> Iterator[str]:
    for spec in FIELDS:
        attrs = cube[spec.name].attrs
        for name, value in spec.attrs.items():
            if not np.array_equal(np.asarray(attrs.get(name)), np.asarray(value)):
                yield f"variable '{spec.name}': attribute '{name}' is {attrs.get(name)!r}, expected {value!r}"
        for link in str(attrs.get("ancillary_variables", "")).split():
            if link not in cube:
                yield f"variable '{spec.name}': ancillary variable '{link}' is missing"
        mapping = attrs.get("grid_mapping", cube[spec.name].encoding.get("grid_mapping"))
        if spec.gridded and mapping not in cube.coords:
            yield f"variable '{spec.name}': grid mapping {mapping!r} is missing"


def _coordinates(cube: xr.Dataset) -> Iterator[str]:
    for name in ("time", *cube["pm2p5"].dims[1:]):
        variable = cube[str(name)]
        described = variable.attrs | variable.encoding
        for wanted in ("standard_name", "units", "bounds"):
            if not described.get(wanted):
                yield f"coordinate '{name}': attribute '{wanted}' is missing"
        if (bounds := described.get("bounds")) and bounds not in cube.coords:
            yield f"coordinate '{name}': its bounds '{bounds}' are missing"
    for name in ("lat", "lon"):
        if name not in cube.coords:
            yield f"coordinate '{name}' is missing"


def _coverage(cube: xr.Dataset) -> Iterator[str]:
    """Extent and period that the attributes name and that the data have."""
    for name in ("lat", "lon"):
        for end, value in (("min", float(cube[name].min())), ("max", float(cube[name].max()))):
            said = cube.attrs.get(f"geospatial_{name}_{end}")
            if said is not None and not _spans(float(said), value, end):
                yield f"global attribute 'geospatial_{name}_{end}' is {said}, but '{name}' reaches {value:g}"
    produced = cube["stream"].values != FILL["stream"]
    if not produced.any():
        yield "no hour was produced"
        return
    hours = cube["time"].values[produced].astype("datetime64[h]").astype("int64")
    for name, text in time_coverage(hours).items():
        if cube.attrs.get(name) != text:
            yield f"global attribute '{name}' is {cube.attrs.get(name)!r}, but the hours produced make it {text!r}"


def _spans(said: float, value: float, end: str) -> bool:
    """Whether an extent takes in the centres of all cells; longitudes may be written a turn apart."""
    off = (said - value + 180.0) % 360.0 - 180.0
    return off < 1e-6 if end == "min" else off > -1e-6
