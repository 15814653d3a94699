"""A long period at once, its months side by side."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from prefect import flow

from flows import environment
from flows.reanalysis import reanalysis
from pipeline.config import from_sources


@flow(name="backfill")
def backfill(
    config: Path,
    start: datetime | None = None,
    end: datetime | None = None,
    stream: str | None = None,
    workers: int = 2,
    reason: str | None = None,
) -> str | None:
    """Make a period of any length as one revision, month by month on Dask workers.

    Parameters
    ----------
    config : TOML file of a run.
    start, end, stream : in place of the file's.
    workers : processes on this machine; those of ``DASK_SCHEDULER_ADDRESS`` where that is set.
    reason : for the record of the revision.

    Returns
    -------
    The revision, None when nothing changed.
    """
    with environment.discreet():
        settings = from_sources(config, {"start": start, "end": end, "stream": stream})
        return reanalysis(settings, reason or "backfill", workers=workers).revision
