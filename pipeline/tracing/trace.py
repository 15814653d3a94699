"""One published value taken apart: which observations made it, with what weight, where they stand, what was added.

`trace` finds the cell and the run that made its hour, reads the observations of that hour's window again, makes the
value again and compares it with what is published; then it takes the value apart. See docs/how-to/trace-a-value.md and
docs/adr/0017-trace.md for what each number means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from model import background, infer
from model import trace as apart
from model import trace_outlook as apart_outlook
from model.infer import Block
from model.outlook_infer import outlook_blocks
from model.trace import Parts
from model.trace_outlook import OutlookParts
from model.windows import Observations, Points
from pipeline import analyse, covariates
from pipeline.config import Covariate, RunConfig
from pipeline.contract import HOUR
from pipeline.cube import reader, write
from pipeline.errors import ProductError
from pipeline.location import Location
from pipeline.tracing import observed as trace_observed
from pipeline.tracing import runs as trace_runs
from pipeline.tracing.cell import VALUES, Cell, Published, find_cell, read_published
from pipeline.tracing.observed import Observed
from pipeline.tracing.runs import Made

#: Values are published with `write.KEEP_BITS` bits of mantissa: relative error of rounding, at most.
ROUNDING = 2.0 ** -(write.KEEP_BITS + 1)

#: What z, a sum of 32-bit floats over stations some of which are silent, is good to (docs/adr/0015): a run's record has
#: other silent stations than a trace's.
_SUMS = 1e-4


@dataclass(frozen=True)
class Trace:
    """A published value and all that made it.

    Attributes
    ----------
    cube : folder of the repository; `revision` its tag that was traced.
    cell, published : what is traced.
    made, config : the run that made it.
    observed : the stations' hours.
    hour : index in `observed` of the hour; its length for an outlook's.
    recomputed : of `VALUES`, ug m-3.
    distance, count : recomputed distance of the nearest observation (km) and number of observations.
    parts : the value taken apart; None where there is none.
    drift : what covariates add to the mean, as z; 0 without any.
    weights : SHA-256 of the weights it was recomputed with.
    issue : issue time of an outlook; None of an analysed hour.
    around : the published hours around, variables of `VALUES` along ``time``.
    title : title of the cube.
    """

    cube: Location
    revision: str
    cell: Cell
    published: Published
    made: Made
    config: RunConfig
    observed: Observed
    hour: int
    recomputed: dict[str, float]
    distance: float
    count: int
    parts: Parts | OutlookParts | None
    drift: float
    weights: str
    issue: np.datetime64 | None
    around: xr.Dataset
    title: str

    @property
    def changed(self) -> tuple[str, ...]:
        """What is no longer as it was when the value was made: inputs and weights."""
        if self.made.weights in ("", self.weights):
            return self.observed.changed
        return (*self.observed.changed, f"weights: were {self.made.weights[:12]}, are {self.weights[:12]} (SHA-256)")

    def difference(self, name: str) -> float:
        """Published over recomputed less one; 0 where neither has a value, infinite where one of them alone has."""
        published, again = self.published.values[name], self.recomputed[name]
        if np.isnan(published) or np.isnan(again):
            return 0.0 if np.isnan(published) and np.isnan(again) else float("inf")
        return 0.0 if published == again else published / again - 1 if again else float("inf")

    def agrees(self, name: str) -> bool:
        """Whether a published value is the recomputed one, rounded."""
        published, again = self.published.values[name], self.recomputed[name]
        if np.isnan(published) or np.isnan(again):
            return bool(np.isnan(published) and np.isnan(again))
        z = np.cbrt([published, again])
        return bool(abs(z[0] - z[1]) <= ROUNDING / 3 * z.max() + _SUMS)


def trace(
    cube: Location,
    lon: float,
    lat: float,
    time: np.datetime64,
    revision: str | None = None,
    overrides: Mapping[str, Path | str | None] | None = None,
) -> Trace:
    """Explain the value of the cell that holds a point, in an hour; parameters and errors as of `traces`."""
    return next(traces(cube, [(lon, lat)], time, revision, overrides))


def traces(
    cube: Location,
    points: Sequence[tuple[float, float]],
    time: np.datetime64,
    revision: str | None = None,
    overrides: Mapping[str, Path | str | None] | None = None,
) -> Iterator[Trace]:
    """Explain values of one hour; its observations are read once.

    Parameters
    ----------
    cube : folder of the Icechunk repository that `aqnet run` published.
    points : lon, lat in degrees; what is traced is the cell that holds each.
    time : start of the hour, UTC.
    revision : tag such as ``r3``; the newest when None.
    overrides : some of `trace_runs.OVERRIDES`, where they are not what or where the run had them.

    Raises
    ------
    ProductError
        When the cube has no value there: outside the grid or its hours, never produced, at sea.
    ConfigError, InputError
        When what the run read is not known or not there.
    """
    opened = reader.open_cube(cube, revision)
    cells = [find_cell(opened, lon, lat, cube) for lon, lat in points]
    published = [read_published(opened, cell, time, cube) for cell in cells]
    ahead = published[0].stream == "outlook"
    made = trace_runs.made_by(cube, revision, time, ahead)
    config = trace_runs.config_of(made, cube, overrides or {}, _told_by(opened, published[0]))
    issue = _issue(opened, cube) if ahead else None
    tag = revision or reader.history(cube, 1)[-1]["revision"]
    hours = trace_observed.period(time, published[0].stream, time if issue is None else issue)
    run = _Run(cube, tag, made, config, trace_observed.read(config, made, hours), issue, str(opened.attrs.get("title")))
    explain = _analyses(run) if issue is None else _forecasts(run, issue)
    for cell, found in zip(cells, published, strict=True):
        yield explain(_Place(cell, found, _around(opened, cell, time)))


@dataclass(frozen=True)
class _Run:
    """What all traces of an hour share; attributes as of `Trace`."""

    cube: Location
    revision: str
    made: Made
    config: RunConfig
    observed: Observed
    issue: np.datetime64 | None
    title: str


@dataclass(frozen=True)
class _Place:
    """What is published at one place; attributes as of `Trace`."""

    cell: Cell
    published: Published
    around: xr.Dataset


def _told_by(cube: xr.Dataset, published: Published) -> dict[str, object]:
    """Fields of a run as far as its cube tells them."""
    edges = ("lon_min", "lat_min", "lon_max", "lat_max")
    hour = published.hour
    return {
        "bbox": [float(cube.attrs[f"geospatial_{edge}"]) for edge in edges],
        "resolution": 1.0,
        "start": str(hour),
        "end": str(hour + HOUR),
        "stream": "interim" if published.stream == "outlook" else published.stream,
    }


def _around(cube: xr.Dataset, cell: Cell, time: np.datetime64, hours: int = 48) -> xr.Dataset:
    """Published hours around one, of one cell."""
    near = cube[list(VALUES)].sel(time=slice(time - hours * HOUR, time + hours * HOUR))
    return near.isel(dict(zip(near["pm2p5"].dims[1:], (cell.row, cell.column), strict=True))).load()


def _issue(cube: xr.Dataset, where: Location) -> np.datetime64:
    said = cube.attrs.get("outlook_issue_time")
    if said is None:
        raise ProductError(f"{where}: expected attribute 'outlook_issue_time' beside hours of an outlook; found none")
    return np.datetime64(str(said).rstrip("Z"), "h")


# ---- an analysed hour ----


def _analyses(run: _Run) -> Callable[[_Place], Trace]:
    """How hours of the interim or final stream are traced."""
    network, record = analyse.load(run.config.weights), analyse.observations(run.observed.cube)

    def explain(place: _Place) -> Trace:
        hour, mode, at_place = place.published.hour, place.published.stream, place.cell.place
        at = int(np.searchsorted(record.hours, analyse.hours_since_1970(np.array([hour]))[0]))
        plain = _estimate(network, record, at_place, at, mode)
        block = _with_covariates(network, record, at_place, at, mode, run.config.covariates) or plain
        parts = apart.take_apart(network.aqnet, record, at_place, at, mode)
        drift = float(np.cbrt(block.mean[0, 0]) - np.cbrt(plain.mean[0, 0]))
        return _finished(run, place, at, block, parts, network.digest, drift)

    return explain


def _estimate(network: analyse.Network, record: Observations, place: Points, at: int, mode: str) -> Block:
    """The estimate as a run makes it without covariates."""
    levels = tuple(analyse.QUANTILES.values())
    return next(iter(infer.day_blocks(network.aqnet, record, place, levels, at, at + 1, mode)))


def _with_covariates(
    network: analyse.Network, record: Observations, place: Points, at: int, mode: str, given: tuple[Covariate, ...]
) -> Block | None:
    """The estimate as a run makes it with covariates; None where there are none."""
    if not given:
        return None
    known, levels = covariates.open_all(given), tuple(analyse.QUANTILES.values())
    at_stations = covariates.Sampler(known, record.lon, record.lat, mode == "final")(record.hours)
    at_place = covariates.Sampler(known, place.lon, place.lat, mode == "final")
    sampled = background.Covariates(at_stations, lambda hours: at_place(record.hours[hours]))
    return next(iter(background.day_blocks(network.aqnet, record, place, levels, sampled, at, at + 1, mode)))


# ---- an hour ahead ----


def _forecasts(run: _Run, issue: np.datetime64) -> Callable[[_Place], Trace]:
    """How hours of the outlook stream are traced."""
    outlook, record = analyse.load_outlook(run.config.outlook_weights), analyse.observations(run.observed.cube)
    levels = tuple(analyse.QUANTILES.values())

    def explain(place: _Place) -> Trace:
        lead = round((place.published.hour - issue) / HOUR) + 1
        *_, block = outlook_blocks(outlook.network, record, place.cell.place, levels, len(record.hours), lead)
        parts = apart_outlook.take_apart(outlook.network, record, place.cell.place, lead)
        return _finished(run, place, len(record.hours), block, parts, outlook.digest)

    return explain


def _finished(
    run: _Run,
    place: _Place,
    hour: int,
    block: Block,
    parts: Parts | OutlookParts | None,
    weights: str,
    drift: float = 0.0,
) -> Trace:
    """A trace from its last hour's estimate."""
    made = (block.mean[-1, 0], *block.quantiles[:, -1, 0])
    return Trace(
        **vars(run),
        **vars(place),
        hour=hour,
        recomputed={name: float(value) for name, value in zip(VALUES, made, strict=True)},
        distance=float(block.distance[-1, 0]),
        count=int(block.count[-1]),
        parts=None if np.isnan(block.mean[-1, 0]) else parts,
        drift=0.0 if np.isnan(drift) else drift,
        weights=weights,
    )
