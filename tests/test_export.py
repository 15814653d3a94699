"""Downloads: what a user of xarray, CDO or plain Zarr opens equals the cube, and is there whole or not at all."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import netCDF4
import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr
from test_write import GRID, NEW_YEAR, make_block, run

from pipeline.cli import run_command
from pipeline.contract import FIELD_NAMES, FIELDS
from pipeline.cube import layout, reader, write
from pipeline.errors import ConfigError, ProductError
from pipeline.grid import Grid
from pipeline.products import export
from pipeline.products.export import Cut
from pipeline.products.series import Series, hourly

END_OF_JANUARY = layout.to_hours("2019-01-30T06")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From 30 January 06:00 to 2 February 06:00, 72 hours."""
    path = tmp_path_factory.mktemp("cube") / "cube.icechunk"
    run(path, END_OF_JANUARY, END_OF_JANUARY + 72)
    return path


@pytest.fixture(scope="module")
def cube(path: Path) -> xr.Dataset:
    return reader.open_cube(path)


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
    cube = reader.open_cube(tmp_path / "cube.icechunk")
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
    cube = reader.open_cube(tmp_path / "cube.icechunk")
    (file,) = export.export_netcdf(cube, tmp_path / "nc", "gap", "interim", "0.1.0")
    with xr.open_dataset(file) as found:
        at = [0, 1, 2, 3, 40, 41, 42, 43]
        np.testing.assert_array_equal(found["time"], cube["time"][at])
        np.testing.assert_array_equal(found["pm2p5"], cube["pm2p5"].values[at])


def test_a_box_across_the_dateline(tmp_path: Path) -> None:
    grid = Grid((177, -19, -178, -16), 0.5)
    run(tmp_path / "cube.icechunk", NEW_YEAR, NEW_YEAR + 1, grid=grid)
    part = export.subset(reader.open_cube(tmp_path / "cube.icechunk"), bbox=(179, -18, -179, -17))
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
    for kind in ("csv", "geotiff"):
        with pytest.raises(ZeroDivisionError):
            export.export_files(cube, tmp_path, Cut("interim"), kind, "shandong", "0.1.0")
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


MEMORY = """
import resource, sys
from pathlib import Path
from test_write import NEW_YEAR, make_block
from pipeline.cube import layout, reader, write
from pipeline.products import export
from pipeline.products.export import Cut
from pipeline.grid import Grid

grid, out = Grid((110, 33, 116.3, 39.3), 0.1), Path(sys.argv[1])
block = make_block(NEW_YEAR, grid=grid)
for days in (2, 30):
    with write.begin(out / f"{days}.icechunk", grid, "2019-01-01", f"2019-01-{days + 1:02}", {}) as candidate:
        for day in range(days):
            shifted = block.assign_coords(time=block["time"] + 3_600_000_000_000 * 24 * day)
            write.write_block(candidate, shifted.assign_coords(time=shifted["time"].astype("datetime64[ns]")))
        write.publish(candidate)
    cube = reader.open_cube(out / f"{days}.icechunk")
    export.export_netcdf(cube, out, "memory", "interim", "0")
    export.export_zarr(cube, out / f"{days}.zarr")
    export.export_files(cube, out, Cut("interim", "daily"), "netcdf", "memory", "0")
    export.export_files(cube, out, Cut("interim"), "geotiff", "memory", "0")
    export.export_files(cube, out, Cut("interim", bbox=(110, 33, 112, 35)), "csv", "memory", "0")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_period(tmp_path: Path) -> None:
    """30 days hold 62 MB of values, 2 days 4 MB; the peak of the process must differ by far less."""
    here = Path(__file__).resolve().parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    peaks = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert int(peaks[1]) - int(peaks[0]) < 25, peaks


def test_a_cube_begun_before_it_had_a_height_is_exported_without(cube: xr.Dataset, tmp_path: Path) -> None:
    for file in export.export_netcdf(cube.drop_vars("height"), tmp_path, "old", "interim", "0.1.0"):
        with netCDF4.Dataset(file) as found:
            assert "height" not in found.variables
            assert "coordinates" not in found["pm2p5"].ncattrs()


def test_a_plain_zarr_becomes_netcdf_once_its_register_of_conventions_is_dropped(
    cube: xr.Dataset, tmp_path: Path
) -> None:
    with xr.open_zarr(export.export_zarr(cube, tmp_path / "x.zarr")) as opened:
        del opened.attrs["zarr_conventions"]
        opened.to_netcdf(tmp_path / "x.nc")
    with xr.open_dataset(tmp_path / "x.nc") as found:
        np.testing.assert_array_equal(found["pm2p5"], export.subset(cube)["pm2p5"])


# ---- tables and pictures ----


def test_csv_holds_every_value_that_is_one(cube: xr.Dataset, tmp_path: Path) -> None:
    cut = Cut("interim", "hourly", "2019-01-30T06", "2019-02-01T02", (119.5, 36.5, 120.5, 37.5))
    files = export.export_files(cube, tmp_path, cut, "csv", "x", "0.1.0")
    assert [file.name[-21:] for file in files] == ["20190130-20190131.csv", "20190201-20190201.csv"]
    tables = [pd.read_csv(file, parse_dates=["time"]) for file in files]
    assert [*tables[0]] == ["time", "lat", "lon", *FIELD_NAMES]
    part = export.subset(cube, "interim", cut.start, cut.end, cut.bbox).drop_dims("bnds")
    expected = part.to_dataframe(["time", "lat", "lon"]).dropna(subset="pm2p5").reset_index()[[*tables[0]]]
    found = pd.concat(tables, ignore_index=True).assign(time=lambda table: table["time"].dt.tz_localize(None))
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-5)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32650"])
def test_geotiff_lies_where_the_cells_lie(tmp_path: Path, crs: str) -> None:
    grid = Grid((119, 36, 121, 38), 0.25 if crs == "EPSG:4326" else 25_000, crs)
    run(tmp_path / "cube", NEW_YEAR, NEW_YEAR + 26, grid=grid)
    cube, names = reader.open_cube(tmp_path / "cube"), ("pm2p5", "quality_flag")
    files = export.export_files(cube, tmp_path / "tif", Cut("interim"), "geotiff", "x", "0.1.0", names)
    assert [file.name for file in files] == [
        f"pm25_x_aqnet_interim_v0.1.0_hourly_20190101-20190102_{name}.tif" for name in names
    ]
    at = np.ravel_multi_index((2, 3), grid.shape)
    x, y = (axis.ravel()[at] for axis in np.meshgrid(grid.x, grid.y))
    with rasterio.open(files[0]) as file:
        assert (file.count, file.crs.to_epsg(), file.nodata) == (26, int(crs[5:]), -9999)
        assert (file.units[0], file.descriptions[25]) == ("ug m-3", "pm2p5 2019-01-02T01:00:00Z")
        assert file.tags(26)["time_end"] == "2019-01-02T02:00:00Z"
        assert "PM2.5" in file.tags()["title"]
        values = [value[0] for value in file.sample([(x, y)], 26)]
        assert values == [cube["pm2p5"].values[25].ravel()[at]]
        np.testing.assert_array_equal(file.read(26, masked=True)[::-1].filled(np.nan), cube["pm2p5"].values[25])
    with rasterio.open(files[1]) as file:
        assert file.dtypes[0] == "uint8"
        np.testing.assert_array_equal(file.read(1)[::-1], cube["quality_flag"].values[0])
    if shutil.which("gdallocationinfo"):
        command = ["gdallocationinfo", "-valonly", "-geoloc", "-b", "26", str(files[0]), str(x), str(y)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert float(told) == pytest.approx(values[0], rel=1e-6)


def test_geotiff_of_an_unknown_variable_is_refused(cube: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--variable: expected one of pm2p5, .*; found 'stream'"):
        export.export_files(cube, tmp_path, Cut("interim"), "geotiff", "x", "0.1.0", ["stream"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--format csv --freq daily --end 2019-02-01", ["pm25_x_aqnet_interim_v0.1.0_daily_20190130-20190131.csv"]),
        (
            "--format netcdf --freq daily --day-offset 8 --start 2019-02-01",
            ["pm25_x_aqnet_interim_v0.1.0_daily-utc+08_20190201-20190201.nc"],
        ),
        (
            "--format geotiff --end 2019-02-01 --variable pm2p5_p95",
            ["pm25_x_aqnet_interim_v0.1.0_hourly_20190130-20190131_pm2p5_p95.tif"],
        ),
    ],
)
def test_the_command_writes(path: Path, tmp_path: Path, words: str, names: list[str]) -> None:
    assert run_command(["export", "--cube", str(path), "--out", str(tmp_path), "--domain", "x", *words.split()]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == names


# ---- appended or in one go ----


def test_a_cube_on_a_projection_with_two_parallels_is_extended(tmp_path: Path) -> None:
    """CF says them as a pair, which JSON makes a list of: the grid of the second run is still that of the first."""
    grid = Grid.from_corner((0, 0), (3, 2), 12_000, "+proj=lcc +lat_1=30 +lat_2=60 +lat_0=38 +lon_0=115 +R=6370000")
    assert [run(tmp_path / "cube", NEW_YEAR + at, NEW_YEAR + at + 2, grid=grid) for at in (0, 2)] == ["r1", "r2"]
    (file,) = export.export_netcdf(reader.open_cube(tmp_path / "cube"), tmp_path, "x", "interim", "0.1.0")
    with netCDF4.Dataset(file) as found:
        assert found["crs"].standard_parallel.tolist() == [30, 60]


#: What tells of the making of a product, and so differs where the making did.
OF_THE_MAKING = {"date_created", "history", "revision", "flow_run_id"}


def test_twenty_appended_runs_make_the_products_of_one(tmp_path: Path) -> None:
    """Values, coordinates and attributes of every file, of the Zarr and of the cube; but for `OF_THE_MAKING`."""
    start = NEW_YEAR + 6
    edges = [
        start,
        *np.sort(np.random.default_rng(0).choice(np.arange(start + 1, start + 600), 19, replace=False)),
        start + 600,
    ]
    for first, last in itertools.pairwise(map(int, edges)):
        run(tmp_path / "many", first, last)
    run(tmp_path / "one", start, start + 600)
    cubes = [reader.open_cube(tmp_path / name) for name in ("many", "one")]
    assert [len(reader.history(tmp_path / name)) for name in ("many", "one")] == [20, 1]
    for frequency in export.FREQUENCIES:
        files = []
        for cube, name in zip(cubes, ("many", "one"), strict=True):
            cut = Cut("interim", frequency)
            files.append(export.export_files(cube, tmp_path / f"{name}-nc", cut, "netcdf", "x", "0.1.0"))
            files[-1].append(export.export_zarr(cube, tmp_path / f"{name}-zarr" / f"{frequency}.zarr", cut=cut))
        for many, one in zip(*files, strict=True):
            assert many.name == one.name
            assert_same_product(many, one)
    assert_same_product(*cubes)


def assert_same_product(many: Path | xr.Dataset, one: Path | xr.Dataset) -> None:
    """Everything equal, dtypes, attributes of variables and their order in a file among it."""
    opened = []
    for product in (many, one):
        raw = {"decode_cf": False, "mask_and_scale": False}
        if isinstance(product, Path):
            product = xr.open_dataset(product, **raw) if product.is_file() else xr.open_zarr(product, **raw)
        opened.append(product.load())
        product.close()
    differing = {name for name in opened[0].attrs if opened[0].attrs[name] != opened[1].attrs.get(name)}
    assert differing <= OF_THE_MAKING
    assert opened[0].attrs.keys() == opened[1].attrs.keys()
    if isinstance(many, Path) and many.is_file():
        assert [*opened[0].variables] == [*opened[1].variables]
    xr.testing.assert_identical(*(product.drop_attrs(deep=False) for product in opened))
    for name, variable in opened[0].variables.items():
        assert variable.dtype == opened[1][name].dtype


# ---- points ----


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
