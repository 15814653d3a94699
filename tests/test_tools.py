"""What users have opens the products and computes what xarray does: CDO, NCO, GDAL, xclim, VirtualiZarr, four readers.

Programs are Debian's (`make tools` installs them); a test whose program is lacking skips and says so.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5netcdf
import icechunk
import netCDF4
import numpy as np
import pytest
import rasterio
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from test_write import NEW_YEAR, make_block, run

from pipeline.contract import FIELD_NAMES
from pipeline.cube import layout, reader, write
from pipeline.grid import Grid
from pipeline.products import export
from pipeline.products.export import Cut
from pipeline.products.series import hours_of

#: Its north and south-east hold sea.
GRID = Grid((118, 36, 121, 38), 0.5)
#: Domain of a WRF run: a Lambert projection on a sphere.
WRF = "+proj=lcc +lat_1=30 +lat_2=60 +lat_0=38 +lon_0=115 +R=6370000"
LAMBERT = Grid.from_corner((-30_000, -96_000), (6, 5), 12_000, WRF)
#: Month -> its days that were produced, from the tenth on.
DAYS = dict.fromkeys(range(1, 13), 1) | {1: 4, 3: 2}

CLOSE = 1e-5

#: Joins the months of a product along time, as the guide tells users to.
JOIN: dict[str, Any] = {
    "dim": "time",
    "data_vars": "minimal",
    "coords": "minimal",
    "compat": "override",
    "join": "override",
    "combine_attrs": "override",
}


@dataclass(frozen=True)
class Products:
    """A year in every form: the cube, its plain Zarr, a file a month of hours, and of daily means."""

    cube: Path
    zarr: Path
    hourly: list[Path]
    daily: list[Path]


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Products:
    """Whole days of every month of 2019."""
    out = tmp_path_factory.mktemp("year")
    with write.begin(out / "cube", GRID, "2019-01-01", "2020-01-01", {}) as candidate:
        for month, days in DAYS.items():
            first = layout.to_hours(f"2019-{month:02}-10")
            for day in range(days):
                write.write_block(candidate, make_block(first + 24 * day, grid=GRID))
        write.publish(candidate)
    cube = reader.open_cube(out / "cube")
    return Products(
        out / "cube",
        export.export_zarr(cube, out / "cube.zarr"),
        export.export_netcdf(cube, out / "files", "sea", "interim", "0.1.0"),
        export.export_files(cube, out / "files", Cut("interim", "daily"), "netcdf", "sea", "0.1.0"),
    )


@pytest.fixture(scope="module")
def regular(year: Products) -> Path:
    """January: 96 hours."""
    return year.hourly[0]


@pytest.fixture(scope="module")
def lambert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hours on the Lambert projection."""
    out = tmp_path_factory.mktemp("lambert")
    run(out / "cube", NEW_YEAR, NEW_YEAR + 2, grid=LAMBERT)
    (file,) = export.export_netcdf(reader.open_cube(out / "cube"), out, "wrf", "interim", "0.1.0")
    return file


def read(file: Path) -> xr.Dataset:
    with xr.open_dataset(file) as data:
        return data.load()


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program}: make tools installs it")


def shell(*words: object) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- CDO ----


def cdo(tmp_path: Path, *words: object) -> xr.DataArray:
    """PM2.5 after CDO's operators."""
    shell("cdo", "-s", "-O", *words, tmp_path / "cdo.nc")
    return read(tmp_path / "cdo.nc")["pm2p5"]


@needs("cdo")
def test_cdo_knows_grid_hours_and_variables(regular: Path) -> None:
    told = shell("cdo", "sinfon", regular)
    assert "NetCDF4 zip" in told
    assert "lonlat                   : points=35 (7x5)" in told
    assert "lon : 118 to 121 by 0.5 degrees_east" in told
    assert "lat : 36 to 38 by 0.5 degrees_north" in told
    assert "cellbounds" in told
    assert "time : 96 steps" in told
    assert "Units = hours  Calendar = standard  Bounds = true" in told
    assert {line.split()[-1] for line in told.splitlines() if " v " in line} == {*FIELD_NAMES}
    assert shell("cdo", "-s", "showtimestamp", regular).split()[::95] == ["2019-01-10T00:00:00", "2019-01-13T23:00:00"]


@needs("cdo")
def test_cdo_means_over_days(regular: Path, tmp_path: Path) -> None:
    found = cdo(tmp_path, "daymean", "-selname,pm2p5", regular)
    expected = read(regular)["pm2p5"].astype(float).resample(time="1D").mean()
    assert found.sizes["time"] == 4
    np.testing.assert_array_equal(found["time"].values.astype("M8[D]"), expected["time"].values.astype("M8[D]"))
    np.testing.assert_allclose(found, expected, rtol=CLOSE)


@needs("cdo")
@pytest.mark.parametrize("file", ["regular", "lambert"])
def test_cdo_means_over_the_area(file: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = request.getfixturevalue(file)
    shell("cdo", "-s", "-O", "gridarea", "-selname,pm2p5", path, tmp_path / "area.nc")
    area, data = read(tmp_path / "area.nc")["cell_area"], read(path)
    weights = xr.DataArray(area.values, dims=data["pm2p5"].dims[1:])
    expected = data["pm2p5"].astype(float).weighted(weights).mean(data["pm2p5"].dims[1:])
    found = cdo(tmp_path, "fldmean", "-selname,pm2p5", path)
    np.testing.assert_allclose(found.values.ravel(), expected, rtol=CLOSE)
    if file == "regular":
        band = np.diff(np.sin(np.radians(data["lat_bnds"].values)))[:, 0]
        np.testing.assert_allclose(area / area[0], np.broadcast_to((band / band[0])[:, None], area.shape), rtol=CLOSE)


@needs("cdo")
def test_cdo_interpolates(regular: Path, tmp_path: Path) -> None:
    """Bilinear, onto a grid whose points fall between all four kinds of neighbour; where all four hold a value."""
    target = tmp_path / "target"
    target.write_text("gridtype=lonlat\nxsize=9\nysize=8\nxfirst=118.1\nxinc=0.33\nyfirst=36.05\nyinc=0.27\n")
    found = cdo(tmp_path, f"remapbil,{target}", "-selname,pm2p5", regular)
    expected = read(regular)["pm2p5"].astype(float).interp(lon=found["lon"], lat=found["lat"])
    inside = np.isfinite(expected.values)
    assert 20 * 96 < inside.sum() < found.size
    np.testing.assert_allclose(found.values[inside], expected.values[inside], rtol=CLOSE)


# ---- NCO ----


@needs("ncks")
def test_ncks_cuts_out(regular: Path, tmp_path: Path) -> None:
    box = ["-d", "time,3,10", "-d", "lat,36.5,37.5", "-d", "lon,118.0,119.5"]
    shell("ncks", "-O", "-v", "pm2p5,quality_flag", *box, regular, tmp_path / "part.nc")
    found, whole = read(tmp_path / "part.nc"), read(regular)
    expected = whole.isel(time=slice(3, 11)).sel(lat=slice(36.5, 37.5), lon=slice(118, 119.5))
    assert dict(found["pm2p5"].sizes) == {"time": 8, "lat": 3, "lon": 4}
    assert {"time_bnds", "lat_bnds", "lon_bnds", "crs"} <= set(found.variables)
    for name in ("pm2p5", "quality_flag", "time_bnds", "lat_bnds"):
        xr.testing.assert_identical(found[name].variable, expected[name].variable)


@needs("ncra")
def test_ncra_means_over_time(year: Products, tmp_path: Path) -> None:
    shell("ncra", "-O", "-v", "pm2p5", *year.hourly, tmp_path / "mean.nc")
    found = read(tmp_path / "mean.nc")["pm2p5"]
    expected = xr.concat([read(file)["pm2p5"] for file in year.hourly], "time").astype(float).mean("time")
    assert found.sizes["time"] == 1
    np.testing.assert_allclose(found[0], expected, rtol=CLOSE)


# ---- GDAL ----


def from_lon_lat(crs: CRS, lon: NDArray[np.float64], lat: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Places in a CRS, of longitudes and latitudes on its own ellipsoid or sphere."""
    return Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform(lon, lat)


@needs("gdalinfo")
@pytest.mark.parametrize(("file", "grid"), [("regular", GRID), ("lambert", LAMBERT)])
def test_gdal_knows_where_the_cells_are(file: str, grid: Grid, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(file)
    told = json.loads(shell("gdalinfo", "-json", f"NETCDF:{path}:pm2p5"))
    dx, dy = (float(axis[1] - axis[0]) for axis in (grid.x, grid.y))
    left, top = grid.x[0] - dx / 2, grid.y[-1] + dy / 2
    np.testing.assert_allclose(told["geoTransform"], [left, dx, 0, top, 0, -dy], atol=1e-9)
    assert told["size"] == [len(grid.x), len(grid.y)]
    found = CRS.from_wkt(told["coordinateSystem"]["wkt"])
    assert (found.to_epsg() == 4326) is (file == "regular")
    lon, lat = (np.asarray(axis) for axis in grid.lon_lat())
    np.testing.assert_allclose(*(from_lon_lat(crs, lon, lat) for crs in (found, CRS(grid.crs))), atol=1e-6)
    bands = told["bands"]
    assert len(bands) == read(path).sizes["time"]
    assert {(band["unit"], band["type"]) for band in bands} == {("ug m-3", "Float32")}
    assert bands[1]["metadata"][""]["NETCDF_DIM_time"] == str(hours_of(read(path))[1])


@needs("gdalwarp")
@pytest.mark.parametrize(
    ("file", "grid", "target", "size"),
    [("regular", GRID, "EPSG:32650", 5_000), ("lambert", LAMBERT, "EPSG:4326", 0.02)],
)
def test_gdal_warps_each_cell_to_its_place(
    file: str, grid: Grid, target: str, size: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = request.getfixturevalue(file)
    options = ["-q", "-overwrite", "-r", "near", "-t_srs", target, "-tr", size, size]
    shell("gdalwarp", *options, f"NETCDF:{path}:pm2p5", tmp_path / "warped.tif")
    lon, lat = (np.asarray(axis).ravel() for axis in grid.lon_lat())
    x, y = from_lon_lat(CRS(target), lon, lat)
    with rasterio.open(tmp_path / "warped.tif") as warped:
        found = np.array([value[0] for value in warped.sample(zip(x, y, strict=True), 2)])
        found[found == warped.nodata] = np.nan
    np.testing.assert_array_equal(found, read(path)["pm2p5"].values[1].ravel())
    assert np.isfinite(found).sum() > 15


# ---- xclim ----


@pytest.mark.filterwarnings("ignore:The 'name' property is deprecated")  # of pandas 4, in xclim 0.62
def test_xclim_counts_days_above_a_limit(year: Products) -> None:
    """China's daily limit, 75 ug m-3, told in another unit; then as an indicator, which takes no hours for days."""
    from xclim.core import ValidationError
    from xclim.core.indicator import Daily
    from xclim.indices.generic import count_occurrences

    daily = read(year.daily[0])["pm2p5"]
    expected = (daily.values > 75).sum(axis=0, keepdims=True)
    assert 0 < expected.sum() < np.isfinite(daily).sum()
    found = count_occurrences(daily, "0.075 mg m-3", "MS", ">")
    np.testing.assert_array_equal(found, expected)
    assert found.attrs["units"] == "d"

    about = dict.fromkeys(("title", "abstract"), "Days with a mean PM2.5 above a limit")
    limit = {"threshold": {"default": "75 ug m-3"}, "op": {"default": ">"}}
    above = Daily(
        identifier="days_above",
        module="x",
        compute=count_occurrences,
        parameters=limit,
        realm="atmos",
        missing="skip",
        **about,
    )
    np.testing.assert_array_equal(above(daily, freq="MS"), expected)
    with pytest.raises(ValidationError, match="Frequency of time series"):
        above(read(year.hourly[0])["pm2p5"], freq="MS")


# ---- readers ----

Arrays = dict[str, NDArray[Any]]
NAMES = ("time_bnds", "lat", "lon", *FIELD_NAMES)


def by_netcdf4(year: Products) -> Arrays:
    parts: list[Arrays] = []
    for path in year.hourly:
        with netCDF4.Dataset(path) as file:
            file.set_always_mask(False)
            parts.append({name: np.ma.filled(file[name][...], np.nan) for name in NAMES})
    return joined(parts)


def by_h5netcdf(year: Products) -> Arrays:
    parts: list[Arrays] = []
    for path in year.hourly:
        with h5netcdf.File(path) as file:
            values = {name: (file[name][...], file[name].attrs.get("_FillValue")) for name in NAMES}
        parts.append({n: v if fill is None else np.where(v == fill, np.nan, v) for n, (v, fill) in values.items()})
    return joined(parts)


def joined(parts: list[Arrays]) -> Arrays:
    return {n: parts[0][n] if n in ("lat", "lon") else np.concatenate([part[n] for part in parts]) for n in NAMES}


def by_zarr(year: Products) -> Arrays:
    with xr.open_zarr(year.zarr, decode_times=False) as data:
        return {name: data[name].values for name in NAMES}


def by_icechunk(year: Products) -> Arrays:
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(str(year.cube)))
    store = repo.readonly_session(tag="r1").store
    with xr.open_zarr(store, consolidated=False, decode_times=False) as data:
        data = data.isel(time=data["stream"].values >= 0)
        return {name: data[name].values for name in NAMES}


def test_all_readers_return_the_same(year: Products) -> None:
    expected = by_icechunk(year)
    assert expected["pm2p5"].shape == (24 * sum(DAYS.values()), *GRID.shape)
    for reads in (by_netcdf4, by_h5netcdf, by_zarr):
        found = reads(year)
        for name in NAMES:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{reads.__name__}: {name}")


# ---- references ----


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
def test_a_year_of_files_opens_as_one_by_reference(year: Products, tmp_path: Path) -> None:
    """VirtualiZarr notes where each chunk lies in which file; Icechunk keeps the notes; xarray reads through them."""
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import LocalStore
    from virtualizarr import open_virtual_dataset
    from virtualizarr.parsers import HDFParser

    months = [read(file) for file in year.hourly]
    loaded = [str(name) for name, variable in months[0].variables.items() if variable.ndim < 3]
    registry, parser = ObjectStoreRegistry({"file://": LocalStore()}), HDFParser()
    parts = [
        open_virtual_dataset(f"file://{file}", registry=registry, parser=parser, loadable_variables=loaded)
        for file in year.hourly
    ]
    whole = xr.concat(parts, **JOIN)
    assert whole.vz.nbytes < 0.1 * whole.nbytes

    folder = f"file://{year.hourly[0].parent}/"
    files = icechunk.local_filesystem_store(str(year.hourly[0].parent))
    config = icechunk.RepositoryConfig.default()
    config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(folder, files))
    allowed = {folder: None}
    repo = icechunk.Repository.create(
        icechunk.local_filesystem_storage(str(tmp_path / "year")), config, authorize_virtual_chunk_access=allowed
    )
    session = repo.writable_session("main")
    whole.vz.to_icechunk(session.store)
    session.commit("2019")
    with xr.open_zarr(repo.readonly_session("main").store, consolidated=False) as found:
        xr.testing.assert_identical(found.load(), xr.concat(months, **JOIN))
