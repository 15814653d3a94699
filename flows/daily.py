"""Every day: make the day final whose neighbours are all there, and final hours again that late data changed."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from prefect import flow
from prefect.states import State

from flows import environment, scheduled
from flows.scheduled import Arrivals
from pipeline import schedule


@flow(name="daily")
def daily(
    config: Path,
    arrivals: Arrivals | None = None,
    now: datetime | None = None,
    after_days: int = schedule.FINAL_AFTER_DAYS,
) -> list[str] | State[str]:
    """Make interim days final that are old enough, and again the final hours whose observations changed.

    Parameters
    ----------
    config, arrivals, now : see `flows.hourly.hourly`.
    after_days : days after which a day is made final.

    Returns
    -------
    Revisions that were published, or the completed state ``NothingDue``.
    """
    with environment.discreet():
        settings, cube, time = scheduled.ready(config, arrivals, now)
        return scheduled.make(config, cube, schedule.final(settings.input, cube, time, after_days), "daily")
