"""What every format of a download is written from: fields of consecutive hours, days or months, read block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.contract import FIELD_NAMES, FIELDS, FieldSpec
from pipeline.cube.layout import BLOCK, TIME_ATTRS, field_attrs, time_coverage
from pipeline.grid import extent
from pipeline.products import geozarr, outlook_fields

Values = dict[str, NDArray[Any]]

#: Global attributes that a reader wants to see first; history comes last.
_FIRST = ("Conventions", "title", "summary", "id", "product_version", "revision", "tracking_id", "keywords")
NO_ID = f"urn:uuid:{uuid5(NAMESPACE_URL, '')}"


@dataclass(frozen=True)
class Series:
    """Fields of T consecutive periods on one grid, not read yet.

    Attributes
    ----------
    frequency : ``hourly``, ``daily`` or ``monthly``.
    coords : coordinates and bounds without time, the grid mapping among them.
    bounds : (T, 2) both ends of each period, hours since 1970-01-01.
    fields : the variables.
    attrs : global attributes, but for those that a file's name and values make.
    blocks : makes an iterator of the fields' values, (B, ...) each, for at most `BLOCK` periods at a time, in order.
    """

    frequency: str
    coords: xr.Dataset
    bounds: NDArray[np.int64]
    fields: Sequence[FieldSpec]
    attrs: Mapping[str, Any]
    blocks: Callable[[], Iterator[Values]]

    @property
    def spatial(self) -> tuple[str, str]:
        """Names of the row and the column dimension."""
        return ("y", "x") if "y" in self.coords.dims else ("lat", "lon")

    @property
    def time_attrs(self) -> dict[str, str]:
        """Attributes of the time coordinate, which is the start of each period."""
        unit = {"hourly": "hour", "daily": "day", "monthly": "month"}[self.frequency]
        return TIME_ATTRS | {"long_name": TIME_ATTRS["long_name"].replace("hour", unit)}

    def placed(self) -> Iterator[tuple[slice, Values]]:
        """Place along time of each block, and the block."""
        first = 0
        for values in self.blocks():
            count = len(values[self.fields[0].name])
            yield slice(first, first + count), values
            first += count

    def field_attrs(self, spec: FieldSpec) -> dict[str, Any]:
        """CF attributes of a field; `coordinates` names scalars of this series only."""
        attrs = field_attrs(spec, self.spatial)
        named = [name for name in attrs.pop("coordinates", "").split() if name in self.coords.variables]
        if outlook_fields.ISSUE_TIME in self.coords.variables:
            named.append(outlook_fields.ISSUE_TIME)
        return attrs | ({"coordinates": " ".join(named)} if named else {})

    def global_attrs(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Global attributes of a download, `own` first, in a reader's order."""
        attrs = {**self.attrs, "tracking_id": NO_ID, **own}
        order = {name: place for place, name in enumerate(_FIRST)} | {"history": len(attrs)}
        return {name: attrs[name] for name in sorted(attrs, key=lambda name: order.get(name, len(_FIRST)))}


class TrackingId:
    """UUID of all times, places and values of a series: the same values have the same, whoever wrote them when."""

    def __init__(self, series: Series) -> None:
        self._digest = hashlib.sha256(np.ascontiguousarray(series.bounds[:, 0]).tobytes())
        for name in ("lat", "lon"):
            self._digest.update(series.coords[name].values.tobytes())

    def update(self, values: NDArray[Any]) -> None:
        """Take the next values."""
        self._digest.update(np.ascontiguousarray(values).data)

    def __str__(self) -> str:
        return f"urn:uuid:{uuid5(NAMESPACE_URL, self._digest.hexdigest())}"


def hourly(cube: xr.Dataset) -> Series:
    """Return the hours of a cube, or of a part of it from `pipeline.products.export.subset`, as they are."""
    hours = hours_of(cube)
    attrs = describe(cube) | time_coverage(hours)
    return Series("hourly", static(cube), np.stack([hours, hours + 1], axis=-1), FIELDS, attrs, lambda: _blocks(cube))


def _blocks(cube: xr.Dataset) -> Iterator[Values]:
    for first in range(0, cube.sizes["time"], BLOCK):
        part = cube.isel(time=slice(first, first + BLOCK))
        yield {name: part[name].values for name in FIELD_NAMES}


def describe(cube: xr.Dataset) -> dict[str, Any]:
    """Global attributes of a part of a cube: the cube's, with the part's extent, and the issue where all is outlook."""
    return geozarr.without(outlook_fields.describe(cube)) | extent(cube)


def static(cube: xr.Dataset) -> xr.Dataset:
    """Coordinates without time, with the issue time where all hours are outlook."""
    return outlook_fields.issued(cube).coords.to_dataset().drop_dims("time")


def hours_of(cube: xr.Dataset) -> NDArray[np.int64]:
    """Starts of the hours of a cube, hours since 1970-01-01, (T,)."""
    return cube["time"].values.astype("datetime64[h]").astype("int64")
