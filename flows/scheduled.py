"""What the scheduled flows share: taking in what arrived, and making what is due, one publisher at a time."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import xarray as xr
from prefect.concurrency.sync import concurrency
from prefect.states import Completed, State
from pydantic import BaseModel, ConfigDict, Field

from flows.reanalysis import reanalysis, stage
from pipeline import fetch, output, schedule
from pipeline.config import RunConfig, from_sources, naive
from pipeline.cube import reader, store
from pipeline.errors import ConfigError
from pipeline.store import ingest as ingesting

logger = logging.getLogger("aqnet")

#: A scheduled configuration says no end: hours are due up to the present.
_NEVER = datetime(9999, 1, 1, tzinfo=UTC)


class Arrivals(BaseModel):
    """Where new observations come from.

    Attributes
    ----------
    network : source of the raw files, one of `pipeline.sources.names`.
    path : folder (or file) that they arrive in.
    stations : site list of networks whose files have no coordinates.
    fetch_hours : hours before the present to fetch from the network's archive into the folder first; 0 fetches none.
    keep_going : leave out files that cannot be read, and say so, instead of stopping.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    path: Path
    stations: Path | None = None
    fetch_hours: int = Field(default=0, ge=0)
    keep_going: bool = True


def open_ended(config: Path) -> RunConfig:
    """Read the configuration of a schedule: source ``store``, `start` the cube's first hour, without an end.

    Raises
    ------
    ConfigError
        When it is none, or its source is no observation store.
    """
    found = from_sources(config, {"end": _NEVER})
    if found.source != "store":
        raise ConfigError(f"{config}: source: expected 'store', which knows late data; found '{found.source}'")
    return found


@stage
def take_in(settings: RunConfig, arrivals: Arrivals, now: datetime) -> int:
    """Fetch, where that is asked for, and ingest what arrived; return the number of hours that changed."""
    if arrivals.fetch_hours:
        began = now - timedelta(hours=arrivals.fetch_hours)
        fetch.fetch(fetch.Query(arrivals.network, began, now, settings.bbox), arrivals.path)
    if is_empty(arrivals.path):
        logger.info("%s: nothing has arrived yet", arrivals.path)
        return 0
    files = arrivals.network, arrivals.path, arrivals.stations
    done = ingesting.ingest(settings.input, *files, keep_going=arrivals.keep_going)
    logger.info(done.as_text(settings.input))
    for problem in done.refused:
        logger.warning("left out: %s", problem)
    return int(done.changes["hour"].nunique())


def is_empty(path: Path) -> bool:
    """Whether a path is a folder without a file: nothing has arrived, which is no error; that there is none is one."""
    return path.is_dir() and not any(one.is_file() and not one.name.startswith(".") for one in path.iterdir())


def make(config: Path, cube: xr.Dataset | None, due: schedule.Due, reason: str) -> list[str] | State[str]:
    """Make what is due, a run a period; one publisher of the domain at a time.

    Where the concurrency limit ``aqnet-<domain>`` is set, runs wait for one another; without it a second one stops at
    the cube's lock. Where nothing is due but the last run was killed once readers saw its hours, it is made again for
    its downloads.

    Parameters
    ----------
    cube : what `ready` found.

    Returns
    -------
    The revisions, or a completed state that says that nothing was due.
    """
    if not due.periods and cube is not None and (left := _unfinished(config, cube)):
        due, reason = left, "downloads of a run that was killed"
    if not due.periods:
        return Completed(name="NothingDue", message=f"nothing is due in the {due.stream} stream")
    made = []
    for period in due.periods:
        first, end = map(str, period)
        settings = from_sources(config, {"start": first, "end": end, "stream": due.stream})
        with concurrency(f"aqnet-{settings.domain}"):
            run = reanalysis(settings, reason, due.attrs(period))
        made.append(run.revision or "unchanged")
    return made


def _unfinished(config: Path, cube: xr.Dataset) -> schedule.Due | None:
    settings = open_ended(config)
    return schedule.unfinished(settings.out / output.PRODUCTS, cube, output.cube(settings.out, settings.store))


def ready(
    config: Path, arrivals: Arrivals | None, now: datetime | None
) -> tuple[RunConfig, xr.Dataset | None, np.datetime64]:
    """Read the configuration and take in what arrived.

    Returns
    -------
    The configuration, the cube that the schedule keeps (None before its first revision), and the present hour.
    """
    settings, time = open_ended(config), (now or datetime.now(UTC)).astimezone(UTC)
    if arrivals:
        take_in(settings, arrivals, time)
    return settings, _published(settings), naive(time.replace(minute=0, second=0, microsecond=0))


def _published(settings: RunConfig) -> xr.Dataset | None:
    path = output.cube(settings.out, settings.store)
    return reader.open_cube(path) if store.exists(path) else None
