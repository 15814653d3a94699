"""CF-1.11 and ACDD-1.3 to the letter: compliance-checker finds nothing in any kind of product, and headers stay."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import icechunk
import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from pyproj import CRS
from test_write import GRID, NEW_YEAR, make_block

from pipeline import provenance
from pipeline.contract import STREAMS
from pipeline.cube import layout, reader, write
from pipeline.grid import Grid
from pipeline.products import export, geozarr, outlook_fields
from pipeline.products.export import Cut

GOLDEN = Path(__file__).parent / "headers"
WRF = "+proj=lcc +lat_1=30 +lat_2=60 +lat_0=38 +lon_0=115 +R=6370000"
LAMBERT = Grid.from_corner((-30_000, -96_000), (6, 5), 12_000, WRF)
ROTATED = Grid.from_corner(
    (-1, -1), (6, 5), 0.22, "+proj=ob_tran +o_proj=longlat +o_lat_p=50 +o_lon_p=0 +lon_0=115 +type=crs"
)
DAYS = 24  # three quarters of January, and no less

#: CF has no standard name for a distance to an observation, and allows none that is not in its table (section 3.3);
#: ACDD-1.3 recommends one for every variable. CF's "must" wins over ACDD's "recommended".
WITHOUT_A_NAME = ('variable "nearest_observation_distance" missing the following attributes:', "standard_name")


def made(path: Path, grid: Grid = GRID, stream: str = "interim", days: int = 1) -> xr.Dataset:
    """Cube of some days from New Year 2019 with the attributes of a run."""
    attrs = provenance.lineage("0" * 64, {"observed.csv": "1" * 64}, "2" * 64, f"run-{stream}")
    start, issue = (np.datetime64(NEW_YEAR + 24 * day, "h") for day in (0, days))
    ahead = stream == "outlook"
    with write.begin(path, grid, start, issue, attrs, 24 * ahead) as candidate:
        for day in range(days + ahead):
            block = make_block(NEW_YEAR + 24 * day, grid=grid)
            block["stream"][:] = STREAMS[stream if day >= days or not ahead else "interim"]
            write.write_block(candidate, block)
        if ahead:
            write.describe_outlook(candidate, outlook_fields.attrs(issue, "outlook", "3" * 64))
        write.publish(candidate)
    return reader.open_cube(path)


def points(path: Path) -> Path:
    """Estimates at two points, as `aqnet estimate` makes them."""
    time = np.repeat(np.array(["2019-01-01T00", "2019-01-01T01"], "datetime64[us]"), 2)
    values = {name: np.arange(4, dtype="float32") for name in ("pm2p5", "pm2p5_p05", "pm2p5_p50", "pm2p5_p95")}
    distance = np.array([1, np.nan, 2, 3], "float32")
    table = pd.DataFrame({"time": time, "station": ["b", "a"] * 2, **values, "nearest_observation_distance": distance})
    places = pd.DataFrame({"station": ["a", "b"], "lon": [116.0, 117.5], "lat": [39.0, 40.0], "elevation": [40.0, 2.5]})
    return export.write_table(table, path, places)


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, xr.Dataset]:
    """Cubes of each stream and kind of grid; one is long enough for a month."""
    out = tmp_path_factory.mktemp("cubes")
    return {
        "interim": made(out / "interim", days=DAYS),
        "lambert": made(out / "lambert", LAMBERT),
        "final": made(out / "final", stream="final"),
        "outlook": made(out / "outlook", stream="outlook"),
        "rotated": made(out / "rotated", ROTATED),
    }


@pytest.fixture(scope="module")
def products(cubes: dict[str, xr.Dataset], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind of product."""
    out, files = tmp_path_factory.mktemp("products"), {}
    for name, cube in cubes.items():
        stream = name if name in STREAMS else "interim"
        for frequency in export.FREQUENCIES[: 3 if cube.sizes["time"] > 48 else 2]:
            (files[f"{name} {frequency}"],) = netcdf(cube, out, name, Cut(stream, frequency))
    files["local days"], *_ = netcdf(cubes["interim"], out, "local", Cut("interim", "daily", day_offset=8))
    (files["box"],) = netcdf(
        cubes["interim"], out, "box", Cut("interim", end="2019-01-02", bbox=(119.5, 36.5, 120, 37))
    )
    for frequency in ("hourly", "daily"):
        path = export.export_zarr(cubes["final"], out / f"{frequency}.zarr", cut=Cut("final", frequency))
        files[f"zarr {frequency}"] = as_netcdf(path)
    return files | {"points": points(out / "points.nc")}


def netcdf(cube: xr.Dataset, out: Path, domain: str, cut: Cut) -> list[Path]:
    return export.export_files(cube, out, cut, "netcdf", domain, "0.1.0")


def as_netcdf(path: Path) -> Path:
    """Copy a Zarr to NetCDF, its attributes as they are but for what JSON and GeoZarr make of them.

    The checker reads no sharded Zarr v3. JSON keeps no dtype of flags, and GeoZarr has names with a colon, where CF
    recommends letters, digits and underscores (section 2.3).
    """
    file = path.with_suffix(".nc")
    with xr.open_zarr(path, decode_cf=False, mask_and_scale=False) as data:
        plain = data.load()
    plain.attrs = geozarr.without(plain.attrs)
    for variable in plain.variables.values():
        for name in {"flag_masks", "flag_values"} & variable.attrs.keys():
            variable.attrs[name] = np.array(variable.attrs[name], variable.dtype)
    plain.to_netcdf(file, encoding={name: {"_FillValue": None} for name in plain.variables})
    return file


@pytest.fixture(scope="module")
def reports(products: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What the checker says of each product, as JSON; it must not ask the network for a table of names."""
    output = tmp_path_factory.mktemp("reports") / "reports.json"
    program = str(Path(sys.executable).with_name("compliance-checker"))
    options = ["-t", "cf:1.11", "-t", "acdd:1.3", "--criteria", "normal", "--format", "json_new", "-o", str(output)]
    done = subprocess.run(
        [program, *options, *map(str, products.values())], capture_output=True, text=True, check=False
    )
    assert done.stderr.count(f"Using packaged standard name table v{layout.STANDARD_NAMES_VERSION}") == len(products)
    found = json.loads(output.read_text())
    return {name: found[str(path)] for name, path in products.items()}


def findings(report: dict, checker: str) -> list[tuple[str, str]]:
    """Errors and warnings of one checker: (what, message)."""
    results = [*report[checker]["high_priorities"], *report[checker]["medium_priorities"]]
    return [(result["name"], message) for result in results for message in result["msgs"]]


def test_every_product_follows_cf(reports: dict[str, dict]) -> None:
    assert {name: said for name, report in reports.items() if (said := findings(report, "cf:1.11"))} == {}
    assert all(report["cf:1.11"]["possible_points"] > 50 for report in reports.values())


def test_every_product_follows_acdd(reports: dict[str, dict]) -> None:
    left = {name: set(findings(report, "acdd:1.3")) - {WITHOUT_A_NAME} for name, report in reports.items()}
    assert {name: said for name, said in left.items() if said} == {}
    assert all(report["acdd:1.3"]["possible_points"] > 50 for report in reports.values())


def test_the_checker_tells_a_product_that_does_not_follow_cf(cubes: dict[str, xr.Dataset], tmp_path: Path) -> None:
    (file,) = netcdf(cubes["final"], tmp_path, "bad", Cut("final"))
    with netCDF4.Dataset(file, "a") as data:
        data["pm2p5"].units = "km"
        del data.creator_name
    program = str(Path(sys.executable).with_name("compliance-checker"))
    command = [program, "-t", "cf:1.11", "-t", "acdd:1.3", "--criteria", "normal", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert 'Units "km" for variable pm2p5 must be convertible' in done.stdout
    assert "creator_name not present" in done.stdout


# ---- headers ----


def header(file: Path) -> str:
    """`ncdump -h` of a file, but for versions, the times of its making and PROJ's wording of a CRS."""
    command = ["ncdump", "-h", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    text = re.sub(r":(date_created|history|code_version|package_versions) = .*;", r":\1 = ... ;", text)
    text = re.sub(r':crs_wkt = "(\w+)\[.*;', r':crs_wkt = "\1[...]" ;', text)
    return re.sub(r"urn:uuid:[0-9a-f-]+", "urn:uuid:...", text)


@pytest.mark.skipif(shutil.which("ncdump") is None, reason="needs ncdump")
@pytest.mark.parametrize("kind", ["interim hourly", "interim daily", "interim monthly", "lambert hourly", "points"])
def test_headers_stay_as_they_are(products: dict[str, Path], kind: str) -> None:
    """Where a change is meant: AQNET_WRITE_HEADERS=1 writes them anew, to be read and committed."""
    kept, found = GOLDEN / f"{kind.replace(' ', '-')}.cdl", header(products[kind])
    if os.environ.get("AQNET_WRITE_HEADERS"):
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(found)
    assert found == kept.read_text()


# ---- GeoZarr ----


@pytest.mark.parametrize("name", ["interim", "lambert", "rotated"])
def test_geozarr_says_where_each_cell_is(cubes: dict[str, xr.Dataset], name: str, tmp_path: Path) -> None:
    path = export.export_zarr(
        cubes[name], tmp_path / "x.zarr", bbox=(119.2, 36.2, 120.3, 37.3) if name == "interim" else None
    )
    group = zarr.open_group(path, mode="r")
    said, (rows, columns) = dict(group.attrs), group.attrs["spatial:dimensions"]
    assert {convention["name"] for convention in said["zarr_conventions"]} == {"proj:", "spatial:", "CF"}
    assert said["spatial:shape"] == [*group["pm2p5"].shape[1:]]
    dx, _, left, _, dy, bottom = said["spatial:transform"]
    np.testing.assert_allclose(left + dx * (np.arange(said["spatial:shape"][1]) + 0.5), group[columns][:], atol=1e-9)
    np.testing.assert_allclose(bottom + dy * (np.arange(said["spatial:shape"][0]) + 0.5), group[rows][:], atol=1e-9)
    assert CRS.from_wkt(said["proj:wkt2"]) == CRS.from_cf(dict(group["crs"].attrs))
    assert said.get("proj:code") == ("EPSG:4326" if name == "interim" else None)
    edges = [left, bottom, left + dx * said["spatial:shape"][1], bottom + dy * said["spatial:shape"][0]]
    np.testing.assert_allclose(said["spatial:bbox"], edges, atol=1e-9)


def test_the_cube_itself_is_geozarr(tmp_path: Path) -> None:
    made(tmp_path / "cube", LAMBERT)
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(str(tmp_path / "cube")))
    group = zarr.open_group(repo.readonly_session("main").store, mode="r")
    assert group.attrs["spatial:transform"] == [12_000, 0, -30_000, 0, 12_000, -96_000]
