"""Gridded covariates from file to product: what is read of CF files, what is refused, and what a run gains."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from scipy.ndimage import gaussian_filter

from pipeline import analyse, covariates, output, provenance, qc, sources, stages
from pipeline.config import Covariate, from_sources
from pipeline.contract import HOUR
from pipeline.covariates import Sampler, check, open_all, open_field
from pipeline.cube import reader
from pipeline.errors import ConfigError
from pipeline.grid import Grid, terrain
from pipeline.harmonise import to_cube
from pipeline.twin import simulate
from pipeline.twin.simulate import Simulation

START = np.datetime64("2019-12-01T00", "h")
FIRST = int(START.astype(np.int64))
LAT, LON = np.arange(30.0, 41.0), np.arange(100.0, 121.0)
GEOGRAPHIC = {"lat": {"units": "degrees_north"}, "lon": {"units": "degrees_east"}}
#: Places within the grid, one of them at a node.
AT_LON, AT_LAT = np.array([105.3, 110.0, 119.9]), np.array([33.7, 35.0, 30.2])

Array = NDArray[np.float64]


def plane(lon: Array, lat: Array, hour: Array | float = 0.0) -> Array:
    """Linear in everything, so that linear interpolation is exact."""
    return np.asarray(500 + 2 * lon - 3 * lat + 5 * np.asarray(hour)[..., None, None])


def field(hours: Array | None = None, lat: Array = LAT, lon: Array = LON, **attrs: str) -> xr.Dataset:
    """`plane` as variable ``x`` (m), hourly or static."""
    values = plane(lon[None, :], lat[:, None], 0.0 if hours is None else hours)
    dims = ("lat", "lon") if hours is None else ("time", "lat", "lon")
    data = xr.Dataset({"x": (dims, values, {"units": "m"} | attrs)}, {"lat": lat, "lon": lon})
    for name, about in GEOGRAPHIC.items():
        data[name].attrs = about
    if hours is not None:
        data = data.assign_coords(time=("time", hours, {"units": "hours since 2019-12-01 00:00:00"}))
    return data


def save(data: xr.Dataset, folder: Path, name: str = "x.nc", **options: object) -> Path:
    path = folder / name
    if name.endswith(".zarr"):
        data.to_zarr(path, consolidated=False)
    else:
        data.to_netcdf(path, **options)
    return path


def spec(path: Path, **change: str) -> Covariate:
    return Covariate(**({"path": path, "variable": "x"} | change))


def sample(path: Path, hours: Array | list[int], two_sided: bool = False, **change: str) -> Array:
    """Values (T, 3) at the places, in hours from `START`."""
    known = open_all([spec(path, **change)])
    return Sampler(known, AT_LON, AT_LAT, two_sided)(FIRST + np.asarray(hours, np.int64))[0]


def at_places(hour: float) -> Array:
    return 500 + 2 * AT_LON - 3 * AT_LAT + 5 * hour


# ---- what is read ----


@pytest.mark.parametrize("name", ["x.nc", "x.zarr"])
def test_a_static_field_is_linear_between_its_nodes(tmp_path: Path, name: str):
    found = sample(save(field(), tmp_path, name), [0, 5, 1000])
    np.testing.assert_allclose(found, [at_places(0)] * 3, rtol=1e-6)


@pytest.mark.parametrize("name", ["x.nc", "x.zarr"])
def test_an_hourly_field_gives_each_hour_its_own(tmp_path: Path, name: str):
    found = sample(save(field(np.arange(60)), tmp_path, name), [0, 30, 59])
    np.testing.assert_allclose(found, [at_places(hour) for hour in (0, 30, 59)], rtol=1e-6)


def test_latitudes_from_north_and_longitudes_from_west_are_the_same_field(tmp_path: Path):
    plain = field(np.arange(3))
    turned = plain.isel(lat=slice(None, None, -1)).assign_coords(lon=("lon", LON - 360, GEOGRAPHIC["lon"]))
    for name, data in (("a.nc", plain), ("b.nc", turned), ("c.nc", plain.transpose("lon", "lat", "time"))):
        np.testing.assert_allclose(sample(save(data, tmp_path, name), [1]), [at_places(1)], rtol=1e-6)


def test_a_field_round_the_earth_has_no_seam(tmp_path: Path):
    """Cells at 0, 2 ... 358 degrees: 359 and 0.5 W lie between the last and the first column."""
    lon = np.arange(0.0, 360.0, 2.0)
    values = np.cos(np.radians(lon))[None, :] + 0 * LAT[:, None]
    data = field(lat=LAT, lon=lon)
    data["x"] = (("lat", "lon"), values, {"units": "1"})
    known = open_all([spec(save(data, tmp_path))])
    places = np.array([359.0, -0.5, 359.5, 179.0, -181.0])
    found = Sampler(known, places, np.full(5, 35.0))(np.array([FIRST]))[0, 0]
    np.testing.assert_allclose(found, np.cos(np.radians(places)), atol=2e-4)


def test_longitudes_may_jump_at_the_date_line(tmp_path: Path):
    lon = np.array([170.0, 175.0, 180.0, -175.0, -170.0])
    data = field(lat=LAT, lon=lon)
    data["x"] = (("lat", "lon"), np.arange(5.0)[None] + 0 * LAT[:, None], {"units": "1"})
    known = open_all([spec(save(data, tmp_path))])
    found = Sampler(known, np.array([172.5, 177.5, -177.5, 187.5]), np.full(4, 35.0))(np.array([FIRST]))[0, 0]
    np.testing.assert_allclose(found, [0.5, 1.5, 2.5, 3.5])


def test_packed_values_and_fill_values_are_decoded(tmp_path: Path):
    data = field(np.arange(2))
    data["x"][1] = np.nan
    packing = {"x": {"dtype": "int16", "scale_factor": 0.1, "add_offset": 500.0, "_FillValue": -32768}}
    found = sample(save(data, tmp_path, encoding=packing), [0, 1])
    np.testing.assert_allclose(found[0], at_places(0), atol=0.06)
    assert np.isnan(found[1]).all()


def test_a_projected_field_is_read_by_its_grid_mapping(tmp_path: Path):
    crs = CRS.from_epsg(32650)
    x, y = np.arange(-1000.0, 1200.0, 20), np.arange(3200.0, 4600.0, 20)  # km
    lon, lat = Transformer.from_crs(crs, 4326, always_xy=True).transform(*np.meshgrid(1000 * x, 1000 * y))
    coords = {
        "x_km": ("x_km", x, {"units": "km", "standard_name": "projection_x_coordinate"}),
        "y_km": ("y_km", y, {"units": "km", "standard_name": "projection_y_coordinate"}),
    }
    values = 500 + 2 * lon - 3 * lat
    data = xr.Dataset({"x": (("y_km", "x_km"), values, {"units": "m", "grid_mapping": "utm"})}, coords)
    data["utm"] = ((), 0, crs.to_cf())
    np.testing.assert_allclose(sample(save(data, tmp_path), [0])[0], at_places(0), atol=0.02)
    del data["x"].attrs["grid_mapping"]
    with pytest.raises(ConfigError, match=r"y\.nc.*expected a grid mapping that PROJ knows; found None"):
        open_field(spec(save(data, tmp_path, "y.nc")))


def test_one_time_is_a_static_field(tmp_path: Path):
    np.testing.assert_allclose(sample(save(field(np.array([7])), tmp_path), [0, 99]), [at_places(7)] * 2, rtol=1e-6)


def test_a_level_of_one_is_no_dimension(tmp_path: Path):
    data = field(np.arange(3)).expand_dims(height=[10.0])
    np.testing.assert_allclose(sample(save(data, tmp_path), [2]), [at_places(2)], rtol=1e-6)


# ---- time ----


def test_between_times_the_last_one_counts_for_one_step(tmp_path: Path):
    """Every third hour: nothing of hour 3 is known in hour 2, and in hour 9 the one of hour 6 is too old."""
    path = save(field(np.array([0, 3, 6])), tmp_path)
    found = sample(path, [-1, 0, 1, 2, 3, 8, 9])
    expected = np.array([at_places(hour) for hour in (0, 0, 0, 0, 3, 6, 6)])
    expected[[0, 6]] = np.nan
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_two_sided_it_is_linear_between_times(tmp_path: Path):
    found = sample(save(field(np.array([0, 3, 6])), tmp_path), [1, 2, 3, 7], two_sided=True)
    np.testing.assert_allclose(found, [at_places(hour) for hour in (1, 2, 3, 6)], rtol=1e-6)


def test_a_gap_of_times_is_not_bridged(tmp_path: Path):
    path = save(field(np.array([0, 1, 2, 8, 9, 10])), tmp_path)
    for two_sided in (False, True):
        assert np.isfinite(sample(path, [2, 3, 7, 8], two_sided)).all(axis=1).tolist() == [True, False, False, True]


def test_a_time_within_an_hour_belongs_to_the_hour(tmp_path: Path):
    found = sample(save(field(np.arange(5) + 0.5), tmp_path), [2])
    np.testing.assert_allclose(found, [at_places(2.5)], rtol=1e-6)


# ---- where nothing is known ----


def test_outside_the_grid_nothing_is_known(tmp_path: Path):
    """Half a cell beyond the outer centres is still the grid."""
    known = open_all([spec(save(field(), tmp_path))])
    lon, lat = np.array([99.4, 99.6, 120.4, 120.6, 110.0, 110.0]), np.array([35.0, 35.0, 35.0, 35.0, 29.4, 40.4])
    found = Sampler(known, lon, lat)(np.array([FIRST]))[0, 0]
    assert np.isfinite(found).tolist() == [False, True, True, False, False, True]
    assert found[1] == pytest.approx(500 + 200 - 105)


def test_missing_cells_count_by_their_weight(tmp_path: Path):
    data = field()
    data["x"].loc[{"lon": 105.0}] = np.nan
    known = open_all([spec(save(data, tmp_path))])
    found = Sampler(known, np.array([105.3, 105.7, 106.0]), np.full(3, 35.0))(np.array([FIRST]))[0, 0]
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], [500 + 212 - 105] * 2)


def test_what_is_unknown_is_counted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    sampler = Sampler(open_all([spec(save(field(), tmp_path))]), np.array([50.0, 110.0]), np.array([35.0, 35.0]))
    sampler(FIRST + np.arange(10))
    with caplog.at_level(logging.WARNING):
        sampler.warn("estimates")
    assert caplog.messages == ["covariates (x) are unknown at 10 of 20 estimates, which are made without any"]


@pytest.mark.parametrize(
    ("how", "expected"), [("none", [1.0, 8.0]), ("log", [0.0, np.log(8)]), ("cuberoot", [1.0, 2.0])]
)
def test_transforms(tmp_path: Path, how: str, expected: list[float]):
    data = field()
    data["x"] = (("lat", "lon"), np.where(LON > 109.5, 8.0, 1.0)[None] + 0 * LAT[:, None], {"units": "1"})
    data["x"][:, 0] = -1.0
    known = open_all([spec(save(data, tmp_path), transform=how)])
    found = Sampler(known, np.array([105.0, 115.0, 100.0]), np.full(3, 35.0))(np.array([FIRST]))[0, 0]
    np.testing.assert_allclose(found[:2], expected, rtol=1e-6)
    assert np.isnan(found[2]) == (how == "log")


@pytest.mark.parametrize(("units", "factor"), [("kg m-3", 1e-9), ("µg m-3", 1.0), ("ug/m3", 1.0), ("mg m-3", 1e-3)])
def test_a_background_is_the_cube_root_of_ug_m3(tmp_path: Path, units: str, factor: float):
    data = field()
    data["x"] = (("lat", "lon"), np.full((11, 21), 64.0 * factor), {"units": units})
    np.testing.assert_allclose(sample(save(data, tmp_path), [0], kind="background"), np.full((1, 3), 4.0), rtol=1e-6)


# ---- what is refused ----


def no_units(data: xr.Dataset) -> xr.Dataset:
    del data["x"].attrs["units"]
    return data


def no_axis(data: xr.Dataset) -> xr.Dataset:
    del data["lat"].attrs["units"]
    return data


def other_calendar(data: xr.Dataset) -> xr.Dataset:
    data["time"].attrs["calendar"] = "360_day"
    return data


def repeated(data: xr.Dataset) -> xr.Dataset:
    return xr.concat([data, data], "time")


def levels(data: xr.Dataset) -> xr.Dataset:
    return data.expand_dims(height=[10.0, 20.0]).copy()


@pytest.mark.parametrize(
    ("spoil", "change", "message"),
    [
        (no_units, {}, r"variable 'x': expected an attribute 'units' .*; found none"),
        (no_axis, {}, r"variable 'x': expected dimensions with coordinates latitude .*; found time, lat, lon"),
        (other_calendar, {}, r"variable 'x': expected times in the standard calendar; found '360_day'"),
        (repeated, {}, r"variable 'x': expected times in order, at most one an hour; found 6 times"),
        (levels, {}, r"variable 'x': expected dimensions time, latitude and longitude; found height \(2\) too"),
        (lambda data: data, {"variable": "blh"}, r"expected a variable 'blh'; found x"),
        (
            lambda data: data,
            {"kind": "background"},
            r"variable 'x': expected a background in one of ug m-3, .*; found units 'm'",
        ),
        (lambda data: data.isel(lat=[0]), {}, r"variable 'x': expected two or more values of 'lat' in order; found 1"),
        (
            lambda data: data.isel(lat=[0, 4, 2]),
            {},
            r"variable 'x': expected two or more values of 'lat' in order; found 3",
        ),
    ],
)
def test_a_file_that_is_not_what_was_declared_is_named(
    tmp_path: Path, spoil: object, change: dict[str, str], message: str
):
    path = save(spoil(field(np.arange(3))), tmp_path)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=rf"x\.nc: {message}"):
        open_field(spec(path, **change))


def test_what_is_no_netcdf_is_named(tmp_path: Path):
    text, folder = tmp_path / "x.nc", tmp_path / "x.zarr"
    text.write_text("lat,lon,x\n")
    folder.mkdir()
    for path in (text, folder):
        with pytest.raises(ConfigError, match=rf"{path.name}: expected a NetCDF file or Zarr folder; found"):
            open_field(spec(path))


def test_a_field_that_covers_nothing_of_the_run_is_refused(tmp_path: Path):
    known = open_all([spec(save(field(np.arange(48)), tmp_path))])
    here, elsewhere = Grid((110.0, 33.0, 112.0, 35.0), 0.5), Grid((10.0, 50.0, 12.0, 52.0), 0.5)
    check(known, here, START, START + 24)
    with pytest.raises(ConfigError, match=r"x\.nc: variable 'x': .* bbox \(10.*; found 100 .. 120 by 30 .. 40"):
        check(known, elsewhere, START, START + 24)
    with pytest.raises(ConfigError, match=r"expected hours from 2020.*; found 2019-12-01T00 to 2019-12-02T23"):
        check(known, here, START + 9000, START + 9024)


def test_two_files_of_one_name_are_refused(tmp_path: Path):
    (tmp_path / "other").mkdir()
    paths = save(field(), tmp_path), save(field(), tmp_path / "other")
    with pytest.raises(ConfigError, match="expected files of different names"):
        open_all([spec(path) for path in paths])


# ---- configuration ----


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, object]:
    observed = tmp_path / "observed.csv"
    observed.touch()
    rest = {"start": "2019-12-01", "end": "2019-12-02", "bbox": (110.0, 33.0, 112.0, 35.0), "out": tmp_path / "out"}
    return {"source": "table", "input": observed} | rest


def test_covariates_are_read_from_the_file(fields: dict[str, object], tmp_path: Path):
    path, toml = save(field(), tmp_path), tmp_path / "run.toml"
    toml.write_text(
        f'[[covariates]]\npath = "{path}"\nvariable = "x"\ntransform = "log"\n'
        f'[[covariates]]\npath = "{path}"\nvariable = "y"\nkind = "background"\n'
    )
    found = from_sources(toml, fields).covariates
    assert [(c.path, c.variable, c.kind, c.how) for c in found] == [
        (path, "x", "feature", "log"),
        (path, "y", "background", "cuberoot"),
    ]


def test_covariates_are_read_from_the_environment(
    fields: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = save(field(), tmp_path)
    monkeypatch.setenv("AQNET_COVARIATES", json.dumps([{"path": str(path), "variable": "x"}]))
    assert from_sources(None, fields).covariates == (spec(path),)
    monkeypatch.setenv("AQNET_COVARIATES", "x.nc")
    with pytest.raises(ConfigError, match=r"AQNET_COVARIATES: expected a list in JSON; found 'x\.nc'"):
        from_sources(None, fields)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('variable = "x"', r"covariates 1 path: .*required"),
        ('path = "/nowhere.nc"\nvariable = "x"', r"covariates 1 path: .* found nothing at /nowhere\.nc"),
        ('path = "."\nvariable = "x"\nkind = "wind"', r"covariates 1 kind: .*'background' or 'feature'; found 'wind'"),
        ('path = "."\nvariable = "x"\nheight = 2', r"covariates 1 height: unknown key; expected one of path, variable"),
        ('path = "."\nvariable = "x"\nkind = "background"\ntransform = "log"', r"covariates 1: expected a background"),
    ],
)
def test_bad_entries_are_told_with_their_number(fields: dict[str, object], tmp_path: Path, entry: str, message: str):
    toml = tmp_path / "run.toml"
    toml.write_text(f"[[covariates]]\n{entry}\n")
    with pytest.raises(ConfigError, match=message):
        from_sources(toml, fields)


def test_without_covariates_the_digest_is_as_it_was(fields: dict[str, object], tmp_path: Path):
    """SHA-256 of the other fields alone, so that products of before and after compare."""
    config = from_sources(None, fields)
    values = config.model_dump(mode="json", exclude={"out", "covariates"}) | {"input": "observed.csv"}
    assert config.digest() == hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    path = save(field(), tmp_path)
    digests = {from_sources(None, fields | {"covariates": [spec(path, transform=how)]}).digest() for how in HOWS}
    assert len(digests | {config.digest()}) == 4


HOWS = ("none", "log", "cuberoot")


def test_digests_are_of_what_the_files_hold(tmp_path: Path):
    file, folder = save(field(), tmp_path), save(field(), tmp_path, "y.zarr")
    before = covariates.digests([spec(file), spec(folder)])
    assert before["x.nc"] == provenance.digest_file(file)
    chunk = next(path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "zarr.json")
    chunk.write_bytes(chunk.read_bytes() + b"0")
    after = covariates.digests([spec(file), spec(folder)])
    assert (after["x.nc"] == before["x.nc"], after["y.zarr"] == before["y.zarr"]) == (True, False)


# ---- a run ----


def background_of(simulation: Simulation, path: Path) -> Path:
    """A made-up chemistry model: the truth, smoothed by 15 km and 40 % too high, in kg m-3 from the north."""
    truth = simulate.read_truth(simulation.truth)
    smooth = [gaussian_filter(hour, 1.4, mode="nearest") for hour in truth.values]
    model = xr.DataArray(1.4e-9 * np.stack(smooth), truth.coords, truth.dims, attrs={"units": "kg m-3"})
    model.isel(lat=slice(None, None, -1)).to_dataset(name="pm2p5").to_netcdf(path)
    return path


@pytest.fixture(scope="module")
def model_file(small_simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return background_of(small_simulation, tmp_path_factory.mktemp("model") / "model.nc")


def make_run(simulation: Simulation, weights: Path, out: Path, *known: Covariate) -> stages.Run:
    """Two days in all, with two days of lead of which the model has the hours."""
    fields: dict[str, object] = {"input": simulation.archive, "stations": simulation.stations, "weights": weights}
    fields |= {"start": "2019-12-02", "end": "2019-12-04", "bbox": simulation.bbox, "resolution": 0.2, "out": out}
    config = from_sources(None, fields | ({"covariates": known} if known else {}))
    return stages.make(config, "by-hand")


@pytest.fixture(scope="module")
def runs(
    small_simulation: Simulation, weights: Path, model_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[stages.Run, stages.Run]:
    """Without, with a background."""
    known = Covariate(path=model_file, variable="pm2p5", kind="background")
    out = tmp_path_factory.mktemp("covariates")
    return make_run(small_simulation, weights, out / "a"), make_run(small_simulation, weights, out / "b", known)


def error_of(run: stages.Run, simulation: Simulation) -> float:
    """RMSE of the mean on land cells, ug m-3, against the simulated field."""
    cube = reader.open_cube(run.candidate.path)
    own = slice(run.hours[0], run.hours[1] - HOUR)
    truth = simulate.read_truth(simulation.truth).sel(time=own).sel(lat=cube["lat"], lon=cube["lon"], method="nearest")
    return float(np.sqrt(np.nanmean((cube["pm2p5"].sel(time=own).values - truth.values)[:, run.grid.land] ** 2)))


def test_a_run_gains_from_a_background(runs: tuple[stages.Run, stages.Run], small_simulation: Simulation):
    without, with_it = (error_of(run, small_simulation) for run in runs)
    assert with_it < 0.85 * without
    mae = [run.scores[0].loc["AQ-Net", "mae_median"] for run in runs]
    assert mae[1] < mae[0]  # at stations withheld, too


def test_a_run_with_covariates_says_so(runs: tuple[stages.Run, stages.Run], model_file: Path):
    plain, run = (reader.open_cube(run.candidate.path).attrs for run in runs)
    assert "covariates" not in plain
    assert run["covariates"] == "pm2p5 of model.nc (background, transform cuberoot)"
    inputs = json.loads(runs[1].files["lineage"].read_text())["inputs"]
    assert inputs.pop("model.nc") == provenance.digest_file(model_file)
    assert inputs == runs[0].inputs
    assert run["input_digest"] != plain["input_digest"]
    assert run["config_digest"] != plain["config_digest"]


def test_without_covariates_no_code_of_them_runs(
    small_simulation: Simulation,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runs: tuple[stages.Run, stages.Run],
):
    """So that every bit of a run is what it was."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("covariates were used")

    monkeypatch.setattr(analyse, "background", fail)
    monkeypatch.setattr(covariates, "Sampler", fail)
    again = make_run(small_simulation, weights, tmp_path)
    before, after = (reader.open_cube(run.candidate.path) for run in (runs[0], again))
    for name in ("pm2p5", "pm2p5_p05", "pm2p5_p95"):
        np.testing.assert_array_equal(after[name], before[name])


def test_a_bad_covariate_stops_a_run_before_any_work(small_simulation: Simulation, weights: Path, tmp_path: Path):
    known = spec(save(field(), tmp_path, "x.nc"), variable="wrong")
    with pytest.raises(ConfigError, match=r"x\.nc: expected a variable 'wrong'; found x"):
        make_run(small_simulation, weights, tmp_path / "out", known)
    assert not (tmp_path / "out" / output.CUBE).exists()


def terrain_file(path: Path, bbox: tuple[float, float, float, float]) -> Path:
    lon, lat = np.arange(bbox[0], bbox[2], 0.1), np.arange(bbox[1], bbox[3], 0.1)
    data = field(lat=lat, lon=lon)
    data["x"] = (("lat", "lon"), terrain(*np.meshgrid(lon, lat)), {"units": "m", "standard_name": "surface_altitude"})
    return save(data, path.parent, path.name)


def test_terrain_as_a_covariate_of_the_real_network_breaks_nothing(shared_data: Path, weights: Path, tmp_path: Path):
    """Three days of CNEMC: estimates stay finite, ordered, and about as they were."""
    start, end, bbox = (
        np.datetime64("2019-01-10T00", "h"),
        np.datetime64("2019-01-11T00", "h"),
        (112.0, 35.0, 118.0, 40.0),
    )
    archive = shared_data / "cnemc"
    first = start - 72 * HOUR
    tables = sources.read("cnemc", archive, archive / "stations.csv", first, end, bbox, "keep", bbox)
    cube, grid = qc.flag(to_cube(tables, first, end), first), Grid(bbox, 0.25)
    known = open_all([spec(terrain_file(tmp_path / "height.nc", (111.0, 34.0, 119.0, 41.0)))])
    network = analyse.load(weights)
    plain, found = (next(analyse.fields(cube, grid, start, end, network, some)) for some in ((), known))
    assert np.isfinite(found["pm2p5"].values[:, grid.land]).all()
    assert (found["pm2p5_p05"].values <= found["pm2p5_p95"].values)[:, grid.land].all()
    np.testing.assert_allclose(found["pm2p5_p50"].mean(), plain["pm2p5_p50"].mean(), rtol=0.1)
