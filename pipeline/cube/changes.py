"""What changed between two revisions of a cube: hours, cells and sizes, a UTC day at a time so that memory is flat.

An hour's ``revision`` counts the times its values were published, so hours of equal count are equal and are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline import score
from pipeline.atomic import replacing
from pipeline.contract import STREAMS
from pipeline.cube.layout import FILL
from pipeline.errors import ProductError
from pipeline.pages import maps
from pipeline.pages.figure import png

Float = NDArray[np.float64]

#: Sizes of change whose share of cells is told, ug m-3.
SIZES = (1.0, 5.0, 10.0)
#: Width of the classes that the median is found in, ug m-3; larger changes than the last class count as it.
_CLASS, _CLASSES = 0.01, 300_000

_FIELDS = ("pm2p5", "pm2p5_p05", "pm2p5_p50", "pm2p5_p95", "nearest_observation_distance", "quality_flag")
#: Limits of colours of the map, ug m-3.
_LEVELS = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


@dataclass
class Change:
    """Hours of one kind, such as ``interim to final``, ``new interim`` or ``outlook removed``.

    Attributes
    ----------
    hours : of this kind.
    cells : cell hours in them that hold PM2.5 in both revisions; `differ` of them are not equal in some field,
        `appeared` and `vanished` hold PM2.5 in one of the revisions only.
    mean, median, largest : absolute difference of PM2.5 over `cells`, ug m-3; the median to within 0.01.
    over : share of `cells` with a larger difference than each of `SIZES`.
    """

    kind: str
    hours: int = 0
    cells: int = 0
    differ: int = 0
    appeared: int = 0
    vanished: int = 0
    mean: float = 0.0
    median: float = 0.0
    largest: float = 0.0
    over: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """What changed from one revision to another.

    Attributes
    ----------
    before, after : names of the revisions.
    kinds : by stream and what happened, in the order of their first hours.
    attributes : global attributes that differ, as they were and are; None where there is none.
    field : (rows, columns), mean absolute difference of PM2.5 over the hours with a difference, ug m-3, with the
        coordinates of the cube; NaN where nothing is compared.
    """

    before: str
    after: str
    kinds: list[Change]
    attributes: dict[str, tuple[Any, Any]]
    field: xr.DataArray

    def as_record(self) -> dict[str, Any]:
        """All but the map, ready for JSON."""
        attributes = {name: list(pair) for name, pair in self.attributes.items()}
        kinds = [asdict(kind) for kind in self.kinds]
        return {"before": self.before, "after": self.after, "changes": kinds, "attributes": attributes}

    def as_text(self) -> str:
        """Tables for a terminal."""
        rows = [{k: v for k, v in asdict(one).items() if k != "over"} | _percent(one.over) for one in self.kinds]
        table = score.markdown(pd.DataFrame(rows).set_index("kind")) if rows else "no hour differs\n"
        lines = [f"  {name}: {_short(a)} -> {_short(b)}" for name, (a, b) in self.attributes.items()]
        attributes = "\n".join(lines) or "  none"
        return (
            f"{self.before} to {self.after}; absolute difference of PM2.5 in ug m-3 over cell hours in both\n\n{table}"
            f"\nAttributes that differ:\n{attributes}\n"
        )


def _percent(over: Mapping[str, float]) -> dict[str, str]:
    return {f"over {size}": f"{100 * share:.2f} %" for size, share in over.items()}


def _short(value: Any) -> str:
    text = " ".join(str(value).split()) if value is not None else "(none)"
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---- reading ----


@dataclass
class _Sums:
    """Sums over the cell hours of one kind."""

    change: Change
    total: float = 0.0
    classes: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_CLASSES, np.int64))
    larger: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(SIZES), np.int64))

    def add(self, a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> None:
        """Add hours (T, rows, columns) by field."""
        one, other = (part["pm2p5"].astype(np.float64) for part in (a, b))
        had, has = np.isfinite(one), np.isfinite(other)
        size = np.abs(other - one)[had & has]
        change = self.change
        change.hours, change.cells = change.hours + len(one), change.cells + size.size
        change.differ += int((_differ(a, b) & had & has).sum())
        change.appeared, change.vanished = (
            change.appeared + int((has & ~had).sum()),
            change.vanished + int((had & ~has).sum()),
        )
        if size.size:
            self.total += float(size.sum())
            change.largest = max(change.largest, float(size.max()))
            at = np.minimum((size / _CLASS).astype(np.int64), _CLASSES - 1)
            self.classes += np.bincount(at, minlength=_CLASSES)
            self.larger += [int((size > limit).sum()) for limit in SIZES]

    def finish(self) -> Change:
        """Turn sums into means, median and shares."""
        change = self.change
        if change.cells:
            change.mean = self.total / change.cells
            change.median = _CLASS * int(np.searchsorted(np.cumsum(self.classes), change.cells / 2))
            shares = (self.larger / change.cells).tolist()
            change.over = {f"{size:g}": share for size, share in zip(SIZES, shares, strict=True)}
        return change


def _differ(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Cells that are not equal in some field; NaN equals NaN."""
    unequal = [(a[k] != b[k]) & ~((a[k] != a[k]) & (b[k] != b[k])) for k in _FIELDS]
    return np.asarray(np.any(unequal, axis=0))


def compare(before: xr.Dataset, after: xr.Dataset, names: tuple[str, str] = ("before", "after")) -> Changes:
    """Compare two revisions of one cube, opened by `reader.open_cube`.

    Raises
    ------
    ProductError
        When they lie on different grids, or their hours begin at different times.
    """
    _check_same_axes(before, after, names)
    sums: dict[str, _Sums] = {}
    spatial = after["pm2p5"].shape[1:]
    total, count = np.zeros(spatial), np.zeros(spatial, np.int64)
    for kind, at in _hours(before, after):
        a, b = (_read(cube, at, spatial) for cube in (before, after))
        sums.setdefault(kind, _Sums(Change(kind))).add(a, b)
        size = np.abs(b["pm2p5"].astype(np.float64) - a["pm2p5"])
        total += np.nansum(size, axis=0)
        count += np.isfinite(size).sum(axis=0)
    mean = np.divide(total, count, out=np.full(spatial, np.nan), where=count > 0)
    coords = {name: c for name, c in after.coords.items() if set(c.dims) <= set(after["pm2p5"].dims[1:])}
    field_ = xr.DataArray(mean, coords, after["pm2p5"].dims[1:], attrs=after.attrs | {"hours": int(count.max())})
    return Changes(*names, [one.finish() for one in sums.values()], _attributes(before.attrs, after.attrs), field_)


def _check_same_axes(before: xr.Dataset, after: xr.Dataset, names: tuple[str, str]) -> None:
    first, second = names
    for name in after["pm2p5"].dims[1:]:
        if name not in before.dims or not np.array_equal(before[name], after[name]):
            raise ProductError(f"expected revisions on one grid; found '{name}' of {first} and {second} to differ")
    if before["time"].values[0] != after["time"].values[0]:
        begins = " and ".join(str(cube["time"].values[0].astype("M8[h]")) for cube in (before, after))
        raise ProductError(f"expected revisions whose hours begin at one time; found {first} and {second} at {begins}")


def _hours(before: xr.Dataset, after: xr.Dataset) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Hours that differ, by index, of one UTC day and kind at a time."""
    size = max(before.sizes["time"], after.sizes["time"])
    (was, old), (now, new) = (_padded(cube, size) for cube in (before, after))
    at = np.flatnonzero(old != new)
    kinds = np.array([_kind(int(was[k]), int(now[k])) for k in at])
    for day in np.unique(at // 24):
        for kind in dict.fromkeys(kinds[at // 24 == day].tolist()):
            yield kind, at[(at // 24 == day) & (kinds == kind)]


def _padded(cube: xr.Dataset, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Stream and revision of `size` hours; those after the cube's last were never produced."""
    more = (0, size - cube.sizes["time"])
    stream, revision = (
        np.pad(cube[name].values.astype(np.int64), more, constant_values=FILL[name]) for name in ("stream", "revision")
    )
    return stream, revision


def _kind(was: int, now: int) -> str:
    names = {number: name for name, number in STREAMS.items()}
    if was not in names:
        return f"new {names[now]}" if now in names else "never produced"
    if now not in names:
        return f"{names[was]} removed"
    return f"{names[was]} changed" if was == now else f"{names[was]} to {names[now]}"


def _read(cube: xr.Dataset, at: NDArray[np.int64], spatial: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """Fields of some hours; NaN and the flag's fill where the cube is too short."""
    known = at < cube.sizes["time"]
    found: dict[str, NDArray[Any]] = {}
    for name in _FIELDS:
        values = np.full((len(at), *spatial), FILL.get(name, np.nan), cube[name].dtype)
        if known.any():
            values[known] = cube[name].isel(time=at[known]).values
        found[name] = values
    return found


def _attributes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = sorted(set(before) | set(after))
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


# ---- the picture ----


def draw(changes: Changes, path: Path) -> Path:
    """Write a map of the mean absolute change as PNG, in one step.

    Raises
    ------
    ProductError
        When no cell was compared, or the grid is a single row or column of cells.
    """
    mean = changes.field
    if min(mean.shape) < 2 or not np.isfinite(mean.values).any():
        found = f"{mean.shape[0]} x {mean.shape[1]} cells, {int(np.isfinite(mean.values).sum())} of them with a change"
        raise ProductError(
            f"picture: expected a grid with cells to compare in {changes.before} and {changes.after}; found {found}"
        )
    figure = Figure((8.2, 6.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    _panel(axes, mean)
    title = f"PM2.5: mean absolute change from {changes.before} to {changes.after}"
    simulated = "SIMULATED DATA. " if maps.simulated(mean.attrs) else ""
    axes.set_title(f"{title}\n{simulated}over up to {mean.attrs['hours']} hours that differ", loc="left", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(png(figure))
    return path


def _panel(axes: Axes, mean: xr.DataArray) -> None:
    lon, lat = mean["lon"].values, mean["lat"].values
    norm = BoundaryNorm(_LEVELS, 256, extend="max")
    drawn = axes.pcolormesh(lon, lat, mean.values, cmap="viridis_r", norm=norm, shading="nearest", rasterized=True)
    box = (float(lon.min()), float(lat.min()), float(lon.max()), float(lat.max()))
    maps.backdrop(axes, box)
    bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.85, pad=0.02, ticks=_LEVELS)
    bar.set_label(f"Mean absolute change of PM2.5 ({maps.UNIT})")
