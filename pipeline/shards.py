"""A long run in shards: worker processes make months side by side, and one revision holds them all.

Each month is written on a fork of the candidate's session; the forks are merged and committed once, by this process, so
that there is one committer and workers that die leave nothing behind. A month's values do not depend on who makes it or
on what is made beside it: any number of workers makes the same cube.

Workers are those of the Dask scheduler at ``DASK_SCHEDULER_ADDRESS``, or a cluster on this machine. They must see the
run's files under the same paths.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import icechunk
import torch
from distributed import Client, Future, KilledWorker, LocalCluster, as_completed

from pipeline import analyse, covariates, logs, stages
from pipeline.config import Month, RunConfig
from pipeline.cube.write import Candidate
from pipeline.errors import ProductError
from pipeline.stages import Run

logger = logging.getLogger("aqnet")

#: Times that a month is given to another worker when its own dies.
RETRIES = 3

#: What a month adds to its run: lists of `pipeline.stages.Run`.
LISTS = ("stages", "quality", "observed", "invalid", "agreements", "scores", "errors", "kept")


@dataclass(frozen=True)
class Task:
    """What a worker needs to make a month; ``candidate`` has a fork as its session, and neither lock nor repository."""

    config: RunConfig
    run_id: str
    candidate: Candidate
    month: Month


@dataclass(frozen=True)
class Made:
    """A month that was made: the fork that holds it, and what it adds to the `LISTS`."""

    fork: icechunk.ForkSession
    lists: dict[str, list[Any]] = field(default_factory=dict)


def make(run: Run, workers: int) -> None:
    """Make the months of a run in worker processes and commit them together.

    Parameters
    ----------
    workers : processes of the local cluster; where a scheduler is named, its workers are used instead.
    """
    run.candidate.commit(f"aqnet run {run.run_id}: laid")  # a session with changes cannot be forked
    months = run.config.months()
    tasks = [Task(run.config, run.run_id, _fork(run.candidate), month) for month in months]
    with _client(min(workers, len(months))) as client:
        made = _gather(client, tasks)
    for month in made:
        for name in LISTS:
            getattr(run, name).extend(month.lists[name])
    run.candidate.session.merge(*(month.fork for month in made))
    run.candidate.commit(f"aqnet run {run.run_id}: {len(months)} months")


def _fork(candidate: Candidate) -> Candidate:
    """The candidate as a worker gets it."""
    missing: Any = None
    return replace(candidate, session=candidate.session.fork(), repo=missing, lock=missing)


@contextmanager
def _client(workers: int) -> Iterator[Client]:
    """Connect to the scheduler that is named, or to a cluster of own processes with a thread each."""
    # the nanny says that it starts another worker; what scheduler and workers say of it is for those who make Dask
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    logging.getLogger("distributed.nanny").setLevel(logging.WARNING)
    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    if address:
        with Client(address) as client:
            logger.info("months side by side: %d workers at %s", len(client.scheduler_info()["workers"]), address)
            yield client
        return
    anywhere = "127.0.0.1:0"  # two runs on one machine do not meet at Dask's usual port
    local = LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=None, dashboard_address=anywhere)
    with local, Client(local) as client:
        logger.info("months side by side: %d processes here", workers)
        yield client


def _gather(client: Client, tasks: list[Task]) -> list[Made]:
    """Results in the order of the tasks, reported as they come."""
    futures = {client.submit(month, task, pure=False, retries=RETRIES): n for n, task in enumerate(tasks)}
    made: dict[int, Made] = {}
    for done in as_completed(futures):
        made[futures[done]] = _result(done, tasks[futures[done]])
        logger.info("made %d of %d months", len(made), len(tasks), extra={"done": len(made), "total": len(tasks)})
    return [made[n] for n in range(len(tasks))]


def _result(done: Future, task: Task) -> Made:
    """What a worker made; in one line, that each of them died of it."""
    try:
        found: Made = done.result()
    except KilledWorker as error:
        period = f"{task.month[0]} to {task.month[1]}"
        raise ProductError(
            f"{task.candidate.path}: {period}: every worker process that made it died, as one does for which memory "
            f"does not suffice; nothing was published; give fewer --workers or more memory, then run it again"
        ) from error
    return found


def month(task: Task) -> Made:
    """Make one month on its fork: ingest, quality control, estimate, score; run by a worker."""
    torch.set_num_threads(1)
    with logs.in_worker(run_id=task.run_id):
        return _month(task)


def _month(task: Task) -> Made:
    """As `month`, its log lines being the run's."""
    config = task.config
    known = covariates.open_all(config.covariates)
    network = analyse.load(config.weights)
    run = Run(config, task.run_id, task.candidate.grid, network, {}, {}, task.candidate, known)
    flagged = stages.quality_control(run, stages.ingest(run, task.month), task.month)
    stages.estimate_month(run, flagged, task.month)
    stages.score_month(run, flagged, task.month)
    fork: Any = run.candidate.session
    return Made(fork, {name: getattr(run, name) for name in LISTS})
