"""Outlook hours in the cube: a forecast from what came before the issue time, replaced by analyses as they are made."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image
from test_flow import make_config
from test_flow import run_stages as run_without
from test_outlook import network, observed, points
from test_write import GRID, NEW_YEAR, make_block

from model import checkpoint, outlook_infer
from model.outlook_inputs import HISTORY, HORIZON
from pipeline import analyse, config, harmonise, output, qc, sources, stages
from pipeline.config import RunConfig
from pipeline.contract import FIELDS, QUALITY_BITS, STREAMS, check_cube
from pipeline.cube import reader, write
from pipeline.errors import ConfigError, ProductError
from pipeline.pages import maps
from pipeline.products import downloads, export, outlook_fields
from pipeline.twin.simulate import Simulation

HOUR = np.timedelta64(1, "h")
ISSUE = np.datetime64("2019-12-01T18", "h")
HOURS = 40


@pytest.fixture(scope="module")
def outlook_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny outlook network away from its quiet start."""
    path = tmp_path_factory.mktemp("outlook") / "tiny.safetensors"
    checkpoint.save(network(noise=0.02), path, {"seed": 0})
    return path


@pytest.fixture(scope="module")
def table(small_simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated observations as a StationTable, 26 November to 3 December."""
    period = np.datetime64("2019-11-26", "h"), np.datetime64("2019-12-04", "h")
    parts = sources.read("cnemc", small_simulation.archive, small_simulation.stations, *period, bbox=None)
    path = tmp_path_factory.mktemp("table") / "observed.parquet"
    pd.concat(part.astype({"station": str}) for part in parts).drop(columns="source_file").to_parquet(path)
    return path


@pytest.fixture(autouse=True)
def blank_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of a small run; `published` draws its own, which are looked at."""

    def blank(_: object, path: Path, *__: object, **___: object) -> Path:
        Image.new("L", (2, 2)).save(path, "PNG")
        return path

    monkeypatch.setattr(maps, "summary_figure", blank)
    monkeypatch.setattr(maps, "draw", blank)


@pytest.fixture
def settings(small_simulation: Simulation, weights: Path, outlook_weights: Path, table: Path) -> dict[str, object]:
    """What `settings_of` needs but the output folder."""
    return {"simulation": small_simulation, "weights": weights, "outlook_weights": outlook_weights, "input": table}


def ahead(settings: dict[str, object], out: Path, **change: object) -> RunConfig:
    """A run of 18 hours with an outlook of 40."""
    fields: dict[str, object] = {"start": "2019-12-01", "end": str(ISSUE), "resolution": 0.5, "source": "table"}
    return make_config(**settings, out=out, **{"outlook_hours": HOURS} | fields | change)  # type: ignore[arg-type]


def run_stages(settings: RunConfig) -> stages.Run:
    """What the flow does, without Prefect and without scores."""
    with stages.begin(settings, "by-hand") as run:
        for month in settings.months():
            stages.analyse_month(run, stages.quality_control(run, stages.ingest(run, month), month), month)
        if settings.outlook_hours:
            stages.outlook(run)
        stages.validate(run)
        stages.publish(run)
    return run


def open_of(run: stages.Run) -> xr.Dataset:
    return reader.open_cube(run.candidate.path).load()


def streams(cube: xr.Dataset) -> list[tuple[int, int]]:
    """Runs of hours of one stream: (stream, hours)."""
    stream = cube["stream"].values
    parts = np.split(stream, np.flatnonzero(np.diff(stream)) + 1)
    return [(int(part[0]), len(part)) for part in parts]


@pytest.fixture(scope="module")
def published(
    small_simulation: Simulation,
    weights: Path,
    outlook_weights: Path,
    table: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> stages.Run:
    given = {"simulation": small_simulation, "weights": weights, "outlook_weights": outlook_weights, "input": table}
    return run_stages(ahead(given, tmp_path_factory.mktemp("ahead")))


# ---- the forecast ----


def test_a_shorter_horizon_is_the_beginning_of_a_longer_one() -> None:
    net, o, places = network(), observed(), points()

    def made(horizon: int) -> np.ndarray:
        blocks = outlook_infer.outlook_blocks(net, o, places, (0.5,), 410, horizon)
        return np.concatenate([block.quantiles[0] for block in blocks])

    assert len(made(30)) == 30
    np.testing.assert_array_equal(made(30), made(HORIZON)[:30])
    for horizon in (0, HORIZON + 1):
        with pytest.raises(ValueError, match=f"horizon: expected 1 to 168 hours; found {horizon}"):
            made(horizon)


def test_a_configuration_asks_for_no_more_than_the_network_forecasts() -> None:
    assert config.OUTLOOK_HOURS == HORIZON


def test_hours_after_the_run_are_an_outlook(published: stages.Run) -> None:
    cube = check_cube(open_of(published))
    assert streams(cube) == [(0, 18), (STREAMS["outlook"], HOURS), (-1, 14)]
    outlook, land = export.subset(cube, "outlook"), published.grid.land
    np.testing.assert_array_equal(outlook["time"].values.astype("M8[h]"), ISSUE + np.arange(HOURS) * HOUR)
    for spec in FIELDS:
        if spec.dtype == "float32":
            assert np.isfinite(outlook[spec.name].values[:, land]).all()
            assert np.isnan(outlook[spec.name].values[:, ~land]).all()
    assert (outlook["quality_flag"].values[:, ~land] == QUALITY_BITS["sea"]).all()
    assert (outlook["quality_flag"].values[:, land] == 0).all()
    assert (outlook["observation_count"] == 40).all()
    assert (outlook["revision"] == 1).all()
    assert (outlook["pm2p5"].values[0, land] != outlook["pm2p5"].values[24, land]).any()


def test_outlook_hours_hold_what_the_network_says_of_the_336_hours_before(published: stages.Run) -> None:
    first = ISSUE - (HISTORY + qc.LOOKBACK_HOURS) * HOUR
    settings, around = published.config, published.grid.surroundings(analyse.EXTRAPOLATED_KM)
    tables = sources.read("table", settings.input, None, first, ISSUE, published.grid.bbox, "error", around)
    flagged = qc.flag(harmonise.to_cube(tables, first, ISSUE))
    seen, land = analyse.observations(flagged), published.grid.land
    places = analyse.Points(*(axis[land.ravel()] for axis in published.grid.points()))
    net = checkpoint.load_outlook(settings.outlook_weights)
    blocks = list(outlook_infer.outlook_blocks(net, seen, places, (0.05, 0.5, 0.95), len(seen.hours), HOURS))
    outlook = export.subset(open_of(published), "outlook")
    for name, expected in (
        ("pm2p5", np.concatenate([block.mean for block in blocks])),
        ("pm2p5_p05", np.concatenate([block.quantiles[0] for block in blocks])),
        ("pm2p5_p95", np.concatenate([block.quantiles[2] for block in blocks])),
        ("nearest_observation_distance", np.concatenate([block.distance for block in blocks])),
    ):
        np.testing.assert_allclose(outlook[name].values[:, land], expected, rtol=2.0**-9)


@pytest.mark.parametrize("stream", ["interim", "final"])
def test_nothing_after_the_issue_time_is_read(
    settings: dict[str, object], tmp_path: Path, stream: str, published: stages.Run
) -> None:
    """Later values and coordinates differ, a station opens later: the outlook is the same, value for value."""
    found = pd.read_parquet(settings["input"])  # type: ignore[arg-type]
    later = found["time"] >= ISSUE
    found.loc[later, "pm2p5"] = 900.0
    found.loc[later, "lon"] += 0.003
    opened = found[later & (found["station"] == found["station"].iloc[0])].assign(station="cnemc:new")
    opened[["lon", "lat"]] += 0.05
    changed = tmp_path / "changed.parquet"
    pd.concat([found, opened]).to_parquet(changed)
    before = export.subset(open_of(published), "outlook")
    run = run_stages(ahead(settings | {"input": changed}, tmp_path / "out", stream=stream))
    after = export.subset(open_of(run), "outlook")
    xr.testing.assert_equal(after, before)
    if stream == "final":  # the analysis does read later hours, so the change is one that shows
        assert not export.subset(open_of(run), "final")["pm2p5"].equals(export.subset(open_of(published))["pm2p5"][:18])
    found.loc[found["time"] == ISSUE - HOUR, "pm2p5"] *= 1.5
    found.to_parquet(changed)
    moved = run_stages(ahead(settings | {"input": changed}, tmp_path / "moved", stream=stream))
    assert not export.subset(open_of(moved), "outlook")["pm2p5"].equals(before["pm2p5"])


def test_cube_and_lineage_name_weights_and_issue_time(published: stages.Run, outlook_weights: Path) -> None:
    cube = open_of(published)
    lineage = json.loads(published.files["lineage"].read_text())
    for attrs in (cube.attrs, lineage):
        assert attrs["outlook_issue_time"] == "2019-12-01T18:00:00Z"
        assert attrs["outlook_weights"] == "tiny.safetensors"
        assert attrs["outlook_weights_digest"] == checkpoint.digest(outlook_weights)
        assert attrs["weights_digest"] == published.network.digest
    assert "hours 2019-12-01T00 to 2019-12-01T18, outlook to 2019-12-03T10, revision r1" in cube.attrs["history"]
    assert cube.attrs["time_coverage_end"] == "2019-12-03T10:00:00Z"
    report = json.loads(published.files["report"].read_text())
    assert report["validation"]["hours"] == 18 + HOURS
    (stage,) = [stage for stage in report["stages"] if stage["name"] == "outlook"]
    assert (stage["rows"], stage["unit"]) == (HOURS * 49, "cell hours")


@pytest.mark.parametrize(("hours", "days_before"), [(0, 2), (1, 14)])
def test_files_of_the_whole_history_are_digested(
    settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int, days_before: int
) -> None:
    asked: list[np.datetime64] = []
    monkeypatch.setattr(sources, "input_digests", lambda *given: asked.extend(given[2:4]) or {})
    stages._digests(ahead(settings, tmp_path, start="2019-12-01T00", end="2019-12-01T01", outlook_hours=hours))
    end = np.datetime64("2019-12-01T00", "h") + hours * HOUR
    assert asked == [end - (24 * days_before + qc.LOOKBACK_HOURS) * HOUR, np.datetime64("2019-12-01T01", "h")]


def test_weights_of_another_network_are_refused(settings: dict[str, object], weights: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=rf"{weights}: expected"),
        stages.begin(ahead(settings | {"outlook_weights": weights}, tmp_path), "refused"),
    ):
        pass
    assert not (tmp_path / output.CUBE).exists()


def test_the_shipped_weights_are_the_default() -> None:
    assert analyse.load_outlook().name == "outlook-seed0.safetensors"
    assert analyse.load_outlook().digest == checkpoint.digest(checkpoint.DEFAULT_OUTLOOK)


# ---- later runs ----


def test_a_later_run_replaces_outlook_hours(settings: dict[str, object], published: stages.Run, tmp_path: Path) -> None:
    run_stages(ahead(settings, tmp_path))
    second = run_stages(ahead(settings, tmp_path, start=str(ISSUE), end="2019-12-02T06", outlook_hours=20))
    cube = open_of(second)
    assert streams(cube) == [(0, 30), (2, 20), (-1, 22)]  # the last 8 hours of the first outlook are taken back
    assert cube.attrs["outlook_issue_time"] == "2019-12-02T06:00:00Z"
    assert cube["revision"].values.tolist() == [1] * 18 + [2] * 40 + [0] * 14
    straight = run_stages(ahead(settings, tmp_path / "straight", end="2019-12-02T06", outlook_hours=20))
    found, wanted = (one.drop_vars("revision") for one in (cube, open_of(straight)))
    xr.testing.assert_allclose(found, wanted, rtol=2**-8)  # at most the last of the bits that are kept
    third = run_stages(ahead(settings, tmp_path, start="2019-12-02T06", end="2019-12-03T02", outlook_hours=0))
    cube = open_of(third)
    assert streams(cube) == [(0, 50), (-1, 22)]
    assert outlook_fields.without(cube.attrs) == cube.attrs  # nothing is left to be described
    xr.testing.assert_equal(reader.open_cube(second.candidate.path, "r1").load(), open_of(published))


def test_a_run_over_earlier_hours_leaves_what_was_analysed_since(
    settings: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = run_stages(ahead(settings, tmp_path, end="2019-12-02T06"))
    before = open_of(late)
    again = run_stages(ahead(settings, tmp_path, end="2019-12-01T06", seed=1))
    assert "no outlook: the cube holds analysed hours after 2019-12-01T06" in caplog.text
    assert again.revision is None
    xr.testing.assert_identical(open_of(again), before)
    assert "outlook" not in {stage.name for stage in again.stages}
    assert "map outlook" not in again.files
    assert outlook_fields.without(again.lineage) == again.lineage


def test_an_outlook_written_twice_is_the_same(settings: dict[str, object], tmp_path: Path) -> None:
    """A stage that failed on its way is tried again from its beginning."""
    run_stages(ahead(settings, tmp_path))
    given = ahead(settings, tmp_path, end="2019-12-01T20", outlook_hours=5)
    with stages.begin(given, "twice") as run:
        (month,) = given.months()
        stages.analyse_month(run, stages.quality_control(run, stages.ingest(run, month), month), month)
        stages.outlook(run)
        once = run.candidate.open().load()
        stages.outlook(run)
        xr.testing.assert_equal(run.candidate.open().load(), once)
    assert once["revision"].values[:60].tolist() == [1] * 18 + [2] * 40 + [0] * 2


def write_run(path: Path, first: int, issue: int, outlook_hours: int = 0) -> None:
    """Analysed hours [first, issue), then an outlook, as a run writes them."""
    hours = (np.datetime64(hour, "h") for hour in (first, issue))
    with write.begin(path, GRID, *hours, {}, outlook_hours) as candidate:
        for stream, start, end in (("interim", first, issue), ("outlook", issue, candidate.hours[1])):
            for cut in range(start, end, 1):
                block = make_block(cut, 1, seed=issue)
                block["stream"][:] = STREAMS[stream]
                write.write_block(candidate, block)
        if candidate.hours[1] > issue:
            said = outlook_fields.attrs(np.datetime64(issue, "h"), "w", "d")
            write.describe_outlook(candidate, said)
        write.publish(candidate)


def test_hours_of_an_earlier_outlook_before_and_after_a_run_are_taken_back(tmp_path: Path) -> None:
    write_run(tmp_path / "cube", NEW_YEAR, NEW_YEAR + 10, 20)
    write_run(tmp_path / "cube", NEW_YEAR + 14, NEW_YEAR + 16, 4)
    cube = reader.open_cube(tmp_path / "cube").load()
    assert streams(cube) == [(0, 10), (-1, 4), (0, 2), (2, 4), (-1, 28)]
    assert cube["revision"].values.tolist() == [1] * 10 + [2] * 20 + [0] * 18
    gone = cube.isel(time=cube["stream"].values < 0)
    assert gone["pm2p5"].isnull().all()
    assert (gone["quality_flag"] == 255).all()
    assert (gone["observation_count"] == -1).all()
    assert np.isfinite(cube["pm2p5"].values[14:20][:, GRID.land]).all()


def test_without_an_outlook_of_its_own_a_run_leaves_the_rest_of_an_earlier_one(tmp_path: Path) -> None:
    write_run(tmp_path / "cube", NEW_YEAR, NEW_YEAR + 10, 20)
    write_run(tmp_path / "cube", NEW_YEAR + 10, NEW_YEAR + 16)
    cube = reader.open_cube(tmp_path / "cube").load()
    assert streams(cube) == [(0, 16), (2, 14), (-1, 18)]
    assert cube.attrs["outlook_issue_time"] == "2019-01-01T10:00:00Z"


# ---- downloads ----


def test_netcdf_of_an_outlook(published: stages.Run) -> None:
    path = published.files["outlook 2019-12"]
    assert path.name == "pm25_test_aqnet_outlook_v0.1.0_hourly_20191201-20191203.nc"
    cube = export.subset(open_of(published), "outlook")
    with xr.open_dataset(path) as found:
        assert found["forecast_reference_time"].values == np.datetime64("2019-12-01T18", "ns")
        assert "forecast_reference_time" in found["pm2p5"].coords
        for spec in FIELDS:
            np.testing.assert_array_equal(found[spec.name], cube[spec.name])
        assert found.attrs["title"].startswith("Outlook issued 2019-12-01T18 UTC: ")
        assert found.attrs["summary"].startswith("Forecast, not analysis. ")
        assert found.attrs["outlook_weights_digest"] == cube.attrs["outlook_weights_digest"]
        assert found.attrs["time_coverage_start"] == "2019-12-01T18:00:00Z"
    with netCDF4.Dataset(path) as file:
        meanings = dict(zip(file["stream"].flag_meanings.split(), file["stream"].flag_values, strict=True))
        assert (file["stream"][:] == meanings["outlook"]).all()
        assert file["pm2p5"].coordinates == "height forecast_reference_time"
        assert file["forecast_reference_time"].standard_name == "forecast_reference_time"
        assert "_FillValue" not in file["forecast_reference_time"].ncattrs()


def test_the_file_of_analysed_hours_says_nothing_of_an_outlook(
    published: stages.Run, settings: dict[str, object], tmp_path: Path
) -> None:
    without = run_stages(ahead(settings, tmp_path, outlook_hours=0))
    with (
        xr.open_dataset(published.files["netcdf 2019-12"]) as one,
        xr.open_dataset(without.files["netcdf 2019-12"]) as other,
    ):
        assert outlook_fields.without(one.attrs) == one.attrs
        assert one.attrs["tracking_id"] == other.attrs["tracking_id"]
        assert one.attrs.keys() == other.attrs.keys()
        xr.testing.assert_equal(one, other)
        assert one.sizes["time"] == 18


def test_a_run_without_an_outlook_is_as_before(
    small_simulation: Simulation, weights: Path, table: Path, tmp_path: Path
) -> None:
    given = {"source": "table", "input": table, "start": "2019-12-01", "end": "2019-12-01T06", "resolution": 0.5}
    run = run_without(make_config(small_simulation, weights, tmp_path, **given))
    cube = open_of(run)
    assert streams(cube) == [(0, 6), (-1, 18)]
    assert not [name for name in {**cube.attrs, **run.lineage, **cube.variables} if "outlook" in name]
    assert not list((tmp_path / output.PRODUCTS).glob("*outlook*"))
    assert [stage.name for stage in run.stages] == [
        *("ingest", "quality control", "analyse", "score", "validate", "publish", "report"),
    ]


def test_an_outlook_over_the_end_of_a_month_on_a_projected_grid(settings: dict[str, object], tmp_path: Path) -> None:
    change = {"start": "2019-11-30T12", "end": "2019-11-30T15", "outlook_hours": 12}
    run = run_stages(ahead(settings, tmp_path, **change, crs="EPSG:32649", resolution=60_000))
    names = {label: path.name for label, path in run.files.items() if "outlook" in label}
    stem = "pm25_test_aqnet_outlook_v0.1.0_hourly_"
    assert names == {
        "outlook 2019-11": f"{stem}20191130-20191130.nc",
        "outlook 2019-12": f"{stem}20191201-20191201.nc",
        "map outlook": f"{stem}20191130-20191201.png",
    }
    with netCDF4.Dataset(run.files["outlook 2019-12"]) as file:
        assert file["pm2p5"].coordinates == "lat lon height forecast_reference_time"
        assert file["forecast_reference_time"][...] == file["time"][0] - 9


def test_the_map_says_that_it_is_a_forecast(
    settings: dict[str, object], published: stages.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert published.files["map outlook"].read_bytes().startswith(b"\x89PNG")
    said: dict[str, object] = {}
    monkeypatch.setattr(maps, "draw", lambda field, path, **words: said.update(words, attrs=field.attrs))
    downloads._draw_outlook(
        export.subset(open_of(published), "outlook").assign_attrs(title="SIMULATED"), tmp_path / "x.png"
    )
    assert maps.simulated(said["attrs"])  # type: ignore[arg-type]
    assert said["title"] == "PM2.5 outlook issued 2019-12-01T18 UTC: mean of the hours to 2019-12-03T10"
    assert "tiny.safetensors" in str(said["provenance"])


def test_a_plain_zarr_holds_analysed_and_outlook_hours(published: stages.Run, tmp_path: Path) -> None:
    plain = xr.open_zarr(export.export_zarr(open_of(published), tmp_path / "plain.zarr")).load()
    assert streams(plain) == [(0, 18), (2, HOURS)]
    assert plain.attrs["outlook_issue_time"] == "2019-12-01T18:00:00Z"
    assert plain.attrs["title"] == open_of(published).attrs["title"]


@pytest.mark.parametrize("stream", ["interim", "outlook"])
def test_the_order_in_which_zarr_lists_variables_is_not_seen_in_a_file(
    published: stages.Run, tmp_path: Path, stream: str
) -> None:
    cube = open_of(published)
    names = [name for name in cube.variables if name in cube.coords and name != "time"]
    turned = cube.drop_vars(names).assign_coords({name: cube.coords[name].variable for name in reversed(names)})
    assert [name for name in turned.variables if name in names] != names
    files = [
        export.export_netcdf(some, tmp_path / str(n), "test", stream, "0.1.0") for n, some in enumerate((cube, turned))
    ]
    assert files[0][0].read_bytes() == files[1][0].read_bytes()


def test_outlook_hours_without_an_issue_time_are_not_exported(published: stages.Run, tmp_path: Path) -> None:
    cube = open_of(published).drop_attrs()
    with pytest.raises(ProductError, match="expected attribute 'outlook_issue_time' beside hours of stream 2"):
        export.export_netcdf(cube, tmp_path, "test", "outlook", "0.1.0")
    assert not list(tmp_path.iterdir())


# ---- the flow ----


def test_the_flow_makes_the_outlook(
    prefect_harness: None, settings: dict[str, object], published: stages.Run, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    from flows.reanalysis import reanalysis

    run = reanalysis(ahead(settings, tmp_path))
    with get_client(sync_client=True) as client:
        mine = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run.run_id)]))
        tasks = [task.name.split("-")[0] for task in client.read_task_runs(flow_run_filter=mine)]
    assert sorted(tasks) == ["analyse", "ingest", "outlook", "publish", "quality_control", "score", "validate"]
    xr.testing.assert_equal(open_of(run), open_of(published))
