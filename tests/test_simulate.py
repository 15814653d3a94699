from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipeline.errors import ConfigError, InputError
from pipeline.grid import Grid
from pipeline.twin.simulate import LABEL, Simulation, read_truth, simulate
from pipeline.twin.truth import Lattice, RandomField, Scale, diurnal

BBOX = (108.0, 33.0, 120.0, 41.0)
SMALL = (115.0, 35.0, 118.0, 38.0)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    return simulate(tmp_path_factory.mktemp("twin"), seed=3, days=8, bbox=BBOX, n_stations=240)


@pytest.fixture(scope="module")
def rows(twin: Simulation) -> pd.DataFrame:
    """The archive as it is written, with the UTC start of each row's hour."""
    frames = []
    for path in sorted(twin.archive.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            frames += [pd.read_csv(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    table = pd.concat(frames, ignore_index=True)
    time = pd.to_datetime(table["date"].astype(str)) + pd.to_timedelta(table["hour"] - 9, unit="h")
    return table.set_index([table["type"], time.rename("time")]).drop(columns=["date", "hour", "type"])


@pytest.fixture(scope="module")
def log_pm25(twin: Simulation, rows: pd.DataFrame) -> pd.DataFrame:
    """log(PM2.5 + 1), (hours, stations), without the planted faults."""
    values = rows.loc["PM2.5"].copy()
    for fault in pd.read_csv(twin.faults, parse_dates=["start", "end"]).itertuples():
        if fault.pollutant == "pm2p5":
            values.loc[fault.start : fault.end - pd.Timedelta("1h"), fault.station] = np.nan
    return np.log1p(values)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(tmp_path / name, seed=seed, days=1, bbox=SMALL, n_stations=20)
    first, again, other = (digests(tmp_path / name) for name in "abc")
    assert first == again
    assert all(first[name] != other[name] for name in first)
    simulate(tmp_path / "c", seed=1, days=1, bbox=SMALL, n_stations=20)
    assert digests(tmp_path / "c") == first, "a folder used before holds nothing of the earlier simulation"


def test_everything_says_simulated(twin: Simulation) -> None:
    stations = pd.read_csv(twin.stations)
    assert stations["name"].str.startswith("SIMULATED").all()
    assert "SIMULATED" in twin.truth.with_name("README.md").read_text()
    assert read_truth(twin.truth).attrs["simulated"].startswith("SIMULATED")


def test_stations_are_on_land_in_cities_with_codes_no_real_station_has(twin: Simulation) -> None:
    stations = pd.read_csv(twin.stations)
    assert list(stations) == ["code", "name", "city", "lon", "lat"]
    assert len(stations) == stations["code"].nunique() == 240
    assert stations["code"].str.fullmatch(r"9\d{3}A").all()
    assert stations["lon"].between(108, 120).all()
    assert stations["lat"].between(33, 41).all()
    assert 35 < stations["city"].nunique() < 60


def test_truth_is_on_the_cell_centres_of_the_grid(twin: Simulation) -> None:
    truth, grid = read_truth(twin.truth), Grid(BBOX, 0.1)
    assert truth.dtype == np.float32
    assert truth.dims == ("time", "lat", "lon")
    np.testing.assert_array_equal(truth["lat"], grid.lat)
    np.testing.assert_array_equal(truth["lon"], grid.lon)
    np.testing.assert_array_equal(truth["time"], np.arange("2019-12-01", "2019-12-09", dtype="M8[h]"))
    assert bool((truth >= 1).all())


def test_archive_covers_the_truth_and_its_lead_in_whole_days(twin: Simulation, rows: pd.DataFrame) -> None:
    times = rows.loc["PM2.5"].index
    assert times.is_unique
    assert times[0] <= twin.start - np.timedelta64(96, "h")
    assert times[-1] >= twin.end - np.timedelta64(1, "h")
    missing = pd.date_range(times[0], times[-1], freq="h").difference(times)
    labels = times.append(missing) + pd.Timedelta(LABEL)
    assert (labels.to_series().groupby(labels.date).size() == 24).all()
    assert len(missing) == 1
    assert set(rows.index.get_level_values(0)) == {"PM2.5", "PM10", "SO2", "NO2", "O3", "CO"}


def test_observations_fit_the_truth_of_their_own_hour_only(twin: Simulation, log_pm25: pd.DataFrame) -> None:
    stations = pd.read_csv(twin.stations).set_index("code")
    place = {"lon": stations["lon"].to_xarray(), "lat": stations["lat"].to_xarray()}
    true = np.log1p(read_truth(twin.truth).interp(place)).to_pandas()
    errors = {}
    for shift in (-8, -1, 0, 1, 8):
        seen = log_pm25.shift(shift).reindex(true.index)[true.columns]
        errors[shift] = float(np.nanstd(seen - true))
    assert min(errors, key=errors.__getitem__) == 0
    assert 0.15 < errors[0] < 0.30


def test_nugget_autocorrelation_and_diurnal_cycle_are_those_of_the_real_network(
    twin: Simulation, log_pm25: pd.DataFrame
) -> None:
    stations = pd.read_csv(twin.stations).set_index("code")
    values = log_pm25[stations.index].to_numpy()
    km = 111.2 * np.stack([stations["lon"] * np.cos(np.radians(37)), stations["lat"]], axis=-1)
    i, j = np.triu_indices(len(km), 1)
    distance = np.hypot(*(km[i] - km[j]).T)
    semivariance = np.nanmean((values[:, i] - values[:, j]) ** 2, axis=0) / 2
    near, middle, far = (
        semivariance[(distance > a) & (distance < b)].mean() for a, b in ((1, 6), (60, 120), (250, 500))
    )
    assert 0.18**2 < near < 0.27**2  # a standard deviation of about 0.22
    assert near < 0.6 * middle < 0.6 * far
    pairs = pd.DataFrame({"now": values[1:].ravel(), "before": values[:-1].ravel()}).dropna()
    assert 0.92 < pairs.corr().iloc[0, 1] < 0.98
    hour = (log_pm25.index.hour + 8) % 24
    cycle = (log_pm25 - log_pm25.mean()).groupby(hour).mean().mean(axis=1)
    assert cycle.loc[13:16].mean() < cycle.loc[20:23].mean() - 0.15
    assert 3.0 < np.nanmean(values) < 4.8
    assert 0.5 < np.nanstd(values) < 1.1


def test_planted_faults_are_in_the_files(twin: Simulation, rows: pd.DataFrame) -> None:
    faults = pd.read_csv(twin.faults, parse_dates=["start", "end"])
    assert set(faults["fault"]) == {
        "network_missing", "stuck_sensor", "zero_as_missing", "spike", "pm10_below_pm2p5", "unit_error", "outage",
    }  # fmt: skip
    for fault in faults.itertuples():
        last = fault.end - pd.Timedelta("1h")
        if fault.fault == "network_missing":
            assert fault.start not in rows.loc["PM2.5"].index
            continue
        pm25, pm10, co = (rows.loc[name].loc[fault.start : last, fault.station] for name in ("PM2.5", "PM10", "CO"))
        found = {
            "stuck_sensor": pm25.nunique() == 1,
            "zero_as_missing": bool((pm25 == 0).all()),
            "spike": bool((pm25 >= 400).all()),
            "pm10_below_pm2p5": bool((pm10.dropna() < pm25[pm10.notna()]).all()),
            "unit_error": bool((co.dropna() >= 100).all()),
            "outage": bool(pm25.isna().all() and pm10.isna().all() and co.isna().all()),
        }
        assert found[fault.fault], fault


def test_other_pollutants_are_plausible(rows: pd.DataFrame) -> None:
    median = {name: float(np.nanmedian(rows.loc[name])) for name in ("PM2.5", "PM10", "SO2", "NO2", "O3", "CO")}
    assert median["PM2.5"] < median["PM10"]
    assert 8 < median["SO2"] < 20
    assert 25 < median["NO2"] < 60
    assert 0.5 < median["CO"] < 2
    ozone = rows.loc["O3"].mean(axis=1)
    hour = (ozone.index.hour + 8) % 24
    assert ozone[hour == 14].mean() > 2 * ozone[hour == 8].mean()
    pm25 = rows.loc["PM2.5"].to_numpy().ravel()
    for name, low, high in (("PM10", 0.7, 1.0), ("NO2", 0.4, 0.9), ("CO", 0.4, 0.9), ("O3", -0.8, -0.2)):
        both = pd.DataFrame({"a": pm25, "b": rows.loc[name].to_numpy().ravel()}).dropna()
        assert low < both.corr(method="spearman").iloc[0, 1] < high, name


def test_random_field_has_the_covariance_it_was_asked_for() -> None:
    scale = Scale(length_km=60, variance=0.5, memory_h=5, drift=1.0)
    rng = np.random.default_rng(0)
    field = RandomField(rng, (40, 50), (10.0, 10.0), [scale])
    hours = []
    for _ in range(400):
        hours.append(field.value())
        field.advance(np.array([20.0, 0.0]))
    values = np.stack(hours)
    assert values.var() == pytest.approx(0.5, rel=0.15)
    apart = (values[:, :, 6:] * values[:, :, :-6]).mean()  # 60 km
    assert apart == pytest.approx(0.5 * np.exp(-0.5), rel=0.2)
    carried = (values[1:, :, 2:] * values[:-1, :, :-2]).mean()  # an hour later, 20 km to the east
    assert carried == pytest.approx(0.5 * np.exp(-1 / 5), rel=0.15)
    assert carried > 1.2 * (values[1:, :, :-2] * values[:-1, :, 2:]).mean()


def test_bilinear_reproduces_a_plane_and_its_rows_sum_to_one() -> None:
    lattice = Lattice((10.0, 50.0, 12.0, 51.0))
    rng = np.random.default_rng(1)
    lon, lat = rng.uniform(10, 12, 50), rng.uniform(50, 51, 50)
    matrix = lattice.bilinear(lon, lat)
    plane = 3 * lattice.lat[:, None] - 2 * lattice.lon[None, :]
    np.testing.assert_allclose(matrix @ plane.ravel(), 3 * lat - 2 * lon)
    np.testing.assert_allclose(matrix.sum(axis=1), 1)


def test_diurnal_cycle_follows_the_sun_not_the_clock() -> None:
    time = np.datetime64("2019-12-01T06", "h")
    assert diurnal(time, np.array([120.0])) == pytest.approx(
        diurnal(time + np.timedelta64(2, "h"), np.array([90.0])), abs=1e-12
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": "2019-12-01T00:30"}, "start: expected a whole hour"),
        ({"days": 0}, "days: expected at least 1"),
        ({"n_stations": 1000}, "stations: expected 1 to 999"),
        ({"bbox": (150.0, 20.0, 155.0, 25.0)}, "bbox: expected some land"),
        ({"bbox": (110.0, 20.0, 120.0, 10.0)}, "bbox: expected south < north"),
    ],
)
def test_arguments_that_make_no_simulation_are_refused(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_read_truth_refuses_another_file(tmp_path: Path) -> None:
    xr.Dataset({"pm2p5": ("x", [1.0])}).to_netcdf(tmp_path / "other.nc")
    with pytest.raises(InputError, match=r"other\.nc: expected the truth\.nc of aqnet simulate"):
        read_truth(tmp_path / "other.nc")
