"""What is cut from the published cube for a run's hours: NetCDF files and maps."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from pipeline.config import Month, RunConfig, calendar_months, naive, utc_hour
from pipeline.contract import HOUR, STREAMS
from pipeline.errors import ProductError
from pipeline.offer.inventory import NAME
from pipeline.pages import maps
from pipeline.products import aggregate, export, outlook_fields
from pipeline.products.export import Cut

log = logging.getLogger("aqnet")


@dataclass(frozen=True)
class Part:
    """Which hours of a cube are cut, and how the files are named.

    Attributes
    ----------
    months : half open, UTC, each within a calendar month.
    stream : of these hours; ``ahead`` says whether the run made an outlook too.
    domain, version : in file names.
    """

    months: tuple[Month, ...]
    stream: str
    ahead: bool
    domain: str
    version: str

    @classmethod
    def of(cls, config: RunConfig, ahead: bool) -> Part:
        """Hours and names of a run."""
        return cls(tuple(config.months()), config.stream, ahead, config.domain, config.version)

    @classmethod
    def recorded(cls, config: Mapping[str, Any], ahead: bool) -> Part:
        """Hours and names of a run from its configuration as JSON, whether or not what it read is still there."""
        start, end = (naive(utc_hour(config[name])) for name in ("start", "end"))
        names = (config[name] for name in ("domain", "version"))
        return cls(tuple(calendar_months(start, end)), config["stream"], ahead, *names)


def cut(part: Part, cube: xr.Dataset, folder: Path, observed: Sequence[xr.DataArray] = ()) -> dict[str, Path]:
    """Write the files of each calendar month that a run touched, and of its outlook; return them by name.

    A month's file has all hours of the month that the cube holds in its stream, whichever runs made them: of the run's
    own stream, and of the other where the month has hours of it, since an hour that became final left the interim
    file. What these files take the place of goes.

    Parameters
    ----------
    cube : published, from `pipeline.cube.reader.open_cube`.
    folder : where the files go.
    observed : valid PM2.5 of the run's months, for the maps' dots: drawn where they are of all hours of a map.
    """
    files: dict[str, Path] = {}
    dots = {values["time"].values[0].astype("M8[M]"): values for values in observed}
    months = sorted({first.astype("M8[M]") for first, _ in part.months})
    over = _months_over(cube)
    years = sorted({month.astype("M8[Y]") for month in months if month < over})
    for stream in (part.stream, *(other for other in ("interim", "final") if other != part.stream)):
        made: dict[str, Path] = {}
        for month in months:
            held = cube.sel(time=slice(month.astype("M8[h]"), (month + 1).astype("M8[h]") - HOUR))
            made |= _cut_month(part, held, stream, str(month), folder, dots.get(month))
        for year in years:
            made |= _cut_year(part, cube, stream, (year, over), folder)
        files |= {name if stream == part.stream else f"{stream} {name}": path for name, path in made.items()}
    return files | (_cut_outlook(part, cube, folder) if part.ahead else {})


def _months_over(cube: xr.Dataset) -> np.datetime64:
    """Month that the analysed hours of a cube have not reached the end of; those before it are over."""
    analysed = np.isin(cube["stream"].values, [STREAMS["interim"], STREAMS["final"]])
    return (cube["time"].values[analysed].max() + HOUR).astype("M8[M]")


def _cut_year(
    part: Part, cube: xr.Dataset, stream: str, period: tuple[np.datetime64, np.datetime64], folder: Path
) -> dict[str, Path]:
    """NetCDF of the monthly means of a year, before the month that is not over; none where no month has days enough."""
    year, over = period
    start, end = year.astype("M8[h]"), min((year + 1).astype("M8[h]"), over.astype("M8[h]"))
    made: dict[str, Path] = {}
    try:
        named = "netcdf", part.domain, part.version
        (made[f"monthly {year}"],) = export.export_files(cube, folder, Cut(stream, "monthly", start, end), *named)
    except ProductError as reason:
        log.info("no monthly means of the %s stream: %s", stream, reason)
    _remove_others(part, stream, str(year), folder, set(made.values()), ("monthly",))
    return made


def _cut_month(
    part: Part, cube: xr.Dataset, stream: str, month: str, folder: Path, observed: xr.DataArray | None
) -> dict[str, Path]:
    """NetCDF of the hours and days of a stream in one month, and their map; nothing where it has no hour."""
    files: dict[str, Path] = {}
    if (cube["stream"].values == STREAMS[stream]).any():
        hours, named = export.subset(cube, stream), (part.domain, part.version)
        (path,) = export.export_files(cube, folder, Cut(stream), "netcdf", *named)
        files[f"netcdf {month}"] = path
        if aggregate.days(hours, 0):
            (files[f"daily {month}"],) = export.export_files(cube, folder, Cut(stream, "daily"), "netcdf", *named)
        if drawable(cube):
            dots = observed if observed is not None and _covers(observed, hours) else None
            files[f"map {month}"] = maps.summary_figure(hours, path.with_suffix(".png"), dots)
    _remove_others(part, stream, month, folder, set(files.values()))
    return files


def _covers(observed: xr.DataArray, hours: xr.Dataset) -> bool:
    return bool(np.isin(hours["time"].values, observed["time"].values).all())


def _remove_others(
    part: Part, stream: str, when: str, folder: Path, kept: set[Path], frequencies: Sequence[str] = ("hourly", "daily")
) -> None:
    """Remove files of a month or year and stream that those which were written take the place of."""
    start = f"pm25_{part.domain}_aqnet_{stream}_v{part.version}"
    for frequency in frequencies:
        for path in folder.glob(f"{start}_{frequency}_{when.replace('-', '')}*"):
            if path not in kept and NAME.fullmatch(path.with_suffix(".nc").name):
                path.unlink()


def any_of(folder: Path, revision: str) -> bool:
    """Whether a NetCDF file of a folder was cut from a revision; the newest files are looked at first."""
    files = sorted(folder.glob("pm25_*.nc"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return any(_revision_of(path) == revision for path in files)


def _revision_of(path: Path) -> str:
    with netCDF4.Dataset(path) as data:
        return str(getattr(data, "revision", ""))


def drawable(cube: xr.Dataset) -> bool:
    """Whether the grid makes a map: one row or column of cells does not."""
    return min(cube["pm2p5"].shape[1:]) > 1


def draw_month(cube: xr.Dataset, hours: Month, observed: xr.DataArray | None, path: Path) -> Path:
    """Draw the summary of some hours, half open."""
    return maps.summary_figure(cube.sel(time=slice(hours[0], hours[1] - HOUR)), path, observed)


def _cut_outlook(part: Part, cube: xr.Dataset, folder: Path) -> dict[str, Path]:
    """NetCDF and map of the outlook."""
    files = export.export_netcdf(cube, folder, part.domain, "outlook", part.version)
    days = [path.stem[-17:].split("-") for path in files]
    found = {f"outlook {first[:4]}-{first[4:6]}": path for (first, _), path in zip(days, files, strict=True)}
    if drawable(cube):
        picture = files[0].with_name(f"{files[0].stem[:-8]}{days[-1][1]}.png")
        found["map outlook"] = _draw_outlook(export.subset(cube, "outlook"), picture)
    return found


def _draw_outlook(cube: xr.Dataset, path: Path) -> Path:
    """Map the mean of an outlook and the mean width of its interval."""
    issue, last = outlook_fields.issue_time(cube), (cube["time"].values[-1] + HOUR).astype("M8[h]")
    mean, width = (part.mean("time") for part in (cube["pm2p5"], cube["pm2p5_p95"] - cube["pm2p5_p05"]))
    title = f"PM2.5 outlook issued {issue} UTC: mean of the hours to {last}"
    said = f"Forecast with {cube.attrs['outlook_weights']}; right: mean width of the 90 % interval."
    return maps.draw(mean.assign_attrs(cube.attrs), path, title=title, uncertainty=width, provenance=said)
