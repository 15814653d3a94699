"""From a station cube to fields and to tables at points: contract, sea, flags, distances, and no peeking."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from pyproj import Geod

from model import checkpoint, infer
from model.aqnet import AQNet, AQNetConfig
from model.windows import Observations, Points
from pipeline import analyse, qc
from pipeline.contract import HOUR, QUALITY_BITS, check_cube
from pipeline.errors import ConfigError, InputError
from pipeline.grid import Grid, relief
from pipeline.harmonise import to_cube

TINY = AQNetConfig(
    near=4,
    lead_hours=6,
    tail_hours=6,
    history=3,
    hidden=8,
    attention_heads=2,
    embedding=2,
    head_hidden=8,
)
START, END = np.datetime64("2019-12-02T00", "h"), np.datetime64("2019-12-03T05", "h")
COLUMNS = ["time", "station", "pm2p5", "pm2p5_p05", "pm2p5_p50", "pm2p5_p95", "nearest_observation_distance"]
COAST = Grid((112.0, 36.0, 124.0, 41.0), 0.5)  # 25 x 11 cells, a good part of them in the Bohai Sea


def build(lead_hours: int = 6) -> AQNet:
    torch.manual_seed(0)
    made = AQNet(replace(TINY, lead_hours=lead_hours)).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return made


@pytest.fixture(scope="module")
def network() -> analyse.Network:
    return analyse.Network(build(), "0" * 64)


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoint.save(build(), path, {})
    return path


def observe(west: float = 112.5, south: float = 36.5, stations: int = 15, lead: int = 12) -> pd.DataFrame:
    """A StationTable of PM2.5 alone, from `lead` hours before START to END, in 3 by 3 degrees; a tenth is missing."""
    rng = np.random.default_rng(0)
    time = pd.date_range(START - lead * HOUR, END - HOUR, freq="h", unit="ns")
    lon, lat = rng.uniform(west, west + 3, stations), rng.uniform(south, south + 3, stations)
    value = 60 + 20 * np.sin(np.arange(len(time)) / 5)[:, None] + rng.uniform(-8, 8, (len(time), stations))
    value[rng.random(value.shape) < 0.1] = np.nan
    names = np.array([f"test:{i:02d}" for i in range(stations)], dtype=object)
    place = {"station": np.tile(names, len(time)), "lon": np.tile(lon, len(time)), "lat": np.tile(lat, len(time))}
    return pd.DataFrame({"time": np.repeat(time, stations), **place, "pm2p5": value.ravel()})


def flagged(table: pd.DataFrame, lead: int = 12) -> xr.Dataset:
    return qc.flag(to_cube([table], START - lead * HOUR, END))


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return flagged(observe())


@pytest.fixture(scope="module")
def blocks(cube: xr.Dataset, network: analyse.Network) -> list[xr.Dataset]:
    return list(analyse.fields(cube, COAST, START, END, network))


@pytest.fixture(scope="module")
def field(blocks: list[xr.Dataset]) -> xr.Dataset:
    return xr.concat(blocks, "time", data_vars="all", coords="different", compat="equals", join="exact")


def geodesic(lon: np.ndarray, lat: np.ndarray, cube: xr.Dataset) -> np.ndarray:
    """Kilometres (places, stations)."""
    geod, at = Geod(ellps="WGS84"), list(zip(cube["lon"].values, cube["lat"].values, strict=True))
    return np.array([[geod.inv(x, y, *s)[2] / 1000 for s in at] for x, y in zip(lon, lat, strict=True)])


# ---- on a grid ----


def test_every_block_is_a_utc_day_that_obeys_the_contract(blocks: list[xr.Dataset]):
    assert [len(block["time"]) for block in blocks] == [24, 5]
    for block in blocks:
        check_cube(block)
        assert len(np.unique(block["time"].values.astype("M8[D]"))) == 1
    np.testing.assert_array_equal(
        np.concatenate([block["time"].values for block in blocks]), np.arange(START, END, HOUR).astype("M8[ns]")
    )


def test_the_field_lies_on_the_grid(field: xr.Dataset):
    np.testing.assert_array_equal(field["lat"], COAST.lat)
    np.testing.assert_array_equal(field["lon"], COAST.lon)
    assert field["pm2p5"].shape == (29, 11, 25)
    assert set(np.unique(field["stream"])) == {0}
    assert set(np.unique(field["revision"])) == {0}


def test_the_sea_has_a_flag_and_no_values(field: xr.Dataset):
    sea = ~COAST.land
    assert 0 < sea.sum() < sea.size
    for name in COLUMNS[2:]:
        np.testing.assert_array_equal(np.isnan(field[name].values), np.broadcast_to(sea, field[name].shape))
    np.testing.assert_array_equal(field["quality_flag"].values[:, sea], QUALITY_BITS["sea"])
    assert not (field["quality_flag"].values[:, ~sea] & QUALITY_BITS["sea"]).any()


def test_count_and_distance_are_those_of_the_valid_observations(field: xr.Dataset, cube: xr.Dataset):
    valid = np.isfinite(qc.valid(cube, "pm2p5").sel(time=slice(START, None)).values)
    np.testing.assert_array_equal(field["observation_count"], valid.sum(axis=1))
    lon, lat, *_ = COAST.points()
    land = COAST.land.ravel()
    km = geodesic(lon[land], lat[land], cube)
    expected = np.where(valid[:, None], km, np.inf).min(axis=2)
    found = field["nearest_observation_distance"].values.reshape(len(valid), -1)[:, land]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_extrapolated_is_a_land_cell_beyond_the_distance(field: xr.Dataset):
    distance = field["nearest_observation_distance"].values
    expected = (distance > analyse.EXTRAPOLATED_KM) & COAST.land
    assert 0.1 < expected[:, COAST.land].mean() < 0.9
    np.testing.assert_array_equal(field["quality_flag"].values & QUALITY_BITS["extrapolated"] > 0, expected)


def test_few_observations_mark_the_land_of_their_hour(network: analyse.Network):
    cube = flagged(observe())
    cube["qc_pm2p5"][20, :9] |= qc.FLAGS["range"]  # 08 UTC: at most six are left
    field = next(analyse.fields(cube, COAST, START, END, network))
    few = field["quality_flag"].values & QUALITY_BITS["few_observations"] > 0
    np.testing.assert_array_equal(few[8], COAST.land)
    counts = field["observation_count"].values
    np.testing.assert_array_equal(few.any(axis=(1, 2)), counts < analyse.FEW_OBSERVATIONS)
    assert counts[8] <= 6


def test_a_rejected_value_is_as_good_as_none(network: analyse.Network):
    wild, missing = observe(), observe()
    at = (wild["station"] == "test:03") & (wild["time"] >= START)
    wild.loc[at, "pm2p5"], missing.loc[at, "pm2p5"] = 5000.0, np.nan
    a, b = (next(analyse.fields(flagged(table), COAST, START, END, network)) for table in (wild, missing))
    xr.testing.assert_equal(a, b)


def test_hours_after_the_end_change_nothing(cube: xr.Dataset, field: xr.Dataset, network: analyse.Network):
    early = list(analyse.fields(cube, COAST, START, START + 8 * HOUR, network))
    assert len(early) == 1
    xr.testing.assert_allclose(early[0], field.isel(time=slice(0, 8)), rtol=1e-5)


def test_an_hour_without_any_observation_in_its_window_is_nan_and_marked(network: analyse.Network):
    table = observe()
    cube = flagged(table[table["time"] < START - 8 * HOUR])
    field = check_cube(next(analyse.fields(cube, COAST, START, END, network)))
    assert np.isnan(field["pm2p5"]).all()
    assert (field["observation_count"] == 0).all()
    marks = QUALITY_BITS["extrapolated"] | QUALITY_BITS["few_observations"]
    assert (field["quality_flag"].values[:, COAST.land] == marks).all()


def test_a_grid_at_sea_is_all_sea(cube: xr.Dataset, network: analyse.Network):
    ocean = Grid((150.0, 30.0, 151.0, 31.0), 0.5)
    field = check_cube(next(analyse.fields(cube, ocean, START, END, network)))
    assert (field["quality_flag"] == QUALITY_BITS["sea"]).all()
    assert np.isnan(field["pm2p5"]).all()
    assert (field["observation_count"] > 0).all()


def test_a_projected_grid_has_metres_and_the_same_values(cube: xr.Dataset, network: analyse.Network):
    metres = Grid((112.5, 36.5, 115.0, 39.0), 50_000.0, "EPSG:32650")
    field = check_cube(next(analyse.fields(cube, metres, START, END, network)))
    assert field["pm2p5"].dims == ("time", "y", "x")
    lon, lat = (axis.ravel() for axis in metres.lon_lat())
    points = pd.DataFrame({"station": np.arange(len(lon)).astype(str), "lon": lon, "lat": lat})
    table = analyse.at_points(cube, points, START, network)
    found = table["pm2p5"].to_numpy()[: len(lon)].reshape(metres.shape)
    land = metres.land
    np.testing.assert_allclose(field["pm2p5"].values[0][land], found[land], rtol=1e-4)


def test_a_cube_without_its_lead_still_makes_its_first_day(network: analyse.Network):
    short = flagged(observe(lead=0), lead=0)
    field = check_cube(next(analyse.fields(short, COAST, START, END, network)))
    assert np.isfinite(field["pm2p5"].values[:, COAST.land]).all()


# ---- at points ----


def test_points_at_cell_centres_have_the_values_of_the_cells(
    cube: xr.Dataset, field: xr.Dataset, network: analyse.Network
):
    """Terrain is looked up where the table gives no elevation, as the grid does."""
    lon, lat, *_ = COAST.points()
    land = np.flatnonzero(COAST.land.ravel())[::7]
    points = pd.DataFrame({"station": land.astype(str), "lon": lon[land], "lat": lat[land]})
    found = analyse.at_points(cube, points, START, network)
    assert list(found.columns) == COLUMNS
    for name in COLUMNS[2:]:
        cells = field[name].values.reshape(len(field["time"]), -1)[:, land]
        np.testing.assert_allclose(found[name].to_numpy().reshape(cells.shape), cells, rtol=1e-4)


def test_rows_go_by_time_and_then_in_the_order_of_the_points(cube: xr.Dataset, network: analyse.Network):
    points = pd.DataFrame({"station": ["z", "a", "m"], "lon": [113.0, 114.0, 115.0], "lat": [37.0, 38.0, 37.5]})
    found = analyse.at_points(cube, points, START, network)
    assert found["station"].tolist() == ["z", "a", "m"] * 29
    np.testing.assert_array_equal(found["time"], np.repeat(np.arange(START, END, HOUR).astype("M8[ns]"), 3))
    alone = analyse.at_points(cube, points[1:2], START, network)
    np.testing.assert_allclose(found.query("station == 'a'")["pm2p5"], alone["pm2p5"], rtol=1e-4)


def test_a_given_elevation_counts_and_a_missing_one_is_the_terrain(cube: xr.Dataset, network: analyse.Network):
    points = pd.DataFrame({"station": ["a", "b"], "lon": [113.2] * 2, "lat": [37.7] * 2})
    terrain, given = (
        analyse.at_points(cube, frame, START, network)["pm2p5"].to_numpy().reshape(-1, 2)
        for frame in (points, points.assign(elevation=[np.nan, 2500.0]))
    )
    np.testing.assert_allclose(terrain[:, 0], terrain[:, 1], rtol=1e-5)
    np.testing.assert_allclose(given[:, 0], terrain[:, 0], rtol=1e-5)
    assert (np.abs(given[:, 1] / terrain[:, 1] - 1) > 1e-4).all()


# ---- files in, files out ----


def ask(folder: Path, table: pd.DataFrame, points: pd.DataFrame, weights: Path, name: str = "out.csv", **hours: object):
    observed, asked = folder / "observed.csv", folder / "points.csv"
    table.to_csv(observed, index=False)
    points.to_csv(asked, index=False)
    start, end = hours.get("start", START), hours.get("end", END)
    return analyse.estimate(observed, asked, start, end, folder / name, weights)


HOMES = pd.DataFrame({"station": ["home", "work"], "lon": [113.4, 114.9], "lat": [37.1, 38.8]})


def test_estimate_writes_the_same_table_in_every_format(tmp_path: Path, tiny_weights: Path):
    out = {name: ask(tmp_path, observe(), HOMES, tiny_weights, f"e.{name}") for name in ("csv", "parquet", "nc")}
    found = pd.read_parquet(out["parquet"])
    assert list(found.columns) == COLUMNS
    assert len(found) == 29 * 2
    assert np.isfinite(found[COLUMNS[2:]].to_numpy()).all()
    assert (found["pm2p5_p05"] <= found["pm2p5_p50"]).all()
    assert (found["pm2p5_p50"] <= found["pm2p5_p95"]).all()
    text = pd.read_csv(out["csv"], parse_dates=["time"])
    assert list(text.columns) == COLUMNS
    assert text["time"].tolist() == found["time"].tolist()
    np.testing.assert_allclose(text[COLUMNS[2:]], found[COLUMNS[2:]], rtol=1e-6)
    with xr.open_dataset(out["nc"]) as cdf:
        assert cdf["station"].values.tolist() == ["home", "work"]
        np.testing.assert_array_equal(cdf["pm2p5"].transpose("time", "point").values.ravel(), found["pm2p5"])
        np.testing.assert_array_equal(cdf["lon"], HOMES["lon"])
        assert cdf["pm2p5"].attrs["units"] == "ug m-3"


def test_what_a_points_file_says_beside_the_place_is_not_read(tmp_path: Path, tiny_weights: Path):
    plain = ask(tmp_path, observe(), HOMES, tiny_weights, "a.csv").read_text()
    told = ask(tmp_path, observe(), HOMES.assign(pm2p5=[900.0, 1.0]), tiny_weights, "b.csv").read_text()
    assert plain == told


def test_a_station_at_the_point_counts_only_while_it_is_in_the_input(tmp_path: Path, tiny_weights: Path):
    table = observe()
    table.loc[table["station"] == "test:00", "pm2p5"] += 30
    own = table[table["station"] == "test:00"].iloc[:1][["station", "lon", "lat"]]
    others = table[table["station"] != "test:00"]
    inside = pd.read_csv(ask(tmp_path, table, own, tiny_weights, "a.csv"))
    outside = pd.read_csv(ask(tmp_path, others, own, tiny_weights, "b.csv"))
    assert inside["nearest_observation_distance"].min() < 1e-6
    assert outside["nearest_observation_distance"].min() > 1
    assert inside["pm2p5_p50"].mean() > outside["pm2p5_p50"].mean() + 1


@pytest.mark.parametrize(("west", "south"), [(178.5, -41.0), (-72.0, -35.0), (-1.5, 50.0)])
def test_estimate_works_anywhere_on_earth(tmp_path: Path, tiny_weights: Path, west: float, south: float):
    """Across the date line too, whichever way longitudes are written."""
    table = observe(west, south)
    points = pd.DataFrame({"station": ["a"], "lon": [west + 1.6], "lat": [south + 1.4]})
    out = pd.read_csv(ask(tmp_path, table, points, tiny_weights))
    assert np.isfinite(out[COLUMNS[2:]].to_numpy()).all()
    assert out["pm2p5_p50"].between(20, 150).all()
    assert out["nearest_observation_distance"].max() < 300
    wrapped = points.assign(lon=(points["lon"] + 180) % 360 - 180)
    table["lon"] = (table["lon"] + 180) % 360 - 180
    again = pd.read_csv(ask(tmp_path, table, wrapped, tiny_weights))
    np.testing.assert_allclose(again[COLUMNS[2:]], out[COLUMNS[2:]], rtol=1e-3)


def test_a_period_in_two_pieces_is_the_period_in_one(tmp_path: Path, tiny_weights: Path):
    table, noon = observe(lead=30), START + 12 * HOUR
    whole = pd.read_csv(ask(tmp_path, table, HOMES, tiny_weights, "a.csv"))
    parts = [
        pd.read_csv(ask(tmp_path, table, HOMES, tiny_weights, name, start=a, end=b))
        for name, a, b in (("b.csv", START, noon), ("c.csv", noon, END))
    ]
    found = pd.concat(parts, ignore_index=True)
    assert found["time"].tolist() == whole["time"].tolist()
    np.testing.assert_allclose(found[COLUMNS[2:]], whole[COLUMNS[2:]], rtol=1e-5)


@pytest.mark.parametrize("hour", [0, 1, 23])
def test_estimate_reads_all_that_its_first_hour_looks_back_to(
    tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch, hour: int
):
    """The window goes back from the midnight before, and the flags of its first hour as far again."""
    seen: list[np.datetime64] = []
    at_points = analyse.at_points

    def spy(cube: xr.Dataset, *arguments: object) -> pd.DataFrame:
        seen.append(cube["time"].values[0])
        return at_points(cube, *arguments)

    monkeypatch.setattr(analyse, "at_points", spy)
    ask(tmp_path, observe(), HOMES, tiny_weights, start=START + hour * HOUR)
    assert seen[0] <= START - (analyse.LEAD_HOURS + qc.LOOKBACK_HOURS) * HOUR


# ---- refusals ----


def test_an_input_without_valid_pm2p5_is_named(tmp_path: Path, tiny_weights: Path):
    with pytest.raises(
        InputError, match=r"observed\.csv: expected valid PM2\.5 from 2019-11-20T00 to 2019-12-03T05 UTC"
    ):
        ask(tmp_path, observe().assign(pm2p5=-1.0), HOMES, tiny_weights)
    assert not (tmp_path / "out.csv").exists()


def test_weights_that_are_none_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"none\.safetensors: expected AQ-Net weights"):
        analyse.load(tmp_path / "none.safetensors")


def test_a_network_that_looks_back_farther_than_runs_read_is_refused(tmp_path: Path):
    path = tmp_path / "long.safetensors"
    checkpoint.save(build(analyse.LEAD_HOURS + 1), path, {})
    with pytest.raises(ConfigError, match=rf"expected a network that looks back {analyse.LEAD_HOURS} hours or less"):
        analyse.load(path)


def test_load_gives_the_network_and_the_digest_of_its_file(tiny_weights: Path):
    found = analyse.load(tiny_weights)
    assert found.digest == checkpoint.digest(tiny_weights)
    assert found.aqnet.config == TINY


def test_stations_cells_and_points_know_their_relief(
    cube: xr.Dataset, network: analyse.Network, monkeypatch: pytest.MonkeyPatch
):
    """As the network was trained: the hills around a place are part of what it is."""
    seen: list[Points] = []
    day_blocks = infer.day_blocks

    def spy(net: AQNet, record: Observations, places: Points, *arguments: object) -> object:
        seen.append(places)
        np.testing.assert_array_equal(record.relief, relief(record.lon, record.lat))
        return day_blocks(net, record, places, *arguments)

    monkeypatch.setattr(infer, "day_blocks", spy)
    next(analyse.fields(cube, COAST, START, END, network))
    analyse.at_points(cube, HOMES, START, network)
    for places in seen:
        np.testing.assert_array_equal(places.relief, relief(places.lon, places.lat))
    assert len(seen) == 2
