"""What a killed run had flagged is taken by the next one: by content, whole or not at all, and the cube is the same."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pipeline import output, provenance, qc, results, stages
from pipeline.config import RunConfig
from pipeline.cube import reader
from pipeline.twin.simulate import Simulation

HOUR = np.timedelta64(1, "h")
HOURS = ("2019-11-30T20", "2019-12-01T02")  # of two months


@pytest.fixture(autouse=True)
def known_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code is that of a commit, whatever the checkout of this test is."""
    monkeypatch.setattr(provenance, "code_version", lambda: "git 0123")


def config(simulation: Simulation, weights: Path, out: Path, **more: Any) -> RunConfig:
    fields: dict[str, Any] = {"input": simulation.archive, "stations": simulation.stations, "bbox": simulation.bbox}
    fields |= {"start": HOURS[0], "end": HOURS[1], "resolution": 1.0, "weights": weights, "out": out}
    out.mkdir(exist_ok=True)
    return RunConfig(**fields | more)


def kept(out: Path) -> list[Path]:
    return sorted((out / results.FOLDER).glob("*"))


class Killed(BaseException):
    """What no stage may catch."""


@pytest.fixture(scope="module")
def killed(small_simulation: Simulation, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run that ended after the first of its two months was estimated."""
    out = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "code_version", lambda: "git 0123")
        patch.setattr(stages, "score_month", kill)
        with pytest.raises(Killed):
            stages.make(config(small_simulation, weights, out), "killed")
    return out


def kill(*_: object) -> None:
    raise Killed


@pytest.fixture
def again(killed: Path, tmp_path: Path) -> Path:
    """A copy of it, whose files are as old."""
    return Path(shutil.copytree(killed, tmp_path / "again"))


@pytest.fixture
def flagged(monkeypatch: pytest.MonkeyPatch) -> list[np.datetime64]:
    """Months that are flagged from now on, each by its first hour that is used."""
    seen: list[np.datetime64] = []
    flag = qc.flag

    def noting(cube: xr.Dataset, since: np.datetime64 | None = None) -> xr.Dataset:
        assert since is not None
        seen.append(since)
        return flag(cube, since)

    monkeypatch.setattr(qc, "flag", noting)
    return seen


@pytest.fixture(scope="module")
def undisturbed(small_simulation: Simulation, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    out = tmp_path_factory.mktemp("undisturbed")
    stages.make(config(small_simulation, weights, out), "undisturbed")
    return reader.open_cube(out / output.CUBE).load()


def test_the_next_run_takes_the_flagged_month_and_makes_the_same_cube(
    again: Path,
    undisturbed: xr.Dataset,
    flagged: list[np.datetime64],
    small_simulation: Simulation,
    weights: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (one,) = kept(again)
    caplog.set_level("INFO")
    run = stages.make(config(small_simulation, weights, again), "again")
    assert len(flagged) == 1  # the second month
    assert f"observations as an earlier run flagged them: {one.name}" in caplog.text
    xr.testing.assert_identical(reader.open_cube(run.candidate.path).drop_attrs().load(), undisturbed.drop_attrs())
    assert [stage.name for stage in run.stages].count("quality control") == 2
    assert len(run.quality) == len(run.observed) == 2
    assert not (again / results.FOLDER).exists()  # it is published


@pytest.mark.parametrize("size", [0, 10, 60, -1])
def test_half_a_result_is_thrown_away(
    again: Path, flagged: list[np.datetime64], small_simulation: Simulation, weights: Path, size: int
) -> None:
    settings = config(small_simulation, weights, again)
    month = settings.months()[0]
    name = results.key(settings, month)
    (path,) = kept(again)
    assert path.name == name
    assert results.find(again, name) is not None
    path.write_bytes(path.read_bytes()[:size])
    assert results.find(again, name) is None
    assert kept(again) == []


def test_what_is_kept_is_what_was_flagged(again: Path, small_simulation: Simulation, weights: Path) -> None:
    settings = config(small_simulation, weights, again)
    with stages.begin(config(small_simulation, weights, again / "other"), "other") as run:
        month = settings.months()[0]
        fresh = qc.flag(stages.ingest(run, month), np.datetime64("2019-11-28"))
    found = results.find(again, results.key(settings, month))
    assert found is not None
    xr.testing.assert_identical(found.drop_attrs(), fresh.drop_attrs())
    assert {name: found[name].dtype for name in found.variables} == {n: fresh[n].dtype for n in fresh.variables}


def test_the_key_is_of_content_and_not_of_the_place(
    small_simulation: Simulation, weights: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(small_simulation.archive, moved)
    sites = shutil.copy(small_simulation.stations, tmp_path / small_simulation.stations.name)
    here = config(small_simulation, weights, tmp_path / "here")
    there = config(small_simulation, weights, tmp_path / "there", input=moved, stations=Path(sites))
    first, second = here.months()
    before = results.key(there, first), results.key(there, second)
    assert before == (results.key(here, first), results.key(here, second))
    for archive in moved.glob("*.zip"):
        archive.rename(archive.with_name(f"renamed-{archive.name}"))
    assert (results.key(there, first), results.key(there, second)) == before
    Path(sites).write_text(Path(sites).read_text() + "9999A,Nowhere,0,0\n")
    assert results.key(there, first) != before[0]


def test_other_bytes_under_the_same_name_make_another_key(
    small_simulation: Simulation, weights: Path, tmp_path: Path
) -> None:
    observations = tmp_path / "table.csv"
    rows = [f"2019-{day}T{hour:02}:00Z,a,111,37,{hour}" for day in ("11-30", "12-01") for hour in range(24)]
    text = "\n".join(["time,station,lon,lat,pm2p5", *rows])
    observations.write_text(text)
    settings = config(small_simulation, weights, tmp_path / "out", source="table", input=observations, stations=None)
    month = settings.months()[0]
    before = results.key(settings, month)
    renamed = observations.rename(tmp_path / "another.csv")
    assert results.key(settings.model_copy(update={"input": renamed}), month) == before
    renamed.write_text(text.replace(",23", ",24"))
    stamp = time.time() - 1e6
    os.utime(renamed, (stamp, stamp))
    assert results.key(settings.model_copy(update={"input": renamed}), month) != before


@pytest.mark.parametrize(
    "change",
    [{"bbox": (110.0, 36.0, 112.0, 39.0)}, {"truncated": "keep"}, {"stream": "final"}, {"end": "2019-12-01T03"}],
)
def test_what_changes_an_observation_changes_the_key_and_what_does_not_does_not(
    small_simulation: Simulation, weights: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    one, other = (config(small_simulation, weights, tmp_path, **more) for more in ({}, change))
    keys = [[results.key(settings, month) for month in settings.months()] for settings in (one, other)]
    assert keys[0][1] != keys[1][1]
    assert (keys[0][0] == keys[1][0]) is ("end" in change)  # the first month does not read the last hour
    finer = config(small_simulation, weights, tmp_path, resolution=0.5, seed=3)
    assert results.key(finer, one.months()[0]) == keys[0][0]


def test_nothing_is_kept_of_one_month_nor_by_code_that_is_not_committed(
    small_simulation: Simulation, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = config(small_simulation, weights, tmp_path, start=HOURS[0], end="2019-12-01")
    assert results.key(single, single.months()[0]) is None
    several = config(small_simulation, weights, tmp_path)
    monkeypatch.setattr(provenance, "code_version", lambda: "git 0123-dirty")
    assert results.key(several, several.months()[0]) is None


def test_an_input_that_changed_while_it_was_read_is_not_kept(
    small_simulation: Simulation, weights: Path, tmp_path: Path
) -> None:
    settings = config(small_simulation, weights, tmp_path)
    month = settings.months()[0]
    results.keep(settings, month, "of what the files were before", xr.Dataset())
    assert kept(tmp_path) == []
    results.keep(settings, month, results.key(settings, month), xr.Dataset())
    assert len(kept(tmp_path)) == 1


def test_a_disk_that_refuses_costs_this_run_nothing(
    small_simulation: Simulation, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(small_simulation, weights, tmp_path)
    (tmp_path / results.FOLDER).touch()  # no folder can be made there
    results.keep(settings, settings.months()[0], results.key(settings, settings.months()[0]), xr.Dataset())
    assert "cannot be kept for a later run" in caplog.text


def test_a_short_run_that_is_published_leaves_another_runs_results_until_they_are_old(
    again: Path, small_simulation: Simulation, weights: Path
) -> None:
    single = config(small_simulation, weights, again, start=HOURS[0], end="2019-12-01")
    results.clear(single)
    (path,) = kept(again)
    stamp = time.time() - results.LONGEST.total_seconds() - 60
    os.utime(path, (stamp, stamp))
    results.clear(single)
    assert kept(again) == []
