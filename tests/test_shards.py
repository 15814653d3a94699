"""Months made side by side: the cube is that of one process, whoever made it and whoever died."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from distributed import LocalCluster

from pipeline import report, shards, stages
from pipeline.config import RunConfig
from pipeline.cube import reader
from pipeline.twin.simulate import Simulation


def config(simulation: Simulation, weights: Path, out: Path) -> RunConfig:
    """Two months, a day of each."""
    return RunConfig(
        input=simulation.archive,
        stations=simulation.stations,
        start="2019-11-30",
        end="2019-12-02",
        bbox=simulation.bbox,
        resolution=0.5,
        weights=weights,
        out=out,
    )


def made(settings: RunConfig, workers: int) -> stages.Run:
    """What the flow does with workers, without Prefect."""
    with stages.begin(settings, f"with-{workers}") as run:
        shards.make(run, workers)
        stages.validate(run)
        stages.publish(run)
    return run


@pytest.fixture(scope="module")
def alone(small_simulation: Simulation, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> stages.Run:
    return stages.make(config(small_simulation, weights, tmp_path_factory.mktemp("alone")), "alone")


def assert_same(found: stages.Run, wanted: stages.Run) -> None:
    cubes = [reader.open_cube(run.candidate.path) for run in (found, wanted)]
    for name in cubes[1].variables:
        np.testing.assert_array_equal(cubes[0][name].values, cubes[1][name].values, err_msg=str(name))
    assert report.scores(found).equals(report.scores(wanted))
    assert [kept.cells.to_dict() for kept in found.kept] == [kept.cells.to_dict() for kept in wanted.kept]
    assert report.quality(found).equals(report.quality(wanted))
    assert [(stage.name, stage.period, stage.rows) for stage in found.stages] == [
        (stage.name, stage.period, stage.rows) for stage in wanted.stages
    ]


def test_two_processes_make_what_one_makes(
    alone: stages.Run, small_simulation: Simulation, weights: Path, tmp_path: Path
) -> None:
    assert len(alone.config.months()) == 2
    assert_same(made(config(small_simulation, weights, tmp_path), 2), alone)


def test_a_worker_that_is_killed_leaves_nothing_behind(
    alone: stages.Run, small_simulation: Simulation, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its month goes to another worker, which begins from the fork as it was."""
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        (worker,) = cluster.workers.values()
        first = worker.pid
        timer = threading.Timer(1.0, os.kill, (first, signal.SIGKILL))
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        timer.start()
        found = made(config(small_simulation, weights, tmp_path), 99)
        timer.join()
        assert worker.pid != first
    assert_same(found, alone)
