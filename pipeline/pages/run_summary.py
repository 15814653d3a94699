"""What a run's report says, as plain data: from the run, and from its cube a day at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipeline import score, sources
from pipeline.contract import HOUR, QUALITY_BITS
from pipeline.cube import changes, reader
from pipeline.cube.changes import Changes
from pipeline.grid import Grid
from pipeline.location import Location, relative
from pipeline.pages import maps, places, quality_report
from pipeline.pages.map_view import degrees_text
from pipeline.pages.maps import Stations
from pipeline.pages.pairs import Kept
from pipeline.pages.places import Place
from pipeline.qc.record import Record
from pipeline.release.gate import Check, failed

if TYPE_CHECKING:
    from pipeline.stages import Run

Float = NDArray[np.float64]

#: Share of the hours that a station must have reported to be a dot on the map of means.
_HALF = 0.5


@dataclass(frozen=True)
class Header:
    """Which run, of what: `facts` are label -> text, in the order in which they are shown."""

    title: str
    period: str
    run_id: str
    revision: str
    simulated: bool
    facts: dict[str, str]


@dataclass(frozen=True)
class Fields:
    """What the cube holds over the run's hours.

    Attributes
    ----------
    mean, width : mean PM2.5 and mean width of its 90 % interval, (rows, columns), ug m-3; NaN where no estimate.
    extrapolated : cells that are extrapolated in more than half of the hours.
    area_mean, area_width : of `mean` and `width` over the land, by area.
    extrapolated_land : share of the land's cell hours that are extrapolated.
    highest : highest hourly PM2.5 of a cell, ug m-3; `when` and `where` (lon, lat) it was.
    reporting : fewest, median and most stations with a valid observation in an hour.
    """

    mean: xr.DataArray
    width: xr.DataArray
    extrapolated: xr.DataArray
    area_mean: float
    area_width: float
    extrapolated_land: float
    highest: float
    when: np.datetime64
    where: tuple[float, float]
    reporting: tuple[int, float, int]


@dataclass(frozen=True)
class Series:
    """Estimate and observations at a place, hourly, ug m-3, each (T,); NaN where there is none."""

    place: Place
    time: NDArray[np.datetime64]
    mean: Float
    low: Float
    high: Float
    observed: Float


@dataclass(frozen=True)
class Summary:
    """All that the report of a run says.

    Attributes
    ----------
    observed : lon, lat and period mean (ug m-3) of the stations that reported in at least half of the hours.
    around : (W, S, E, N), degrees, within which stations count.
    quality : records of quality control, one a month; `alarms` of the networks' clocks.
    scores : at withheld stations, a row a month and method, see `pipeline.score.scores`.
    pairs : what is kept of the pairs behind the scores, one a month that could be scored.
    stages : ``name``, ``period``, ``seconds``, ``peak_mib``, ``rows``, ``unit`` of each.
    lineage : attributes that tell the product's origin, see `pipeline.provenance`.
    checks : of the release gate; `validation` is None where it was not reached.
    changes : against the revision before; None for a cube's first.
    files : name -> path relative to the report.
    """

    header: Header
    checks: Sequence[Check]
    validation: score.Validation | None
    fields: Fields
    observed: Stations
    around: tuple[float, float, float, float]
    quality: Sequence[Record]
    alarms: Sequence[str]
    scores: pd.DataFrame
    pairs: Sequence[Kept]
    series: Sequence[Series]
    stages: Sequence[Mapping[str, Any]]
    lineage: Mapping[str, str]
    changes: Changes | None
    files: Mapping[str, str] = field(default_factory=dict)


def from_run(run: Run, cube: xr.Dataset, kept: Sequence[Kept], around_km: float, folder: Path) -> Summary:
    """Collect the summary of a run that was published or held; the cube is read once, a day at a time.

    Parameters
    ----------
    cube : what the run made, as `pipeline.cube.reader.open_cube` opens it.
    kept : pairs at withheld stations, one a month that could be scored.
    around_km : distance outside the grid within which stations count.
    folder : where the report will lie.
    """
    start, end = run.hours
    stations = places.summed(run.observed)
    listed = sources.site_path(sources.find(run.config.source), run.config.input, run.config.stations)
    cities = places.city_names(listed)
    chosen = places.choose(stations, run.grid, cities)
    fields, estimates = survey(_days(cube, start, end), run.grid, chosen)
    return Summary(
        header=_header(run, cube, _made_up(cube, cities)),
        checks=run.checks,
        validation=run.validation,
        fields=fields,
        observed=_means(stations, int((end - start) / HOUR)),
        around=run.grid.surroundings(around_km),
        quality=run.quality,
        alarms=quality_report.alarms(run.quality),
        scores=pd.concat(run.scores).reset_index() if run.scores else pd.DataFrame(),
        pairs=kept,
        series=[_with_observed(one, run.observed) for one in estimates],
        stages=[asdict(stage) for stage in run.stages],
        lineage=run.lineage,
        changes=changes_of(run.candidate.path, cube, run.revision),
        files={name: relative(made, folder) for name, made in run.files.items()},
    )


def _made_up(cube: xr.Dataset, cities: Mapping[str, str]) -> bool:
    """Whether the product, or the list of its stations, says that it is simulated."""
    return maps.simulated(cube.attrs) or any("SIMULATED" in city for city in cities.values())


def _header(run: Run, cube: xr.Dataset, simulated: bool) -> Header:
    config, (start, end) = run.config, run.hours
    rows, columns = run.grid.shape
    unit = " m" if run.grid.projected else "°"
    ahead = (np.datetime64(run.candidate.hours[1], "h") - end) // HOUR
    facts = {
        "Domain": f"{config.domain}, {_box(run.grid.bbox)}",
        "Grid": f"{rows} by {columns} cells of {config.resolution:g}{unit}, {config.crs}",
        "Stream": config.stream + (f", with an outlook of {ahead} h" if ahead > 0 else ""),
        "Observations": f"{config.source}, {len(run.inputs):,} input files",
        "Version": f"product {config.version}, code {run.lineage['code_version']}",
        "Made": str(cube.attrs["date_created"]),
    }
    unpublished = "none: held" if failed(run.checks) else f"{cube.attrs['revision']} (nothing changed)"
    period = f"{_clock(start)} to {_clock(end)} UTC, {int((end - start) / HOUR):,} hours"
    title = str(cube.attrs["title"])
    return Header(title, period, run.run_id, run.revision or unpublished, simulated, facts)


def _box(bbox: tuple[float, float, float, float]) -> str:
    west, south, east, north = (round(edge, 3) for edge in bbox)
    across = f"{degrees_text(west, 'EW')} to {degrees_text(east, 'EW')}"
    return f"{across}, {degrees_text(south, 'NS')} to {degrees_text(north, 'NS')}"


def _clock(time: np.datetime64) -> str:
    return np.datetime_as_string(time, "m").replace("T", " ")


def _means(stations: pd.DataFrame, hours: int) -> Stations:
    seen = stations[stations["hours"] >= max(_HALF * hours, 1)]
    mean = (seen["sum"] / seen["hours"]).to_numpy("float64")
    return seen["lon"].to_numpy("float64"), seen["lat"].to_numpy("float64"), mean


# ---- the cube, a day at a time ----


def _days(cube: xr.Dataset, start: np.datetime64, end: np.datetime64) -> Iterator[xr.Dataset]:
    one = np.timedelta64(1, "D")
    for day in np.arange(start.astype("M8[D]"), end, one):
        yield cube.sel(time=slice(max(start, day), min(end, day + one) - HOUR))


def survey(days: Iterator[xr.Dataset], grid: Grid, chosen: Sequence[Place]) -> tuple[Fields, list[Series]]:
    """Maps, figures and the estimates at places, from consecutive blocks of hours of a cube on `grid`.

    Returns
    -------
    Fields, and one Series a place, its observations NaN.
    """
    totals, cells = _Totals(grid), ([p.row for p in chosen], [p.column for p in chosen])
    blocks = [totals.add(day, cells) for day in days]
    time, mean, low, high = (np.concatenate(column) for column in zip(*blocks, strict=True))
    nothing = np.full(len(time), np.nan)
    return totals.fields(), [
        Series(place, time, mean[:, n], low[:, n], high[:, n], nothing) for n, place in enumerate(chosen)
    ]


_Block = tuple[NDArray[np.datetime64], Float, Float, Float]


class _Totals:
    """Sums over the hours of a cube, (rows, columns) each, and the highest value so far."""

    def __init__(self, grid: Grid) -> None:
        self.grid, self.hours, self.highest = grid, 0, -np.inf
        self.known, self.sum, self.width, self.far = (np.zeros(grid.shape) for _ in range(4))
        self.when, self.where = np.datetime64("NaT"), (np.nan, np.nan)
        self.count: list[NDArray[np.int64]] = []

    def add(self, day: xr.Dataset, cells: tuple[list[int], list[int]]) -> _Block:
        """Take a block of hours in; return its times, and mean and ends of the 90 % interval at some cells."""
        mean, low, high = (day[name].values for name in ("pm2p5", "pm2p5_p05", "pm2p5_p95"))
        self.hours += len(mean)
        self.known += np.isfinite(mean).sum(axis=0)
        self.sum += np.nansum(mean, axis=0, dtype=np.float64)
        self.width += np.nansum(high - low, axis=0, dtype=np.float64)
        self.far += (day["quality_flag"].values & QUALITY_BITS["extrapolated"] > 0).sum(axis=0)
        self.count.append(day["observation_count"].values)
        self._note_highest(mean, day["time"].values)
        there = [part[:, cells[0], cells[1]].astype(np.float64) for part in (mean, low, high)]
        return day["time"].values, there[0], there[1], there[2]

    def _note_highest(self, mean: NDArray[np.float32], time: NDArray[np.datetime64]) -> None:
        if not np.isfinite(mean).any():
            return
        hour, row, column = np.unravel_index(np.nanargmax(mean), mean.shape)
        if mean[hour, row, column] > self.highest:
            lon, lat = self.grid.lon_lat()
            self.highest, self.when = float(mean[hour, row, column]), time[hour]
            self.where = float(lon[row, column]), float(lat[row, column])

    def fields(self) -> Fields:
        """All that was seen, as maps and figures."""
        with np.errstate(invalid="ignore"):
            mean, width = self.sum / self.known, self.width / self.known
        land, count = self.grid.land, np.concatenate(self.count)
        return Fields(
            mean=self._map(mean),
            width=self._map(width),
            extrapolated=self._map(self.far > self.hours / 2),
            area_mean=self._over_land(mean),
            area_width=self._over_land(width),
            extrapolated_land=float(self.far[land].sum() / max(self.hours * land.sum(), 1)),
            highest=self.highest,
            when=self.when,
            where=self.where,
            reporting=(int(count.min()), float(np.median(count)), int(count.max())),
        )

    def _map(self, values: NDArray[Any]) -> xr.DataArray:
        return self.grid.coords().assign(map=(self.grid.spatial, values))["map"]

    def _over_land(self, values: Float) -> float:
        known = self.grid.land & np.isfinite(values)
        area = self.grid.cell_area[known]
        return float((values[known] * area).sum() / area.sum()) if known.any() else np.nan


def _with_observed(series: Series, months: Sequence[xr.DataArray]) -> Series:
    """The same with the mean of the place's stations, hour by hour."""
    parts = [_observed(month, series.place.stations) for month in months]
    observed = pd.concat(parts).reindex(pd.DatetimeIndex(series.time)).to_numpy("float64")
    return Series(series.place, series.time, series.mean, series.low, series.high, observed)


def _observed(month: xr.DataArray, stations: Sequence[str]) -> pd.Series:
    own = month.isel(station=np.isin(month["station"].values, stations))
    return own.mean("station").to_series() if own.sizes["station"] else pd.Series(dtype="float64")


# ---- what changed ----


def changes_of(path: Location, cube: xr.Dataset, revision: str | None) -> Changes | None:
    """Compare a cube with the revision published before it; None where there is none.

    Parameters
    ----------
    path : folder of the cube.
    cube : what a run made, published or not.
    revision : its tag; None where it has none.
    """
    tags = (entry["revision"] for entry in reader.backwards(path, revision))
    earlier = next((tag for tag in tags if tag != revision), None)
    if earlier is None:
        return None
    return changes.compare(reader.open_cube(path, earlier), cube, (earlier, revision or "this run"))
