"""The release gate: each check by itself, and real runs on simulated networks, clean and spoiled.

`make test` runs one clean day and two defects; `make faults` every defect; `make gate` 20 networks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from test_write import GRID, NEW_YEAR, make_block, run

from benchmarks import gate as trials
from pipeline import output
from pipeline.contract import POLLUTANTS
from pipeline.cube import metadata, revisions, write
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
    cube = write.open_cube(tmp_path / "cube")
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
    cube = write.open_cube(tmp_path / "cube")
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


def test_a_held_run_is_kept_to_be_looked_at_and_can_be_accepted(network: trials.Network, weights: Path) -> None:
    out = network.folder / "trial"
    with pytest.raises(ProductError, match=r"run trial-2019-12-03 is not published: weights: .*`aqnet history`"):
        network.judged(network.table, weights=weights)
    cube, held = out / "cube.icechunk", out / output.HELD / "trial-2019-12-03"
    papers = {"run.json", "lineage.json", "quality-control.html", "report.html"}
    assert {path.name for path in held.iterdir()} == papers | {"2019-12.png"}
    assert write.open_cube(cube).attrs["revision"] == "r1"
    files = hold.accept(out, cube, "trial-2019-12-03", "weights of the new year")
    assert write.open_cube(cube).attrs["revision"] == "r2"
    assert write.open_cube(cube).attrs["revision_reason"] == "weights of the new year"
    assert not (out / output.HELD).exists()
    with xr.open_dataset(files["netcdf 2019-12"]) as product:
        assert product.sizes["time"] == 72  # the whole month that the cube holds
    said = json.loads(files["report"].read_text())
    assert (said["revision"], said["accepted"]) == ("r2", "weights of the new year")
    lineage = json.loads(files["lineage"].read_text())
    assert lineage["flow_run_id"] == "trial-2019-12-03"
