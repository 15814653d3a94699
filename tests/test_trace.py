"""Published values are made again from what their traces list, and every file and line listed holds what is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyproj import Transformer

from benchmarks import trace as checks
from benchmarks.trace import Kind
from model import infer
from model.trace import take_apart
from model.windows import LEVELS
from pipeline import analyse, cli, output, stages
from pipeline.config import RunConfig
from pipeline.contract import HOUR
from pipeline.cube import reader
from pipeline.errors import ConfigError, ProductError
from pipeline.grid import Grid
from pipeline.pages import maps
from pipeline.store.ingest import ingest
from pipeline.tracing import picture as trace_picture
from pipeline.tracing import runs as trace_runs
from pipeline.tracing.cell import find_cell, read_published
from pipeline.tracing.text import as_dict, as_text, correction_share, steps
from pipeline.tracing.trace import ROUNDING, Trace, trace
from pipeline.twin.simulate import Simulation

PLACE = (111.6, 37.4)
DAY = np.datetime64("2019-12-01", "h")

#: Cell-hours of each kind, of one random hour; `python -m benchmarks.trace` draws a thousand.
EACH = 7


def blank(path: Path) -> Path:
    Image.new("L", (2, 2)).save(path, "PNG")
    return path


@pytest.fixture(scope="module", autouse=True)
def blank_maps() -> Iterator[None]:
    """The maps of the runs, which take most of them, are not looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("summary_figure", "draw"):
            patch.setattr(maps, name, lambda _, path, *__, **___: blank(path))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traced")


@pytest.fixture(scope="module")
def raw(small_simulation: Simulation) -> dict[str, Any]:
    return {"source": "cnemc", "input": small_simulation.archive, "stations": small_simulation.stations}


def make(out: Path, read: dict[str, Any], run_id: str, **more: Any) -> Path:
    """Run over a day in 2 by 2 degrees; return the cube."""
    fields = {"bbox": (110.5, 36.5, 112.5, 38.5), "resolution": 0.25, "start": "2019-12-01", "end": "2019-12-02"}
    stages.make(RunConfig(**fields | {"out": out} | read | more), run_id)
    return out / output.CUBE


@pytest.fixture(scope="module")
def cube(folder: Path, raw: dict[str, Any]) -> Path:
    """Three revisions: a day, the same day as final stream, and six hours of the next with an outlook."""
    make(folder / "one", raw, "first")
    make(folder / "one", raw, "second", stream="final")
    return make(folder / "one", raw, "third", start="2019-12-02", end="2019-12-02T06", outlook_hours=6)


@pytest.fixture(scope="module")
def projected(folder: Path, raw: dict[str, Any]) -> Path:
    return make(folder / "projected", raw, "metres", crs="EPSG:32649", resolution=25000, stream="final")


@pytest.fixture(scope="module")
def stored(folder: Path, small_simulation: Simulation) -> Path:
    ingest(folder / "store", "cnemc", small_simulation.archive, small_simulation.stations)
    return make(folder / "stored", {"source": "store", "input": folder / "store"}, "kept")


@pytest.fixture(scope="module")
def kinds(cube: Path, projected: Path, stored: Path, small_simulation: Simulation) -> dict[str, Kind]:
    archive = small_simulation.archive
    found = [
        Kind("interim", cube, "r1", 0, archive),
        Kind("final", cube, "r2", 1, archive),
        Kind("newest", cube, "r3", 0, archive),
        Kind("outlook", cube, "r3", 2, archive),
        Kind("projected", projected, "r1", 1, archive),
        Kind("store", stored, "r1", 0, archive),
    ]
    return {kind.name: kind for kind in found}


@pytest.fixture(scope="module")
def interim(cube: Path) -> Trace:
    return trace(cube, *PLACE, DAY + 14 * HOUR, "r1")


@pytest.mark.parametrize("name", ["interim", "final", "newest", "outlook", "projected", "store"])
def test_values_are_made_again_and_lines_hold_what_is_said(kinds: dict[str, Kind], name: str) -> None:
    found = checks.check(kinds[name], EACH, EACH, np.random.default_rng(5))
    assert found.cells == EACH
    assert found.off == 0
    assert found.worst <= 1.05
    assert found.sums < 1e-4
    assert found.wrong == []
    assert len(found.references) > 1000


def test_a_wrong_line_is_noticed(interim: Trace, small_simulation: Simulation) -> None:
    """The check itself can fail."""
    station, one = next(checks.cited(interim))
    assert checks.mistake(small_simulation.archive, station, one) is None
    for wrong in ({"line": one["line"] + 6}, {"pm2p5": one["pm2p5"] + 1}):
        assert checks.mistake(small_simulation.archive, station, one | wrong) is not None


# ---- what the numbers mean ----


def test_what_is_listed_adds_up_to_the_published_value(interim: Trace) -> None:
    """Weights times observations, corrections, shift and lift, all read from the JSON."""
    told = json.loads(json.dumps(as_dict(interim), allow_nan=False))
    used = [one for s in told["stations"] for one in s["observations"] if one["used"]]
    weight, z = np.array([(one["weight"], np.cbrt(one["pm2p5"])) for one in used]).T
    assert weight.sum() == pytest.approx(1, abs=1e-5)
    correction = sum(s["correction"] for s in told["stations"])
    total = (weight * z).sum() + correction + told["parts"]["z"]["head"] + told["parts"]["z"]["mean over median"]
    assert total**3 == pytest.approx(told["published"]["pm2p5"], rel=ROUNDING + 1e-4)
    assert sum(told["parts"]["ug_m3"].values()) == pytest.approx(told["parts"]["mean"])
    assert sum(s["share"] for s in told["stations"]) == pytest.approx(1, abs=1e-5)
    assert sum(s["attention"] for s in told["stations"]) == pytest.approx(1, abs=1e-5)


def test_a_stations_correction_is_its_kriging_weights_times_what_the_encoder_changes(interim: Trace) -> None:
    parts = interim.parts
    assert parts is not None
    assert parts.band_weight.sum(1) == pytest.approx(1, abs=1e-6)  # type: ignore[union-attr]
    assert (parts.band_weight * parts.bands).sum() == pytest.approx(parts.kriged, abs=1e-4)  # type: ignore[union-attr]
    name, z, _ = steps(interim)[1]
    assert (name, z) == ("encoder", pytest.approx(parts.correction.sum()))  # type: ignore[union-attr]
    assert correction_share(parts) == pytest.approx((z + parts.shift) / parts.median)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("mode", ["interim", "final"])
def test_what_is_not_listed_gives_nothing(interim: Trace, mode: str) -> None:
    """Other stations and other hours may hold anything, and the estimate stays."""
    record, at, rng = analyse.observations(interim.observed.cube), interim.hour - 72, np.random.default_rng(0)
    network, place = analyse.load().aqnet, interim.cell.place
    silent = record.values.copy()
    silent[0, :, ::3] = np.nan  # every third station reports no PM2.5, so that some are not listed
    quiet = replace(record, values=silent)
    parts = take_apart(network, quiet, place, at, mode)
    assert parts is not None
    assert set(parts.stations) == set(range(silent.shape[2])) - set(range(0, silent.shape[2], 3))
    before = next(iter(infer.day_blocks(network, quiet, place, LEVELS, at, at + 1, mode)))
    noise = rng.uniform(1, 500, silent.shape).astype(np.float32)
    outside = np.ones(silent.shape, bool)
    outside[:, parts.hours][:, :, parts.stations] = False
    outside[0, parts.hours] = False
    other = replace(record, values=np.where(outside, noise, silent))
    after = next(iter(infer.day_blocks(network, other, place, LEVELS, at, at + 1, mode)))
    np.testing.assert_allclose(after.quantiles, before.quantiles, rtol=1e-6)
    alone = replace(
        record,
        values=np.ascontiguousarray(silent[:, :, parts.stations]),
        relief=record.relief[parts.stations],  # type: ignore[index]
        **{name: getattr(record, name)[parts.stations] for name in ("lon", "lat", "elevation")},
    )
    apart = next(iter(infer.day_blocks(network, alone, place, LEVELS, at, at + 1, mode)))
    np.testing.assert_allclose(apart.quantiles, before.quantiles, rtol=2e-4)
    assert parts.mean == pytest.approx(before.mean[0, 0], rel=2e-4)


@pytest.mark.parametrize("mode", ["interim", "final"])
def test_the_response_is_what_happens_when_a_station_reports_more(interim: Trace, mode: str) -> None:
    record, at = analyse.observations(interim.observed.cube), interim.hour - 72
    network, place, more = analyse.load().aqnet, interim.cell.place, 0.5
    parts = take_apart(network, record, place, at, mode)
    assert parts is not None
    heaviest = int(np.abs(parts.weight).sum(1).argmax())
    values = record.values.copy()
    values[0, :, parts.stations[heaviest]] += more
    again = take_apart(network, replace(record, values=values), place, at, mode)
    assert again is not None
    assert (again.mean - parts.mean) / more == pytest.approx(parts.response[heaviest], rel=0.05, abs=2e-3)


# ---- which run, which files ----


def test_each_revision_names_the_run_that_made_the_hour(cube: Path) -> None:
    made = {
        (revision, hour): trace_runs.made_by(cube, revision, DAY + hour * HOUR, ahead)
        for revision, hour, ahead in (("r1", 3, False), ("r3", 3, False), (None, 26, False), (None, 32, True))
    }
    assert [one.run_id for one in made.values()] == ["first", "second", "third", "third"]
    assert [one.revision for one in made.values()] == ["r1", "r2", "r3", "r3"]
    assert [one.config["stream"] for one in made.values()] == ["interim", "final", "interim", "interim"]
    assert all(one.inputs for one in made.values())


def test_an_input_that_changed_is_named(raw: dict[str, Any], tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    for path in Path(raw["input"]).iterdir():
        shutil.unpack_archive(path, archive)
    cube = make(tmp_path / "out", raw | {"input": archive}, "before")
    assert trace(cube, *PLACE, DAY).changed == ()
    path = archive / "china_sites_20191201.csv"
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(text[:30]))
    found = trace(cube, *PLACE, DAY + 20 * HOUR)
    assert [text.partition(":")[0] for text in found.changed] == ["china_sites_20191201.csv"]
    assert not found.agrees("pm2p5")
    assert "CHANGED since" in as_text(found)
    (archive / "china_sites_20191130.csv").unlink()
    gone = trace(cube, *PLACE, DAY + 20 * HOUR)
    assert any(text.startswith("china_sites_20191130.csv: is not there any more") for text in gone.changed)


def test_weights_other_than_the_runs_are_named(cube: Path, weights: Path) -> None:
    found = trace(cube, *PLACE, DAY, overrides={"weights": weights})
    assert [text.partition(":")[0] for text in found.changed] == ["weights"]


def test_without_a_record_of_the_run_the_options_tell(
    cube: Path, raw: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_runs, "KEY", "as before there were records")
    assert trace(cube, *PLACE, DAY + 26 * HOUR).observed.known  # products/run.json is of this run
    with pytest.raises(ConfigError, match=r"configuration of run second \(revision r2\) was not kept; say --source"):
        trace(cube, *PLACE, DAY)
    found = trace(cube, *PLACE, DAY, overrides=raw)
    assert found.agrees("pm2p5")
    assert not found.observed.known
    assert "not known to be the same" in as_text(found)


def test_an_input_that_went_elsewhere_is_asked_for(cube: Path, raw: dict[str, Any], tmp_path: Path) -> None:
    made = trace_runs.made_by(cube, None, DAY, False)
    lost = replace(made, config=made.config | {"input": str(tmp_path / "gone")})
    with pytest.raises(ConfigError, match=r"--input: of run second, which made the hour: expected .*; say where"):
        trace_runs.config_of(lost, cube, {}, {})
    assert trace_runs.config_of(lost, cube, {"input": raw["input"]}, {}).input == raw["input"]


def test_relative_paths_are_those_of_where_the_run_was_started(tmp_path: Path, raw: dict[str, Any]) -> None:
    (tmp_path / "data").mkdir()
    there, cube = tmp_path / "data" / "table.csv", tmp_path / "deep" / "out" / "cube.icechunk"
    there.touch()
    cube.mkdir(parents=True)
    fields = {"start": "2019-12-01", "end": "2019-12-02", "bbox": [1, 2, 3, 4], "out": "deep/out"}
    made = trace_runs.Made("x", "r1", fields | {"source": "table", "input": "data/table.csv"}, {}, "", {}, "")
    assert trace_runs.config_of(made, cube, {}, {}).input == there


# ---- cells ----


def cube_on(grid: Grid) -> xr.Dataset:
    return xr.Dataset({"pm2p5": (("time", *grid.spatial), np.zeros((1, *grid.shape)))}, grid.coords().coords)


@given(lon=st.floats(170.0, 189.9), lat=st.floats(-40.0, -30.1))
def test_the_cell_holds_the_point_across_the_date_line(lon: float, lat: float) -> None:
    cell = find_cell(cube_on(Grid((170.0, -40.0, -170.0, -30.0), 0.5)), (lon + 180) % 360 - 180, lat, "cube")
    west, south = cell.ring.min(axis=0)
    east, north = cell.ring.max(axis=0)
    assert west - 1e-9 <= lon <= east + 1e-9
    assert south <= lat <= north
    assert (cell.lon, cell.lat) == pytest.approx(((west + east) / 2, (south + north) / 2))


def test_the_cell_of_a_projected_grid_is_the_one_whose_square_holds_the_point() -> None:
    grid = Grid((8.0, 46.0, 11.0, 49.0), 30000.0, "EPSG:3035")
    dataset, centres = cube_on(grid), np.stack(grid.lon_lat(), axis=-1)
    for lon, lat in np.random.default_rng(0).uniform((8.2, 46.2), (10.8, 48.8), (6, 2)):
        cell = find_cell(dataset, lon, lat, "cube")
        x, y = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True).transform(lon, lat)
        assert abs(grid.x[cell.column] - x) <= 15000
        assert abs(grid.y[cell.row] - y) <= 15000
        assert (cell.lon, cell.lat) == pytest.approx(tuple(centres[cell.row, cell.column]))


def test_a_place_or_hour_without_a_value_says_why(cube: Path) -> None:
    opened = reader.open_cube(cube)
    with pytest.raises(ProductError, match=r"expected a point inside the grid \(lon 110.375 to 112.625, lat 36.375"):
        find_cell(opened, 20.0, 37.0, cube)
    cell = find_cell(opened, *PLACE, cube)
    with pytest.raises(ProductError, match=r"expected an hour of the cube \(2019-12-01T00 to .*found 2018-01-01T00"):
        read_published(opened, cell, np.datetime64("2018-01-01T00", "h"), cube)
    with pytest.raises(ProductError, match=r"expected an hour that a run produced \(.*2019-12-02T20 never was"):
        read_published(opened, cell, np.datetime64("2019-12-02T20", "h"), cube)
    with pytest.raises(ProductError, match="is at sea and has no value"):
        read_published(opened.assign(quality_flag=opened["quality_flag"] * 0 + 1), cell, DAY, cube)


# ---- text, JSON, picture ----


def test_the_command_prints_text_or_json_and_draws(
    cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--cube", str(cube), "--lon", str(PLACE[0]), "--lat", str(PLACE[1])]
    hour = ["--time", "2019-12-01T14", "--revision", "r1"]
    assert cli.run_command(["trace", *where, *hour, "--picture", str(tmp_path / "trace.png"), "--shown", "3"]) == 0
    text = capsys.readouterr().out
    assert "within rounding" in text
    assert "NOT EXPLAINED" not in text
    assert "china_sites_201912.zip!china_sites_20191201.csv:" in text
    assert text.count("cnemc:") >= 3
    assert (tmp_path / "trace.png").stat().st_size > 50_000
    assert cli.run_command(["trace", *where, "--time", "2019-12-02T09", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["stream"], told["issue_time"]) == ("outlook", "2019-12-02T06:00:00Z")
    assert told["agreement"]["pm2p5"]["within_rounding"]
    assert sum(station["weight"] for station in told["stations"]) == pytest.approx(1, abs=1e-5)


def test_an_hour_without_an_estimate_says_why(interim: Trace, tmp_path: Path) -> None:
    nothing = dict.fromkeys(interim.recomputed, float("nan"))
    empty = replace(
        interim, published=replace(interim.published, values=nothing), recomputed=nothing, parts=None, distance=np.nan
    )
    assert "no estimate\n" in as_text(empty)
    assert "None of the 48 nearest stations has a valid PM2.5 observation" in as_text(empty)
    told = json.loads(json.dumps(as_dict(empty), allow_nan=False))
    assert told["published"]["pm2p5"] is None
    assert told["agreement"]["pm2p5"]["within_rounding"]
    assert trace_picture.draw(empty, tmp_path / "empty.png").exists()


def test_a_forecast_is_called_one_and_drawn(cube: Path, tmp_path: Path) -> None:
    found = trace(cube, *PLACE, DAY + 33 * HOUR)
    assert "A FORECAST, issued 2019-12-02T06" in as_text(found)
    assert trace_picture.draw(found, tmp_path / "ahead.png").stat().st_size > 50_000


def test_a_value_that_rounding_does_not_explain_is_an_error(
    cube: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.tracing.trace.ROUNDING", 0.0)
    monkeypatch.setattr("pipeline.tracing.trace._SUMS", 0.0)
    where = ["--cube", str(cube), "--lon", str(PLACE[0]), "--lat", str(PLACE[1])]
    assert cli.run_command(["trace", *where, "--time", "2019-12-01T14"]) == 1
    printed = capsys.readouterr()
    assert "NOT EXPLAINED BY ROUNDING" in printed.out
    assert "expected the published value within rounding" in printed.err
