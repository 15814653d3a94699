"""The stages as plain functions, and the flow that calls them: all of it real, on a small simulation."""

from __future__ import annotations

import hashlib
import html
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import numpy as np
import pytest
import xarray as xr

from flows import environment
from pipeline import harmonise, output, score, stages
from pipeline.config import RunConfig, from_sources
from pipeline.cube import reader
from pipeline.errors import AqnetError, ConfigError, InputError, ProductError
from pipeline.offer import catalog, publication
from pipeline.twin import simulate
from pipeline.twin.simulate import Simulation

HOUR = np.timedelta64(1, "h")


def make_config(simulation: Simulation, weights: Path, out: Path, **change: object) -> RunConfig:
    fields: dict[str, object] = {
        "input": simulation.archive,
        "stations": simulation.stations,
        "start": "2019-11-30T12",
        "end": "2019-12-02T06",
        "bbox": simulation.bbox,
        "resolution": 0.25,
        "domain": "test",
        "weights": weights,
        "out": out,
    }
    return from_sources(None, fields | change)


def run_stages(config: RunConfig) -> stages.Run:
    return stages.make(config, "by-hand")


@pytest.fixture(scope="module")
def published(small_simulation: Simulation, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> stages.Run:
    return run_stages(make_config(small_simulation, weights, tmp_path_factory.mktemp("published")))


# ---- stages ----


def test_a_run_estimates_the_simulated_truth(published: stages.Run, small_simulation: Simulation) -> None:
    cube = reader.open_cube(published.candidate.path)
    start, end = published.hours
    own = slice(start, end - HOUR)
    field = simulate.read_truth(small_simulation.truth).sel(time=own)
    truth = field.sel(lat=cube["lat"], lon=cube["lon"], method="nearest")
    estimate = cube["pm2p5_p50"].sel(time=own).values
    land = published.grid.land
    assert estimate[:, land].shape == truth.values[:, land].shape
    hourly_mean = np.broadcast_to(truth.values[:, land].mean(), truth.values[:, land].shape)
    assert score.mae(estimate[:, land], truth.values[:, land]) < score.mae(hourly_mean, truth.values[:, land])


def test_only_the_hours_of_the_run_are_produced(published: stages.Run) -> None:
    cube = reader.open_cube(published.candidate.path)
    produced = cube["time"].values[cube["revision"].values > 0]
    np.testing.assert_array_equal(produced, np.arange(*published.hours))


def test_products_of_a_run(published: stages.Run) -> None:
    names = {path.name for path in (published.config.out / output.PRODUCTS).iterdir()}
    stems = [f"pm25_test_aqnet_interim_v0.1.0_hourly_{days}" for days in ("20191130-20191130", "20191201-20191202")]
    pictures = {f"{stem}{ending}" for stem in stems for ending in (".nc", ".png")}
    pictures.add("pm25_test_aqnet_interim_v0.1.0_daily_20191201-20191201.nc")
    papers = {"lineage.json", "run.json", "quality-control.html", "report.html"}
    offered = {*publication.MADE, catalog.THUMBNAILS, "provenance"}
    assert pictures | papers <= names
    assert names - pictures - papers <= offered
    assert {path.name for path in publication.entrances(published.config.out / output.PRODUCTS).values()} <= names
    assert {path.exists() for path in published.files.values()} == {True}
    with xr.open_dataset(published.files["netcdf 2019-12"]) as month:
        assert month.sizes["time"] == 30
        assert month.attrs["flow_run_id"] == "by-hand"
        assert month.attrs["weights_digest"] == published.network.digest


def test_checksums_hold(published: stages.Run) -> None:
    products = published.config.out / output.PRODUCTS
    lines = (products / "SHA256SUMS").read_text().splitlines()
    every = {path.relative_to(products).as_posix() for path in products.rglob("*") if path.is_file()}
    assert {line.split("  ")[1] for line in lines} == every - {"SHA256SUMS"}
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((products / name).read_bytes()).hexdigest() == digest


def test_the_report_tells_stages_and_lineage(published: stages.Run) -> None:
    report = json.loads(published.files["report"].read_text())
    assert [stage["name"] for stage in report["stages"]] == [
        *("ingest", "quality control", "analyse", "score") * 2,
        "validate",
        "publish",
        "report",
    ]
    assert all(stage["seconds"] > 0 and stage["peak_mib"] > 50 and stage["rows"] > 0 for stage in report["stages"])
    assert report["revision"] == "r1"
    assert report["lineage"]["config_digest"] == published.config.digest()
    assert report["validation"]["hours"] == 42
    assert [row["method"] for row in report["withheld_stations"]] == ["log_kriging", "idw_k8_p1", "AQ-Net"] * 2
    assert all(row["mae_median"] > 0 for row in report["withheld_stations"])
    assert report["quality_control"]["missing"]["pm2p5"] > 0
    assert [(row["network"], row["verdict"]) for row in report["clocks"]] == [("cnemc", "right")]
    assert report["alarms"] == []
    checks = {check["name"]: check["passed"] for check in report["checks"]}
    assert False not in checks.values()
    assert [name for name, passed in checks.items() if passed is None] == [
        *("weights", "stations", "observations", "level", "places", "step of seam", "skill")
    ]
    inputs = json.loads(published.files["lineage"].read_text())["inputs"]
    assert inputs == published.inputs
    assert inputs


def test_a_zone_declared_8_hours_off_is_said_by_the_run_itself_and_stops_it(
    small_simulation: Simulation, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: object
) -> None:
    monkeypatch.setattr(harmonise, "to_cube", late(harmonise.to_cube, 8))
    with pytest.raises(ProductError, match=r"clock: expected .* run 8 h late"):
        run_stages(make_config(small_simulation, weights, tmp_path, end="2019-12-02"))
    held = tmp_path / output.HELD / "by-hand"
    (alarm,) = json.loads((held / output.REPORT).read_text())["alarms"]
    assert "network 'cnemc': its daily cycles" in alarm
    assert alarm in html.unescape((held / output.QUALITY_REPORT).read_text())
    assert alarm in caplog.text  # type: ignore[attr-defined]
    with pytest.raises(ProductError, match="nothing is published"):
        reader.open_cube(tmp_path / output.CUBE)
    assert reader.open_cube(tmp_path / output.CUBE, "held-by-hand")["revision"].max() == 1


def late(to_cube: Callable[..., xr.Dataset], hours: int) -> Callable[..., xr.Dataset]:
    """`to_cube` of a network whose zone is declared wrongly: all its values `hours` late."""

    def shifted(*given: object) -> xr.Dataset:
        return to_cube(*given).shift(time=hours).transpose("time", "station")

    return shifted


def test_two_short_runs_make_the_cube_of_one_long_run(
    published: stages.Run, small_simulation: Simulation, weights: Path, tmp_path: Path
) -> None:
    cut = "2019-12-01T06"
    run_stages(make_config(small_simulation, weights, tmp_path, end=cut))
    second = run_stages(make_config(small_simulation, weights, tmp_path, start=cut))
    pieces, whole = reader.open_cube(second.candidate.path), reader.open_cube(published.candidate.path)
    xr.testing.assert_identical(pieces.drop_attrs().load(), whole.drop_attrs().load())


def test_a_candidate_that_fails_validation_is_not_published(
    small_simulation: Simulation, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "HIGHEST", 1.0)
    with pytest.raises(ProductError, match="expected less than 1 ug m-3"):
        run_stages(make_config(small_simulation, weights, tmp_path, end="2019-12-01"))
    assert not (tmp_path / output.PRODUCTS).exists()
    with pytest.raises(ProductError, match="nothing is published"):
        reader.open_cube(tmp_path / output.CUBE)


# ---- the flow ----


def test_the_flow_publishes_and_leaves_a_report_as_artifact(
    prefect_harness: None, published: stages.Run, small_simulation: Simulation, weights: Path, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    from flows.reanalysis import reanalysis

    run = reanalysis(make_config(small_simulation, weights, tmp_path))
    with get_client(sync_client=True) as client:
        done = client.read_flow_run(UUID(run.run_id))
        mine = FlowRunFilter(id=FlowRunFilterId(any_=[done.id]))
        tasks = client.read_task_runs(flow_run_filter=mine)
        artifacts = client.request("POST", "/artifacts/filter", json={}).json()
    assert done.state is not None
    assert done.state.is_completed()
    assert sorted({task.task_key.split("-")[0].split(".")[-1] for task in tasks}) == [
        *("analyse", "ingest", "publish", "quality_control", "score", "validate"),
    ]
    (report,) = [found["data"] for found in artifacts if found["flow_run_id"] == run.run_id]
    assert "| ingest | 2019-11-30T12 to 2019-12-01T00 |" in report
    same = reader.open_cube(published.candidate.path).drop_attrs().load()
    xr.testing.assert_identical(reader.open_cube(run.candidate.path).drop_attrs().load(), same)


def test_a_users_error_is_raised_as_it_is_and_not_retried(
    prefect_harness: None, small_simulation: Simulation, weights: Path, tmp_path: Path
) -> None:
    from flows.reanalysis import reanalysis

    with pytest.raises(InputError, match="expected stations inside bbox"):
        reanalysis(make_config(small_simulation, weights, tmp_path, bbox=(0.0, 0.0, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OSError("disk"), True),
        (ConnectionError(), True),
        (InputError("bad"), False),
        (ConfigError("bad"), False),
        (ZeroDivisionError(), False),
    ],
)
def test_only_passing_trouble_is_tried_again(error: Exception, again: bool) -> None:
    from flows.reanalysis import passing

    state = SimpleNamespace(result=lambda raise_on_failure: error)
    assert passing(None, None, state) is again  # type: ignore[arg-type]
    assert not issubclass(AqnetError, OSError)


# ---- Prefect's environment ----


def test_flows_import_turns_telemetry_off_before_prefect() -> None:
    code = "import flows, os, sys; print(os.environ['DO_NOT_TRACK'], 'prefect' in sys.modules)"
    plain = {name: value for name, value in os.environ.items() if "PREFECT" not in name and name != "DO_NOT_TRACK"}
    found = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "False"]


def test_command_line_gets_a_home_of_its_own_unless_one_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_HOME", *environment.COMMAND_LINE):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that what is set below is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    environment.prepare_command_line()
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "aqnet" / "prefect")
    assert os.environ["PREFECT_LOGGING_LEVEL"] == "CRITICAL"
    monkeypatch.setenv("PREFECT_HOME", "/elsewhere")
    environment.prepare_command_line()
    assert os.environ["PREFECT_HOME"] == "/elsewhere"


def test_without_a_cache_folder_the_home_is_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    environment.prepare_command_line()
    assert Path(os.environ.pop("PREFECT_HOME")).parent == tmp_path
