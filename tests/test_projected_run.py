"""`aqnet run` on the domain of a WRF or CMAQ run: a Lambert projection on a sphere, given by corner and size."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from pyproj import CRS, Transformer

from pipeline.cli import run_command
from pipeline.cube import reader
from pipeline.products import export
from pipeline.products.export import Cut

if TYPE_CHECKING:
    from pipeline.twin.simulate import Simulation

#: GRIDDESC: LAMCON, P_ALP 30, P_BET 60, P_GAM = XCENT 115, YCENT 38; 12 km cells on the sphere of 6,370 km.
CRS_TEXT = "+proj=lcc +lat_1=30 +lat_2=60 +lat_0=38 +lon_0=115 +R=6370000"
XORIG, YORIG, CELL, NCOLS, NROWS = -444_000.0, -216_000.0, 12_000.0, 22, 27


@pytest.fixture(scope="module")
def out(
    prefect_harness: None, small_simulation: Simulation, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of a run of 20 hours."""
    out = tmp_path_factory.mktemp("wrf")
    (out / "run.toml").write_text(
        f'source = "cnemc"\ninput = "{small_simulation.archive}"\nstations = "{small_simulation.stations}"\n'
        f'crs = "{CRS_TEXT}"\nresolution = {CELL}\norigin = [{XORIG}, {YORIG}]\nsize = [{NCOLS}, {NROWS}]\n'
        f'domain = "wrf"\nweights = "{weights}"\n'
    )
    hours = ["--start", "2019-12-01", "--end", "2019-12-01T20"]
    assert run_command(["run", str(out / "run.toml"), *hours, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def file(out: Path) -> Path:
    (file,) = export.export_netcdf(reader.open_cube(out / "cube.icechunk"), out / "cut", "wrf", "interim", "0.1.0")
    return file


def test_the_cube_is_the_model_s_domain(out: Path) -> None:
    cube = reader.open_cube(out / "cube.icechunk")
    assert dict(cube["pm2p5"].sizes) == {"time": 24, "y": NROWS, "x": NCOLS}
    assert (cube["x"].values[0], cube["y"].values[0]) == (XORIG + CELL / 2, YORIG + CELL / 2)
    assert CRS.from_cf(cube["crs"].attrs) == CRS(CRS_TEXT)
    assert cube.sizes["time"] == 24
    assert np.isfinite(cube["pm2p5"].values[:20]).mean() > 0.99
    assert cube["lat_bnds"].shape == (NROWS, NCOLS, 4)


def test_stations_lie_in_the_cells_that_hold_them(out: Path, small_simulation: Simulation) -> None:
    """The cell that a station's x and y fall into lies within half a diagonal of it, as the distance field says."""
    cube = reader.open_cube(out / "cube.icechunk").isel(time=19).load()
    stations = pd.read_csv(small_simulation.stations)
    x, y = Transformer.from_crs("EPSG:4326", CRS_TEXT, always_xy=True).transform(stations["lon"], stations["lat"])
    inside = (np.abs(x - cube["x"].mean().item()) < NCOLS * CELL / 2) & (
        np.abs(y - cube["y"].mean().item()) < NROWS * CELL / 2
    )
    assert inside.sum() > 20
    at = cube["nearest_observation_distance"].sel(
        x=xr.DataArray(x[inside]), y=xr.DataArray(y[inside]), method="nearest"
    )
    assert (at <= CELL / 1000 / np.sqrt(2) * 1.05).mean() > 0.9  # a few stations are silent


@pytest.mark.skipif(shutil.which("cdo") is None, reason="needs cdo")
def test_cdo_reads_the_projection(file: Path) -> None:
    told = subprocess.run(["cdo", "-s", "griddes", str(file)], capture_output=True, text=True, check=True).stdout
    assert "grid_mapping_name = lambert_conformal_conic" in told
    assert re.search(r"earth_radius = 6370000", told)
    assert f"xsize     = {NCOLS}" in told
    assert f"xfirst    = {XORIG + CELL / 2:.0f}" in told
    command = ["cdo", "-s", "outputtab,value", "-fldmean", "-timmean", "-selname,pm2p5", str(file)]
    mean = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    with xr.open_dataset(file) as data:
        assert mean == pytest.approx(float(data["pm2p5"].mean()), rel=0.02)  # cells differ by 3 % in area


@pytest.mark.skipif(shutil.which("gdallocationinfo") is None, reason="needs GDAL")
@pytest.mark.parametrize("form", ["netcdf", "geotiff"])
def test_gdal_finds_a_value_by_longitude_and_latitude(out: Path, file: Path, form: str) -> None:
    cube = reader.open_cube(out / "cube.icechunk")
    row, column = 11, 7
    lon, lat = (str(float(cube[name][row, column])) for name in ("lon", "lat"))
    name = f"NETCDF:{file}:pm2p5"
    if form == "geotiff":
        (path,) = export.export_files(cube, out / "tif", Cut("interim"), "geotiff", "wrf", "0.1.0")
        name = str(path)
    info = subprocess.run(["gdalinfo", name], capture_output=True, text=True, check=True).stdout
    assert "Lambert_Conformal_Conic_2SP" in info or "Lambert Conic Conformal (2SP)" in info
    assert "6370000" in info
    assert f"Origin = ({XORIG:.15f},{YORIG + NROWS * CELL:.15f})" in info
    # -wgs84 shifts from the ellipsoid to the sphere by its own rule, by up to 20 km; so ask in the sphere's own degrees
    crs = CRS(CRS_TEXT).geodetic_crs.to_wkt()
    command = ["gdallocationinfo", "-valonly", "-b", "3", "-l_srs", crs, name, lon, lat]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(found) == pytest.approx(float(cube["pm2p5"][2, row, column]), rel=1e-6)


def test_products_of_the_run_are_there(out: Path) -> None:
    names = {path.name for path in (out / "products").iterdir()}
    assert "pm25_wrf_aqnet_interim_v0.1.0_hourly_20191201-20191201.nc" in names
    assert "pm25_wrf_aqnet_interim_v0.1.0_hourly_20191201-20191201.png" in names
