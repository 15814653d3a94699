"""Files of a month are of all that the cube holds of it, whichever runs made it, and nothing older lies beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipeline import stages
from pipeline.config import RunConfig
from pipeline.products import downloads
from pipeline.twin.simulate import Simulation


@pytest.fixture(scope="module")
def made(small_simulation: Simulation, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> list[set[str]]:
    """NetCDF files after each of four runs: hours of a day, the rest, the next day, and the first one final."""
    out, found = tmp_path_factory.mktemp("downloads"), []
    for start, end, stream in (
        ("2019-12-01T00", "2019-12-01T06", "interim"),
        ("2019-12-01T06", "2019-12-02T00", "interim"),
        ("2019-12-02T00", "2019-12-02T03", "interim"),
        ("2019-12-01T00", "2019-12-02T00", "final"),
    ):
        config = RunConfig(
            input=small_simulation.archive,
            stations=small_simulation.stations,
            start=start,
            end=end,
            stream=stream,
            bbox=small_simulation.bbox,
            resolution=0.5,
            weights=weights,
            out=out,
            domain="test",
        )
        with stages.begin(config, f"{stream}-{start[-5:]}") as run:
            (month,) = config.months()
            flagged = stages.quality_control(run, stages.ingest(run, month), month)
            stages.analyse_month(run, flagged, month)
            stages.score_month(run, flagged, month)
            stages.validate(run)
            stages.publish(run)
        found.append({path.name for path in (out / downloads.PRODUCTS).glob("*.nc")})
    with xr.open_dataset(out / downloads.PRODUCTS / name("interim", "hourly", "20191202-20191202")) as left:
        found.append({str(hour) for hour in left["time"].values.astype("M8[h]")})
    return found


def name(stream: str, frequency: str, days: str) -> str:
    return f"pm25_test_aqnet_{stream}_v0.1.0_{frequency}_{days}.nc"


def test_a_months_file_grows_with_its_runs(made: list[set[str]]) -> None:
    first = name("interim", "hourly", "20191201-20191201")
    assert made[0] == {first}
    assert made[1] == {first, name("interim", "daily", "20191201-20191201")}
    assert made[2] == {name("interim", "hourly", "20191201-20191202"), name("interim", "daily", "20191201-20191201")}


def test_hours_that_became_final_leave_the_interim_file(made: list[set[str]]) -> None:
    assert made[3] == {
        name("interim", "hourly", "20191202-20191202"),
        name("final", "hourly", "20191201-20191201"),
        name("final", "daily", "20191201-20191201"),
    }
    assert made[4] == {f"2019-12-02T0{hour}" for hour in range(3)}


def test_a_month_is_whole_when_every_hour_is_there() -> None:
    month, hours = np.datetime64("2019-02", "M"), 28 * 24
    cube = xr.Dataset({"stream": ("time", np.ones(hours, np.int8))})
    assert downloads._whole(cube, month, "final")
    assert not downloads._whole(cube, month, "interim")
    assert not downloads._whole(cube.isel(time=slice(1, None)), month, "final")
