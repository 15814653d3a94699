"""Downloads: what a user of xarray, CDO or plain Zarr opens equals the cube, and is there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from test_write import GRID, NEW_YEAR, make_block, run

from pipeline import export, layout, write
from pipeline.contract import FIELDS
from pipeline.errors import ConfigError, ProductError
from pipeline.grid import Grid
from pipeline.series import Series, hourly

END_OF_JANUARY = layout.to_hours("2019-01-30T06")


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """From 30 January 06:00 to 2 February 06:00, 72 hours."""
    path = tmp_path_factory.mktemp("cube") / "cube.icechunk"
    run(path, END_OF_JANUARY, END_OF_JANUARY + 72)
    return write.open_cube(path)


@pytest.fixture(scope="module")
def files(cube: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return export.export_netcdf(cube, tmp_path_factory.mktemp("netcdf"), "shandong", "interim", "0.1.0")


def test_one_file_a_month(files: list[Path]) -> None:
    assert [file.name for file in files] == [
        "pm25_shandong_aqnet_interim_v0.1.0_hourly_20190130-20190131.nc",
        "pm25_shandong_aqnet_interim_v0.1.0_hourly_20190201-20190202.nc",
    ]
    assert sorted(files[0].parent.iterdir()) == sorted(files)  # nothing half-made is left


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
def test_netcdf_holds_the_values_of_the_cube(cube: xr.Dataset, files: list[Path], engine: str) -> None:
    produced = cube.isel(time=cube["stream"].values >= 0)
    parts = [xr.open_dataset(file, engine=engine) for file in files]
    whole = xr.concat(parts, "time", data_vars="minimal", coords="minimal", compat="override", join="exact")
    np.testing.assert_array_equal(whole["time"], produced["time"])
    for spec in FIELDS:
        np.testing.assert_array_equal(whole[spec.name], produced[spec.name])
        assert whole[spec.name].dtype == spec.dtype
    for part in parts:
        part.close()


def test_netcdf_follows_cf(files: list[Path]) -> None:
    with netCDF4.Dataset(files[0]) as file:
        for name in ("time", "time_bnds", "lat", "lat_bnds", "lon", "lon_bnds", "crs"):
            assert "_FillValue" not in file[name].ncattrs()
        assert file["time"].units == "hours since 1970-01-01"
        assert file["time"].units_metadata == "leap_seconds: utc"
        np.testing.assert_array_equal(file["time_bnds"][:, 1] - file["time"][:], 1)
        assert file["quality_flag"].flag_masks.dtype == file["quality_flag"].dtype
        assert file["stream"].flag_values.dtype == file["stream"].dtype
        for spec in FIELDS:
            if spec.gridded:
                assert file[spec.name].grid_mapping == "crs"
        assert all(name in file.variables for name in file["pm2p5"].ancillary_variables.split())
        assert file["pm2p5"].cell_methods == "time: mean area: point"
        assert file["pm2p5"].chunking() == [24, 9, 9]
        assert file.ncattrs()[:3] == ["Conventions", "title", "summary"]
        assert file.time_coverage_start == "2019-01-30T06:00:00Z"
        assert file.time_coverage_end == "2019-02-01T00:00:00Z"
        assert file.time_coverage_duration == "PT42H"
        assert file.tracking_id.startswith("urn:uuid:")


def test_sea_is_the_fill_value_not_nan(files: list[Path]) -> None:
    with netCDF4.Dataset(files[0]) as file:
        file.set_auto_mask(False)
        values = file["pm2p5"][:]
        assert not np.isnan(values).any()
        assert (values[:, ~GRID.land] == file["pm2p5"]._FillValue).all()
        assert (file["quality_flag"][:][:, ~GRID.land] == 1).all()


def test_exporting_again_gives_the_same_bytes(cube: xr.Dataset, files: list[Path], tmp_path: Path) -> None:
    again = export.export_netcdf(cube, tmp_path, "shandong", "interim", "0.1.0")
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]


def test_the_tracking_id_is_that_of_the_values(cube: xr.Dataset, files: list[Path], tmp_path: Path) -> None:
    other = cube.copy()
    other["pm2p5"] = other["pm2p5"] + 1
    (changed,) = export.export_netcdf(other, tmp_path, "shandong", "interim", "0.1.0", end="2019-02-01")
    assert changed.name == files[0].name
    with netCDF4.Dataset(files[0]) as one, netCDF4.Dataset(changed) as two:
        assert one.tracking_id != two.tracking_id
    with netCDF4.Dataset(files[0]) as one, netCDF4.Dataset(files[1]) as two:
        assert one.tracking_id != two.tracking_id


def test_a_box_and_a_period(cube: xr.Dataset, tmp_path: Path) -> None:
    box = (119.5, 36.5, 120.5, 37.0)
    (file,) = export.export_netcdf(
        cube, tmp_path, "box", "interim", "0.1.0", start="2019-01-31", end="2019-01-31T12", bbox=box
    )
    with xr.open_dataset(file) as found:
        expected = cube.sel(time=slice("2019-01-31T00", "2019-01-31T11"), lon=slice(119.5, 120.5), lat=slice(36.5, 37))
        np.testing.assert_array_equal(found["pm2p5"], expected["pm2p5"])
        assert found.attrs["geospatial_lat_max"] == 37


def test_a_box_of_a_projected_cube_covers_its_cells(tmp_path: Path) -> None:
    grid = Grid((119, 36, 121, 38), 25_000, "EPSG:32650")
    run(tmp_path / "cube.icechunk", NEW_YEAR, NEW_YEAR + 24, grid=grid)
    cube = write.open_cube(tmp_path / "cube.icechunk")
    part = export.subset(cube, bbox=(119.5, 36.5, 120.5, 37.5))
    lon, lat = grid.lon_lat()
    inside = (lon >= 119.5) & (lon <= 120.5) & (lat >= 36.5) & (lat <= 37.5)
    found = (part["lon"] >= 119.5) & (part["lon"] <= 120.5) & (part["lat"] >= 36.5) & (part["lat"] <= 37.5)
    assert int(found.sum()) == inside.sum()
    assert part["pm2p5"].size < cube["pm2p5"].size
    (file,) = export.export_netcdf(cube, tmp_path / "nc", "utm", "interim", "0.1.0")
    with xr.open_dataset(file) as opened:
        assert opened["pm2p5"].dims == ("time", "y", "x")
        assert {"lat", "lon"} <= set(opened["pm2p5"].coords)


def test_hours_of_a_gap_are_left_out(tmp_path: Path) -> None:
    for first in (NEW_YEAR, NEW_YEAR + 40):
        run(tmp_path / "cube.icechunk", first, first + 4)
    cube = write.open_cube(tmp_path / "cube.icechunk")
    (file,) = export.export_netcdf(cube, tmp_path / "nc", "gap", "interim", "0.1.0")
    with xr.open_dataset(file) as found:
        at = [0, 1, 2, 3, 40, 41, 42, 43]
        np.testing.assert_array_equal(found["time"], cube["time"][at])
        np.testing.assert_array_equal(found["pm2p5"], cube["pm2p5"].values[at])


def test_a_box_across_the_dateline(tmp_path: Path) -> None:
    grid = Grid((177, -19, -178, -16), 0.5)
    run(tmp_path / "cube.icechunk", NEW_YEAR, NEW_YEAR + 1, grid=grid)
    part = export.subset(write.open_cube(tmp_path / "cube.icechunk"), bbox=(179, -18, -179, -17))
    assert part["lon"].values.tolist() == [179, 179.5, 180, 180.5, 181]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"stream": "final"}, "holds no final hour"),
        ({"start": "2020-01-01"}, "holds no produced hour in 2020-01-01 to ..."),
        ({"bbox": (0, 0, 1, 1)}, "no cell of the cube lies in bbox"),
    ],
)
def test_nothing_to_export_is_an_error(cube: xr.Dataset, asked: dict, message: str) -> None:
    with pytest.raises(ProductError, match=message):
        export.subset(cube, **asked)


def test_a_failure_leaves_the_file_that_was_there(
    cube: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file, *_) = export.export_netcdf(cube, tmp_path, "shandong", "interim", "0.1.0")
    before = file.read_bytes(), sorted(tmp_path.iterdir())
    monkeypatch.setattr(Series, "placed", lambda _: iter([1 / 0]))
    with pytest.raises(ZeroDivisionError):
        export.export_netcdf(cube, tmp_path, "shandong", "interim", "0.1.0")
    with pytest.raises(ZeroDivisionError):
        export.export_zarr(cube, tmp_path / "new.zarr")
    assert (file.read_bytes(), sorted(tmp_path.iterdir())) == before


WITHOUT_ICECHUNK = """
import sys
sys.modules["icechunk"] = None
import xarray
with xarray.open_zarr(sys.argv[1]) as cube:
    print(cube.sizes["time"], float(cube["pm2p5"].sum(dtype="float64")), cube.attrs["Conventions"])
"""


def test_zarr_opens_with_nothing_but_xarray_and_zarr(cube: xr.Dataset, tmp_path: Path) -> None:
    for _ in range(2):  # the second replaces the first
        path = export.export_zarr(cube, tmp_path / "cube.zarr")
    command = [sys.executable, "-W", "error", "-c", WITHOUT_ICECHUNK, str(path)]
    hours, total, *conventions = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    produced = cube["pm2p5"].values[cube["stream"].values >= 0]
    assert (int(hours), float(total)) == (72, pytest.approx(np.nansum(produced, dtype="float64"), rel=1e-9))
    assert " ".join(conventions) == "CF-1.11, ACDD-1.3"
    assert list(tmp_path.iterdir()) == [path]
    with xr.open_zarr(path, consolidated=True) as opened:
        for spec in FIELDS:
            np.testing.assert_array_equal(opened[spec.name], cube[spec.name][cube["stream"].values >= 0])


def test_checksums_are_what_sha256sum_reads(files: list[Path]) -> None:
    sums = export.sha256sums(files[0].parent)
    expected = {f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files}
    assert set(sums.read_text().splitlines()) == expected
    assert export.sha256sums(files[0].parent).read_text() == sums.read_text()  # not a sum of itself
    if shutil.which("sha256sum"):
        command = ["sha256sum", "--check", "--strict", sums.name]
        subprocess.run(command, cwd=sums.parent, check=True, capture_output=True)


MEMORY = """
import resource, sys
from pathlib import Path
from test_write import NEW_YEAR, make_block
from pipeline import export, layout, write
from pipeline.grid import Grid
from pipeline.series import Series, hourly

grid, out = Grid((110, 33, 116.3, 39.3), 0.1), Path(sys.argv[1])
block = make_block(NEW_YEAR, grid=grid)
for days in (2, 30):
    with write.begin(out / f"{days}.icechunk", grid, "2019-01-01", f"2019-01-{days + 1:02}", {}) as candidate:
        for day in range(days):
            shifted = block.assign_coords(time=block["time"] + 3_600_000_000_000 * 24 * day)
            write.write_block(candidate, shifted.assign_coords(time=shifted["time"].astype("datetime64[ns]")))
        write.publish(candidate)
    cube = write.open_cube(out / f"{days}.icechunk")
    export.export_netcdf(cube, out, "memory", "interim", "0")
    export.export_zarr(cube, out / f"{days}.zarr")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_period(tmp_path: Path) -> None:
    """30 days hold 62 MB of values, 2 days 4 MB; the peak of the process must differ by far less."""
    here = Path(__file__).resolve().parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    peaks = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert int(peaks[1]) - int(peaks[0]) < 25, peaks


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".nc"])
def test_estimates_at_points_come_back(tmp_path: Path, suffix: str) -> None:
    time = np.repeat(np.array(["2019-01-01T00", "2019-01-01T01"], "datetime64[us]"), 2)
    table = pd.DataFrame(
        {"time": time, "station": ["b", "a"] * 2, "pm2p5": np.array([1.5, 2.25, np.nan, 4], "float32")}
    )
    path = export.write_table(table, tmp_path / "new" / f"points{suffix}")
    assert list(path.parent.iterdir()) == [path]
    if suffix == ".csv":
        found = pd.read_csv(path, parse_dates=["time"]).astype({"pm2p5": "float32"})
    elif suffix == ".parquet":
        found = pd.read_parquet(path)
    else:
        with xr.open_dataset(path) as opened:
            assert opened["pm2p5"].attrs["units"] == "ug m-3"
            assert opened["time"].encoding["units"] == "hours since 1970-01-01"
            assert opened["station"].values.tolist() == ["b", "a"]
            found = opened[["station", "pm2p5"]].to_dataframe(["time", "point"]).reset_index()[list(table)]
    pd.testing.assert_frame_equal(found, table, check_dtype=False)


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"points.xlsx: expected a name that ends in .csv, .parquet or .nc"):
        export.write_table(pd.DataFrame(), tmp_path / "points.xlsx")


def test_blocks_are_read_a_day_at_a_time(cube: xr.Dataset) -> None:
    blocks = list(hourly(export.subset(cube)).placed())
    assert [at.stop - at.start for at, _ in blocks] == [24, 24, 24]
    np.testing.assert_array_equal(
        np.concatenate([values["pm2p5"] for _, values in blocks])[:18],
        write.bitround(make_block(END_OF_JANUARY, 18)["pm2p5"].values),
    )
