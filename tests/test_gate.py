"""The release gate: each check by itself, and real runs on simulated networks, clean and spoiled.

`make test` runs one clean day and two defects; `make faults` every defect; `make gate` 20 networks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from test_write import GRID, NEW_YEAR, make_block, run

from benchmarks import gate as trials
from pipeline import output
from pipeline.contract import POLLUTANTS
from pipeline.cube import metadata, reader, repository, revisions, write
from pipeline.errors import ProductError
from pipeline.release import agreement, gate, hold, skill
from pipeline.release.skill import Skill

START = np.datetime64("2019-01-01T00", "h")
LAND = np.ones((2, 2), bool)
GOOD = Skill(30, 600, 5.0, 5.2, -0.04, 0.02, 0.6, 0.03)


def observed(hours: int = 24, stations: int = 20, moved: float = 0.0) -> xr.DataArray:
    """Valid PM2.5 of stations on a line."""
    places = {"lon": ("station", 119 + 0.1 * np.arange(stations) + moved), "lat": ("station", np.full(stations, 37.0))}
    names = [f"n:{k}" for k in range(stations)]
    values = np.random.default_rng(0).gamma(2, 30, (hours, stations)).astype("float32")
    return xr.DataArray(values, {"time": START + np.arange(hours), "station": names, **places}, ("time", "station"))


def findings(**change: object) -> gate.Findings:
    seen = {"time": START + np.arange(2), "stream": [0, 0], "pm2p5": np.full((2, 2, 2), 50.0)}
    steps = gate.Steps(LAND)
    steps.see(xr.Dataset({k: (("time", "y", "x")[: np.ndim(v)], v) for k, v in seen.items()}))
    given: dict[str, object] = {
        "broken": {"inputs": None, "metadata": None, "axes": None, "contract": None},
        "observed": [observed()],
        "alarms": [],
        "invalid": dict.fromkeys(POLLUTANTS, (480, 4)),
        "agreements": [agreement.Agreement(48, 20, 0, 0.9, 0.9, 1.0, 0.9)],
        "steps": steps,
        "skill": GOOD,
        "weights": "aa",
        "reason": None,
    }
    return gate.Findings(**(given | change))  # type: ignore[arg-type]


def last(**change: object) -> gate.Last:
    given = {"revision": "r1", "weights": "aa", "stations": gate.stations([observed()])}
    return gate.Last(**(given | {"observations": 20.0, "skill": GOOD} | change))  # type: ignore[arg-type]


def failures(found: gate.Findings, before: gate.Last) -> dict[str, str]:
    return {check.name: check.found for check in gate.failed(gate.judge(found, before))}


# ---- checks ----


def test_a_run_like_the_last_one_passes() -> None:
    assert failures(findings(), last()) == {}
    assert all(check.passed for check in gate.judge(findings(), last()) if check.name != "step of seam")


def test_a_first_run_is_judged_by_itself_alone() -> None:
    checks = gate.judge(findings(agreements=[]), gate.Last())
    assert gate.failed(checks) == []
    assert {check.name for check in checks if check.passed is None} == {
        *("weights", "stations", "observations", "level", "places", "step of seam", "skill")
    }


AGREES = agreement.Agreement(48, 20, 0, 0.9, 0.9, 1.0, 0.9)


@pytest.mark.parametrize(
    ("change", "before", "name", "text"),
    [
        ({"broken": {"contract": "variable 'pm2p5': found -1"}}, {}, "contract", "variable 'pm2p5': found -1"),
        ({"weights": "bb"}, {}, "weights", "weights bb after aa in r1, reason: none"),
        ({"observed": [observed()[:17], observed()[17:].where(False)]}, {}, "end of the input", "last 7 of 24 hours"),
        ({"observed": [observed(60).where(np.abs(np.arange(60) - 30)[:, None] > 12)]}, {}, "silence", "25 hours"),
        ({"observed": [observed(stations=14)]}, {}, "stations", "70% of 20 in r1, without n:14 for one"),
        ({}, {"observations": 40.0}, "observations", "20 (median) after 40 in r1"),
        ({"invalid": {"pm2p5": (480, 2), "co": (480, 240)}}, {}, "quality", "50.0% of co"),
        ({"alarms": ["network 'n' runs 8 h late"]}, {}, "clock", "network 'n' runs 8 h late"),
        ({"agreements": [agreement.Agreement(48, 20, 8, 0.9, 0.5, 1, 0.9)]}, {}, "clock", "run 8 h late beside"),
        ({"agreements": [AGREES, agreement.Agreement(48, 20, 0, 0.9, 0.9, 2, 0.9)]}, {}, "level", "a factor 2"),
        ({"agreements": [agreement.Agreement(48, 20, 0, 0.9, 0.9, 1, 0.1)]}, {}, "places", "in space 0.10"),
        ({"observed": [observed(moved=0.1)]}, {}, "places", "20 of 20 stations of r1 more than 2 km away"),
        ({"skill": Skill(30, 600, 5.0, 4.0, 0.25, 0.05, 0.6, 0.03)}, {}, "kriging", "at least 1.112; 30 stations"),
        ({"skill": Skill(30, 600, 5.0, 5.2, 0.0, 0.02, 0.1, 0.03)}, {}, "skill", "(at most 0.22) after 0.60 in r1"),
    ],
)
def test_a_failed_check_says_what_it_found(
    change: dict[str, object], before: dict[str, object], name: str, text: str
) -> None:
    found = failures(findings(**change), last(**before))
    assert list(found) == [name]
    assert text in found[name]


@pytest.mark.parametrize(
    ("change", "before"),
    [
        ({"weights": "bb", "reason": "retrained on 2020"}, {}),
        ({"observed": [observed()[:18], observed()[18:].where(False)]}, {}),
        ({"observed": [observed()[:3].where(False)]}, {}),
        ({"observed": [observed(stations=14)[:23]]}, {}),
        ({"observed": [observed(stations=15)]}, {"observations": 15.0}),
        ({"observed": [observed(moved=0.01)]}, {}),
        ({"skill": Skill(3, 60, 5.0, 4.0, 0.25, 0.05, 0.2, 0.1)}, {}),
        ({"skill": None}, {}),
        ({"agreements": [agreement.Agreement(48, 20, 8, 0.5, 0.45, 1, 0.9)]}, {}),
    ],
)
def test_what_few_stations_or_weather_explain_passes(change: dict[str, object], before: dict[str, object]) -> None:
    assert failures(findings(**change), last(**before)) == {}


def test_steps_are_of_the_hours_of_a_run_and_of_its_seams() -> None:
    def hours(first: int, *values: float, stream: int = 0) -> xr.Dataset:
        time = START + first + np.arange(len(values))
        fields = np.broadcast_to(np.array(values)[:, None, None], (len(values), 2, 2))
        return xr.Dataset(
            {"stream": ("time", np.full(len(values), stream)), "pm2p5": (("time", "y", "x"), fields)}, {"time": time}
        )

    steps = gate.Steps(LAND)
    steps.see(hours(-1, 9))
    assert len(list(steps.watch([hours(0, 19, 19), hours(2, 79)]))) == 2
    steps.see(hours(3, 39), seam=True)
    found = {check.name: (check.found, check.passed) for check in steps.checks()}
    assert found == {
        "step of mean": ("4.00 at 2019-01-01T02", False),
        "step of seam": ("2.00 at 2019-01-01T00", False),
        "step of cells": ("4.00 at 2019-01-01T02", True),
    }
    steps = gate.Steps(LAND)
    steps.see(hours(-1, 9))
    list(steps.watch([hours(0, 900, stream=2), hours(1, 9)]))
    assert [check.passed for check in steps.checks()] == [None, None, None]  # no step to a forecast, nor from one


# ---- metadata ----


def test_the_metadata_of_a_cube_are_whole_and_what_breaks_them_is_named(tmp_path: Path) -> None:
    attrs = {
        name: "x" for name in metadata.REQUIRED if name.endswith("digest") or name in ("code_version", "flow_run_id")
    }
    with write.begin(tmp_path / "cube", GRID, "2019-01-01", "2019-01-02", attrs) as candidate:
        write.write_block(candidate, make_block(NEW_YEAR))
        write.publish(candidate)
    cube = reader.open_cube(tmp_path / "cube")
    assert metadata.problems(cube) == []
    spoiled = cube.assign_attrs(time_coverage_end="2019-01-03T00:00:00Z", geospatial_lat_min=36.5, license="")
    spoiled["pm2p5"].attrs["units"] = "mg m-3"
    assert {problem.split(" is ")[0] for problem in metadata.problems(spoiled.drop_vars("lat_bnds"))} == {
        "global attribute 'license'",
        "global attribute 'time_coverage_end'",
        "global attribute 'geospatial_lat_min'",
        "variable 'pm2p5': attribute 'units'",
        "coordinate 'lat': its bounds 'lat_bnds' are missing",
    }


# ---- agreement with what is published ----


@pytest.mark.parametrize("lag", [0, 8, -5])
def test_agreement_finds_lag_level_and_pattern(tmp_path: Path, lag: int) -> None:
    run(tmp_path / "cube", NEW_YEAR, NEW_YEAR + 72)
    cube = reader.open_cube(tmp_path / "cube")
    rng = np.random.default_rng(5)
    rows, columns = (rng.integers(0, 9, 12) for _ in range(2))
    values = cube["pm2p5_p50"].values[:, rows, columns]
    time = cube["time"].values[12:60]
    seen = values[12 - lag : 60 - lag] * 1.5
    places = {"lon": ("station", GRID.x[columns] + 0.1), "lat": ("station", GRID.y[rows] - 0.1)}
    part = xr.DataArray(seen, {"time": time, **places}, ("time", "station"))
    group = write.repository.root(write.repository.open_existing(tmp_path / "cube"))
    found = agreement.compare(part, group, GRID)
    assert found is not None
    assert found.lag == lag
    assert found.fit == pytest.approx(1, abs=0.01)
    if lag == 0:
        assert found.level == pytest.approx(1.5, abs=0.03)
        assert found.pattern == pytest.approx(1, abs=0.02)
    else:
        assert abs(found.pattern) < 0.3
    assert agreement.compare(part, None, GRID) is None
    assert agreement.compare(part.assign_coords(time=time + np.timedelta64(900, "h")), group, GRID) is None


def test_places_are_found_in_their_cells_on_any_grid() -> None:
    lon, lat = GRID.lon_lat()
    row, column = agreement.cells(GRID, lon.ravel() + 0.12, lat.ravel() - 0.12)
    np.testing.assert_array_equal(row * GRID.shape[1] + column, np.arange(lon.size))
    assert (
        agreement.cells(GRID, np.array([118.87, 121.13, 119.0]), np.array([37.0, 37.0, 38.2]))[0].tolist() == [-1] * 3
    )
    dateline = trials_grid()
    assert agreement.cells(dateline, np.array([-179.9]), np.array([0.0]))[1].tolist() == [10]


def trials_grid() -> object:
    from pipeline.grid import Grid

    return Grid((179.0, -1.0, -179.0, 1.0), 0.11)


# ---- skill ----


def test_the_error_of_a_ratio_is_what_drawing_stations_again_makes_it() -> None:
    rng = np.random.default_rng(1)
    below = rng.gamma(4, 10, 40)
    above = below * rng.normal(1.1, 0.2, 40)
    found, error = skill.ratio(pd.Series(above), pd.Series(below))
    drawn = rng.integers(0, 40, (4000, 40))
    again = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    assert found == pytest.approx(above.sum() / below.sum())
    assert error == pytest.approx(again.std(), rel=0.1)


def test_small_networks_are_withheld_from_in_disjoint_parts() -> None:
    for count, sizes in ((600, [60]), (60, [6] * 5), (12, [1] * 6), (2, [1])):
        parts = skill._parts(np.arange(count), np.random.default_rng(0))
        assert [len(part) for part in parts] == sizes
        assert len(np.unique(np.concatenate(parts))) == sum(sizes)


# ---- real runs ----

SHARE = ("shuffled series", "unit x 2 in the new hours only")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> trials.Network:
    return trials.network(tmp_path_factory.mktemp("gate"), 1)


def test_a_clean_run_passes_the_gate(network: trials.Network) -> None:
    assert trials.clean(network) == trials.Verdict(1, "none", {}, True)
    first, second = revisions.history(network.folder / "trial" / "cube.icechunk")
    assert (first.reason, second.reason) == ("first publication, 48 hours", "24 hours appended")
    assert second.counts["appended"] == 24
    assert second.config["start"] == "2019-12-03T00:00:00Z"
    assert second.score("AQ-Net", "mae_median") is not None
    assert second.lineage["weights_digest"]


@pytest.mark.parametrize("defect", trials.DEFECTS if os.environ.get("AQNET_TEST_ALL_FAULTS") else SHARE)
def test_a_planted_defect_is_stopped_for_the_right_reason(network: trials.Network, defect: str) -> None:
    assert trials.spoiled(network, defect).right


@pytest.fixture(scope="module")
def stopped(network: trials.Network, weights: Path) -> Path:
    """An output folder in which the gate holds a run, for other weights without a reason; copy it before use."""
    with pytest.raises(ProductError, match=r"run trial-2019-12-03 is not published: weights: .*`aqnet history`"):
        network.judged(network.table, weights=weights)
    return (network.folder / "trial").rename(network.folder / "stopped")


def test_a_held_run_is_kept_to_be_looked_at_and_can_be_accepted(stopped: Path) -> None:
    out = shutil.copytree(stopped, stopped.parent / "accepted")
    cube, held = out / "cube.icechunk", out / output.HELD / "trial-2019-12-03"
    papers = {"run.json", "lineage.json", "quality-control.html", "report.html"}
    assert {path.name for path in held.iterdir()} == papers | {"2019-12.png"}
    assert reader.open_cube(cube).attrs["revision"] == "r1"
    files = hold.accept(out, cube, "trial-2019-12-03", "weights of the new year")
    assert reader.open_cube(cube).attrs["revision"] == "r2"
    assert reader.open_cube(cube).attrs["revision_reason"] == "weights of the new year"
    assert not (out / output.HELD).exists()
    with xr.open_dataset(files["netcdf 2019-12"]) as product:
        assert product.sizes["time"] == 72  # the whole month that the cube holds
    said = json.loads(files["report"].read_text())
    assert (said["revision"], said["accepted"]) == ("r2", "weights of the new year")
    lineage = json.loads(files["lineage"].read_text())
    assert lineage["flow_run_id"] == "trial-2019-12-03"
    page = (out / output.PRODUCTS / output.RUN_REPORT).read_text()
    assert '<dd id="revision"><strong>r2</strong> (accepted)</dd>' in page
    assert "UTC: weights of the new year</strong>" in page


# ---- kills ----

KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import icechunk
from pipeline import output
from pipeline.offer import staging
from pipeline.products import export
from pipeline.release import hold

def die_at(step, owner, name):
    kept = getattr(owner, name)
    def wrapper(*args, **kwargs):
        if step == f"before {name}":
            os.kill(os.getpid(), signal.SIGKILL)
        result = kept(*args, **kwargs)
        if step == f"after {name}":
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, wrapper)

def child(out, step):
    pid = os.fork()
    if pid == 0:
        die_at(step, icechunk.Session, "commit")
        for name in ("reset_branch", "create_tag", "delete_branch"):
            die_at(step, icechunk.Repository, name)
        die_at(step, export, "export_files")
        die_at(step, staging, "exchange")
        die_at(step, Path, "rename")  # the papers, out of sight
        hold.accept(out, out / output.CUBE, "trial-2019-12-03", "looked at")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for number, step in enumerate(eval(sys.argv[3])):
    out = Path(sys.argv[2]) / str(number)
    shutil.copytree(sys.argv[1], out)
    print(child(out, step), flush=True)
"""


def killed(stopped: Path, folder: Path, steps: list[str]) -> None:
    """Accept a copy of an output folder a step, and kill it there."""
    command = [sys.executable, "-c", KILLED, str(stopped), str(folder), repr(steps)]
    root = Path(__file__).resolve().parents[1]
    codes = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    assert codes == ["-9"] * len(steps)


#: Step of `aqnet accept` -> revision that readers then see.
STEPS = {
    "before commit": "r1",
    "after commit": "r1",
    "after reset_branch": "r2",
    "after create_tag": "r2",
    "after delete_branch": "r2",
    "after export_files": "r2",
    "before exchange": "r2",
    "after exchange": "r2",
    "after rename": "r2",
}
SOME = ("after commit", "after reset_branch", "after export_files", "after rename")


def digests(products: Path) -> dict[str, str]:
    """Checksums as the folder lists them, each compared with its file; nothing else lies there."""
    lines = [line.split("  ") for line in (products / output.SUMS).read_text().splitlines()]
    for digest, name in lines:
        assert hashlib.sha256((products / name).read_bytes()).hexdigest() == digest, name
    found = {str(path.relative_to(products)) for path in products.rglob("*") if path.is_file()}
    assert found == {name for _, name in lines} | {output.SUMS}
    return {name: digest for digest, name in lines}


def assert_accepted(out: Path) -> None:
    """The cube, the downloads and what is said of the run are those of the accepted revision."""
    cube, products = out / output.CUBE, out / output.PRODUCTS
    assert [(one.name, one.accepted) for one in revisions.history(cube)] == [("r1", None), ("r2", "looked at")]
    assert set(repository.open_existing(cube).list_branches()) == {"main"}
    (file,) = products.glob("*_interim_*_hourly_*.nc")
    assert f"{file}.nc".count("20191201-20191203") == 1
    assert file.name in digests(products)
    with xr.open_dataset(file) as product:
        assert (product.sizes["time"], product.attrs["revision"]) == (72, "r2")
    said = json.loads((products / output.REPORT).read_text())
    assert (said["run_id"], said["revision"], said["accepted"]) == ("trial-2019-12-03", "r2", "looked at")
    assert "(accepted)</dd>" in (products / output.RUN_REPORT).read_text()
    assert {path.name for path in out.iterdir() if not path.name.endswith(".lock")} == {output.CUBE, output.PRODUCTS}


def test_an_acceptance_that_was_killed_is_finished_by_another(stopped: Path, tmp_path: Path) -> None:
    steps = list(STEPS if os.environ.get("AQNET_TEST_ALL_FAULTS") else SOME)
    before = digests(stopped / output.PRODUCTS)
    killed(stopped, tmp_path, steps)
    for number, step in enumerate(steps):
        out = tmp_path / str(number)
        assert reader.open_cube(out / output.CUBE).attrs["revision"] == STEPS[step], step
        if step in ("after exchange", "after rename"):
            assert digests(out / output.PRODUCTS) != before, step
        else:
            assert digests(out / output.PRODUCTS) == before, step
        hold.accept(out, out / output.CUBE, "trial-2019-12-03", "looked at")
        assert_accepted(out)


def test_an_acceptance_that_was_killed_is_finished_by_the_next_run(
    network: trials.Network, stopped: Path, tmp_path: Path
) -> None:
    """The next run's revision is seen by then; the files that the acceptance owed are cut from it."""
    killed(stopped, tmp_path, ["after reset_branch"])
    out = (tmp_path / "0").rename(network.folder / "killed")
    network.run(network.table, trials.JUDGED, out.name, reason="the shipped weights again")
    assert reader.open_cube(out / output.CUBE).attrs["revision"] == "r3"
    assert not (out / output.HELD).exists()
    with xr.open_dataset(next((out / output.PRODUCTS).glob("*_hourly_*.nc"))) as product:
        assert (product.sizes["time"], product.attrs["revision"]) == (72, "r3")
    digests(out / output.PRODUCTS)
    again = hold.accept(out, out / output.CUBE, "trial-2019-12-03", "too late")  # its hours, of the newest revision
    with xr.open_dataset(again["netcdf 2019-12"]) as product:
        assert product.attrs["revision"] == "r3"
    assert json.loads((out / output.PRODUCTS / output.REPORT).read_text())["revision"] == "r3"
