"""Files of a month are of all that the cube holds of it, whichever runs made it, and nothing older lies beside them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipeline import output, stages
from pipeline.config import RunConfig
from pipeline.cube import reader, write
from pipeline.grid import Grid
from pipeline.products import downloads, export
from pipeline.twin.simulate import Simulation
from tests.test_write import make_block
from tests.test_write import run as write_run


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
        stages.make(config, f"{stream}-{start[-5:]}")
        found.append({path.name for path in (out / output.PRODUCTS).glob("*.nc")})
    with xr.open_dataset(out / output.PRODUCTS / name("interim", "hourly", "20191202-20191202")) as left:
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


def test_a_month_that_is_over_has_a_mean_in_the_file_of_its_year(tmp_path: Path) -> None:
    """As long as the last hour of March is missing there is one month; final days take theirs from the interim file."""
    first, last = (int(np.datetime64(day, "h").astype(int)) for day in ("2019-02-01", "2019-04-01"))
    grid, cube = Grid((110, 36, 110.2, 36.1), 0.1), tmp_path / "cube"
    write_run(cube, first, last - 1, grid=grid)
    assert monthly(cube, tmp_path, "2019-02") == {"interim_20190201-20190228"}
    assert monthly(cube, tmp_path, "2019-03") == {"interim_20190201-20190228"}
    write_run(cube, last - 24, last, grid=grid)
    assert monthly(cube, tmp_path, "2019-03") == {"interim_20190201-20190331"}
    with xr.open_dataset(next((tmp_path / "products").glob("*_monthly_*.nc"))) as means:
        wanted = reader.open_cube(cube)["pm2p5"].sel(time="2019-03").mean("time")
        np.testing.assert_allclose(means["pm2p5"][1], wanted, rtol=2**-9)
    with write.begin(cube, grid, np.datetime64(first, "h"), np.datetime64("2019-03-01", "h"), {}) as candidate:
        for hour in range(first, first + 28 * 24, 24):
            final = make_block(hour, grid=grid)
            write.write_block(candidate, final.assign(stream=final["stream"] + np.int8(1)))
        write.publish(candidate)
    assert monthly(cube, tmp_path, "2019-02") == {"final_20190201-20190228", "interim_20190301-20190331"}


def monthly(cube: Path, folder: Path, month: str) -> set[str]:
    """Stream and days of the monthly files after a run that touched a month."""
    first = np.datetime64(month, "M")
    hours, products = (first.astype("M8[h]"), (first + 1).astype("M8[h]")), folder / "products"
    downloads.cut(downloads.Part((hours,), "interim", False, "test", "0.1.0"), reader.open_cube(cube), products)
    names = (path.stem.split("_") for path in products.glob("*_monthly_*.nc"))
    return {f"{parts[3]}_{parts[-1]}" for parts in names}


def test_the_file_of_a_year_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backfill touches twelve months of it."""
    months = [np.datetime64(month, "M").astype("M8[h]") for month in ("2019-01", "2019-02", "2019-03")]
    write_run(
        tmp_path / "cube", *(int(hour.astype(int)) for hour in months[::2]), grid=Grid((110, 36, 110.2, 36.1), 0.1)
    )
    written: list[tuple[str, str | None]] = []
    real = export.export_files

    def counted(cube: xr.Dataset, folder: Path, cut: export.Cut, *named: str) -> list[Path]:
        written.append((cut.stream, cut.frequency))
        return real(cube, folder, cut, *named)

    monkeypatch.setattr(export, "export_files", counted)
    part = downloads.Part(tuple(pairwise(months)), "interim", False, "test", "0.1.0")
    files = downloads.cut(part, reader.open_cube(tmp_path / "cube"), tmp_path / "products")
    assert written.count(("interim", "monthly")) == 1
    assert "monthly 2019" in files
