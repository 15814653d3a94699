"""What is cut from the published cube for a run's hours: NetCDF files and maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from pipeline import export, maps, outlook_fields
from pipeline.config import Month, RunConfig, calendar_months, naive, utc_hour
from pipeline.contract import HOUR

#: Folder of the products in a run's output folder.
PRODUCTS = "products"


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
    """Write NetCDF and map of each month of a run, and of its outlook; return them by name.

    Parameters
    ----------
    cube : published, from `pipeline.write.open_cube`.
    folder : where the files go.
    observed : valid PM2.5 of the months, for the maps' dots; a month without has none.
    """
    files: dict[str, Path] = {}
    dots = {values["time"].values[0].astype("M8[M]"): values for values in observed}
    for first, end in part.months:
        files |= _cut_month(part, cube, folder, (first, end), dots.get(first.astype("M8[M]")))
    return files | (_cut_outlook(part, cube, folder) if part.ahead else {})


def _cut_month(
    part: Part, cube: xr.Dataset, folder: Path, hours: Month, observed: xr.DataArray | None
) -> dict[str, Path]:
    """NetCDF and map of one month."""
    files, (first, end), month = {}, hours, str(hours[0].astype("M8[M]"))
    for path in export.export_netcdf(cube, folder, part.domain, part.stream, part.version, start=first, end=end):
        files[f"netcdf {month}"] = path
        if drawable(cube):
            files[f"map {month}"] = draw_month(cube, hours, observed, path.with_suffix(".png"))
    return files


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
