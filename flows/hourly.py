"""Every hour: take in what arrived and make the interim hours that are due."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from prefect import flow
from prefect.states import State

from flows import environment, scheduled
from flows.scheduled import Arrivals
from pipeline import schedule
from pipeline.config import naive


@flow(name="hourly")
def hourly(config: Path, arrivals: Arrivals | None = None, now: datetime | None = None) -> list[str] | State[str]:
    """Take in new files and make, in the interim stream, new hours and those that late data changed.

    Parameters
    ----------
    config : TOML file of a run with source ``store``, without `end`; its `start` is the first hour of the cube.
    arrivals : where new files come from; None when something else fills the store.
    now : the present, UTC; the clock's when None.

    Returns
    -------
    Revisions that were published, or the completed state ``NothingDue``.
    """
    with environment.discreet():
        settings, cube, time = scheduled.ready(config, arrivals, now)
        due = schedule.interim(settings.input, cube, naive(settings.start), time)
        return scheduled.make(config, cube, due, "hourly")
