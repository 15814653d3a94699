"""The main job as a Prefect flow: one task a stage, retries for passing trouble only, and a report as an artifact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import xarray as xr
from prefect import Task, flow, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from flows import environment
from pipeline import redact, report, stages
from pipeline.config import Month, RunConfig
from pipeline.errors import AqnetError

P = ParamSpec("P")
R = TypeVar("R")

#: Seconds before each further attempt.
BACKOFF = (2.0, 10.0, 60.0)


def passing(_task: Any, _task_run: TaskRun, state: State) -> bool:
    """Whether a failure may pass by itself: an OSError (disk, network); never an error of the user's or of ours."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError) and not isinstance(error, AqnetError)


def stage(function: Callable[P, R]) -> Callable[P, R]:
    """Make a task of a stage.

    Data is handed over in memory, for it is large. What a killed run need not do again is kept by content where months
    are made, in this process or in Dask's workers: `pipeline.results`.
    """
    return Task(
        environment.discreet()(function),
        retries=len(BACKOFF),
        retry_delay_seconds=list(BACKOFF),
        retry_condition_fn=passing,
        cache_policy=NO_CACHE,
    )


@stage
def ingest(run: stages.Run, month: Month) -> xr.Dataset:
    """Read and harmonise one month; see `pipeline.stages`."""
    return stages.ingest(run, month)


@stage
def quality_control(run: stages.Run, cube: xr.Dataset, month: Month) -> xr.Dataset:
    """Flag one month; see `pipeline.stages`."""
    return stages.quality_control(run, cube, month)


@stage
def analyse(run: stages.Run, cube: xr.Dataset, month: Month) -> None:
    """Estimate and write one month; see `pipeline.stages`."""
    stages.analyse_month(run, cube, month)


@stage
def score(run: stages.Run, cube: xr.Dataset, month: Month) -> None:
    """Score one month at withheld stations; see `pipeline.stages`."""
    stages.score_month(run, cube, month)


@stage
def outlook(run: stages.Run) -> None:
    """Forecast the hours after the last; see `pipeline.stages`."""
    stages.outlook(run)


@stage
def validate(run: stages.Run) -> None:
    """Check the candidate; see `pipeline.stages`."""
    stages.validate(run)


@stage
def publish(run: stages.Run) -> None:
    """Publish the candidate and cut the downloads; see `pipeline.stages`."""
    stages.publish(run)


def months_in_order(run: stages.Run) -> None:
    """Make the months here, a task a stage."""
    for month in run.config.months():
        cube = ingest(run, month)
        flagged = quality_control(run, cube, month)
        analyse(run, flagged, month)
        score(run, flagged, month)


@stage
def months_side_by_side(run: stages.Run, workers: int) -> None:
    """Make the months in worker processes; see `pipeline.shards`."""
    from pipeline import shards  # Dask takes a second to import, which few runs need

    shards.make(run, workers)


@flow(name="reanalysis")
def reanalysis(
    config: RunConfig, reason: str | None = None, notes: dict[str, str] | None = None, workers: int | None = None
) -> stages.Run:
    """Make the hours of a configuration and publish them.

    Parameters
    ----------
    reason : why, such as "late data", for the record of the revision; without one it says what the run did.
    notes : global attributes of the cube that a schedule keeps there.
    workers : processes that make months side by side (`pipeline.shards`); None makes them here, one after the other.

    Raises
    ------
    AqnetError
        What is wrong with configuration, input or product; then nothing was published.
    """
    run_id = str(runtime.flow_run.id)
    with environment.watched(config, run_id), stages.begin(config, run_id, reason, notes) as run:
        if workers is not None:
            months_side_by_side(run, workers)
        else:
            months_in_order(run)
        if config.outlook_hours:
            outlook(run)
        validate(run)
        publish(run)
    create_markdown_artifact(
        redact.text(report.as_markdown(run)), key="reanalysis-report", description="What the run took and made"
    )
    return run
