"""Layouts of stations: who says what of whom, who does not, and stations of a record that fall silent."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from model import grid_layout
from model.aqnet import _ERROR, AQNet, AQNetConfig
from model.geometry import distance_matrix
from model.grid_layout import Layout
from model.kriging import BANDS, MODES, WHOLE, Kriging, band_rows
from model.layout import APART_KM, ENOUGH, surroundings, surroundings_of
from model.windows import POLLUTANTS, TERRAIN_FEATURES, Observations, Points, terrain_features

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
seeds = st.integers(0, 2**31)
Array = NDArray[np.float64]


def network(seed: int = 0) -> AQNet:
    torch.manual_seed(seed)
    made = AQNet(TINY).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.2 * torch.randn_like(weight)
        made.knn.kriging.log_drift.uniform_(-5, -2)  # at the start drift and amplitude are too small to be noticed
        made.knn.kriging.amplitude.uniform_(-1, 1)
    return made


def kriging() -> Kriging:
    return network().knn.kriging


def stations(seed: int, count: int, degrees: float = 4.0) -> tuple[Tensor, Tensor]:
    """Distances (S, S) km and terrain features (S, G)."""
    rng = np.random.default_rng(seed)
    lon, lat = 113 + rng.uniform(0, degrees, count), 36 + rng.uniform(0, degrees, count)
    terrain = torch.from_numpy(rng.uniform(-1, 1, (count, TERRAIN_FEATURES))).float()
    return torch.from_numpy(distance_matrix(lon, lat, lon, lat)).float(), terrain


@torch.no_grad()
def covariances(net: Kriging, rows: list[int], km: Tensor, a: Tensor, b: Tensor) -> Array:
    """Covariances (R, I, J) in float64, by the function that `test_aqnet` holds against its formula."""
    return net.covariance(km.double(), a.double(), b.double(), rows).numpy()


@torch.no_grad()
def nuggets(net: Kriging, rows: list[int]) -> Array:
    return net.log_nugget[rows].double().exp().numpy()


def krige(among: Array, nugget: float, towards: Array) -> tuple[Array, Array]:
    """Ordinary kriging (Cressie 1993, (3.2.12)) by numpy: weights (I, K), and variance (I,) less that of the field."""
    k = len(among)
    system = np.block([[among + nugget * np.eye(k), np.ones((k, 1))], [np.ones((1, k)), np.zeros((1, 1))]])
    right = np.concatenate([towards, np.ones((len(towards), 1))], axis=1)
    solved = np.linalg.solve(system, right.T).T
    return solved[:, :k], nugget - (solved * right).sum(axis=1)


def said_by(net: Kriging, between: Tensor, terrain: Tensor, s: int, others: NDArray[np.int64]) -> Array:
    """Weights (S,) of station s on some others, the rest 0."""
    matrix = covariances(net, [WHOLE], between, terrain, terrain)[0]
    weights = np.zeros(len(matrix))
    weights[others] = krige(matrix[np.ix_(others, others)], nuggets(net, [WHOLE])[0], matrix[s : s + 1, others])[0][0]
    return weights


# ---- what stations say of one another ----


@settings(max_examples=15)
@given(seeds, st.integers(2, 40))
@torch.no_grad()
def test_a_station_is_judged_by_all_others_and_never_by_itself(seed: int, count: int):
    between, terrain = stations(seed, count)
    alone, _ = surroundings(kriging(), between, terrain)
    assert alone.shape == (count, count)
    assert alone.dtype == torch.float32
    assert (alone.diagonal() == 0).all()
    torch.testing.assert_close(alone.sum(1), torch.ones(count), atol=1e-4, rtol=0)
    for s in range(count):
        others = np.delete(np.arange(count), s)
        np.testing.assert_allclose(alone[s], said_by(kriging(), between, terrain, s, others), atol=1e-5)


@settings(max_examples=15)
@given(seeds, st.integers(2, 60), st.sampled_from([1.0, 2.0, 4.0]))
@torch.no_grad()
def test_apart_a_station_is_judged_by_all_others_but_those_within_50_km(seed: int, count: int, degrees: float):
    """By kriging from these alone, and as if the nearer ones did not exist; by all where too few lie so far away."""
    between, terrain = stations(seed, count, degrees)
    alone, apart = surroundings(kriging(), between, terrain)
    for s in range(count):
        far = np.flatnonzero(between[s].numpy() >= APART_KM)
        if len(far) < ENOUGH:
            assert torch.equal(apart[s], alone[s])
        else:
            assert (apart[s, np.setdiff1d(np.arange(count), far)] == 0).all()
            np.testing.assert_allclose(apart[s], said_by(kriging(), between, terrain, s, far), atol=1e-5)
    torch.testing.assert_close(apart.sum(1), torch.ones(count), atol=1e-4, rtol=0)


@torch.no_grad()
def test_both_ways_of_judging_apart_are_among_the_cases_above():
    """In 2 degrees some stations have enough others so far away, and some have too few."""
    between, _ = stations(0, 60, 2.0)
    far = (between >= APART_KM).sum(1)
    assert (far >= ENOUGH).any()
    between, _ = stations(0, 60, 1.0)
    assert ((between >= APART_KM).sum(1) < ENOUGH).any()


@pytest.mark.parametrize("count", [ENOUGH - 1, ENOUGH])
@torch.no_grad()
def test_24_far_stations_are_enough_to_judge_and_23_are_not(count: int):
    """Two stations of one city, and `count` of another, who have too few apart and are judged by all both times."""
    city = np.array([0, *[1] * count, 0])
    between = torch.from_numpy(np.where(city[:, None] == city, 1.0, APART_KM)).float().fill_diagonal_(0.0)
    _, terrain = stations(0, len(between))
    alone, apart = surroundings(kriging(), between, terrain)
    assert (apart[0, -1] == 0) == (count >= ENOUGH)
    assert torch.equal(apart[0], alone[0]) == (count < ENOUGH)
    assert torch.equal(apart[1:-1], alone[1:-1])


@torch.no_grad()
def test_apart_is_not_alone_where_there_are_cities():
    between, terrain = stations(0, 90)
    alone, apart = surroundings(kriging(), between, terrain)
    near = (between < APART_KM) & ~torch.eye(90, dtype=torch.bool)
    assert (apart[near] == 0).all()
    assert (alone[near] != 0).all()


@torch.no_grad()
def test_a_second_instrument_at_the_place_has_a_say():
    """Only the station itself is left out."""
    between, terrain = stations(0, 30)
    between, terrain = (x[[*range(30), 7]] for x in (between, terrain))
    between = between[:, [*range(30), 7]]
    alone, _ = surroundings(kriging(), between, terrain)
    assert alone[7].argmax() == 30
    assert alone[30].argmax() == 7
    assert torch.isfinite(alone).all()


@torch.no_grad()
def test_one_station_has_no_surroundings_and_two_have_each_other():
    for judged in surroundings(kriging(), *stations(0, 1)):
        assert judged.tolist() == [[0.0]]
    for judged in surroundings(kriging(), *stations(0, 2)):
        torch.testing.assert_close(judged, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


@torch.no_grad()
def test_distances_and_the_precision_are_left_as_they_were():
    between, terrain = stations(0, 30)
    precision = kriging().system(between, terrain, [WHOLE]).precision[0]
    before = between.clone(), precision.clone()
    surroundings(kriging(), between, terrain)
    surroundings_of(precision, between)
    assert torch.equal(between, before[0])
    assert torch.equal(precision, before[1])


# ---- stations of a record that fall silent ----


def record(count: int, seed: int = 0) -> Observations:
    """Places of `count` stations, two of them at one place; what they observe does not matter here."""
    rng = np.random.default_rng(seed)
    lon, lat, height = rng.uniform(113, 117, count), rng.uniform(36, 39, count), rng.uniform(0, 900, count)
    if count > 2:
        lon[1], lat[1], height[1] = lon[0], lat[0], height[0]
    values = np.ones((len(POLLUTANTS), 24, count), np.float32)
    return Observations(np.arange(24), values, lon, lat, height, rng.uniform(-300, 300, (count, 4)))


def places(count: int = 9) -> Points:
    rng = np.random.default_rng(5)
    lon, lat, elevation = rng.uniform(113, 117, count), rng.uniform(36, 39, count), rng.uniform(0, 900, count)
    return Points(lon, lat, elevation, rng.uniform(-300, 300, (count, 4)))


def some(seed: int, count: int) -> NDArray[np.int64]:
    """Record indices of the stations that report: any number of them, but none or all as well as few."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.permutation(count)[: rng.integers(1, count + 1)])


def layout(seed: int = 0, count: int = 30, mode: str = "interim") -> Layout:
    return Layout(network(seed % 5), record(count, seed), places(), mode)


def distances(seen: Observations, at: Points) -> tuple[Tensor, Tensor]:
    """Distances (S, S) and (Q, S) km, float32 as the network has them."""
    km = distance_matrix(at.lon, at.lat, seen.lon, seen.lat).astype(np.float32)
    between = distance_matrix(seen.lon, seen.lat, seen.lon, seen.lat).astype(np.float32)
    return torch.from_numpy(between), torch.from_numpy(km)


@dataclass(frozen=True)
class Truth:
    """Kriging of the bands by numpy in float64, of a layout's points and from its stations, whichever report.

    Covariances `among` the stations (B, S, S) and `towards` them (B, Q, S), `nugget` (B,), variance of the `field`
    (B, Q), `scale` (B,) of the variances.
    """

    among: Array
    towards: Array
    nugget: Array
    field: Array
    scale: Array

    def at_points(self, band: int, known: NDArray[np.int64]) -> tuple[Array, Array]:
        """Weights (Q, n) on stations that report, and the scaled variance (Q,)."""
        among, towards = self.among[band][np.ix_(known, known)], self.towards[band][:, known]
        weights, left = krige(among, self.nugget[band], towards)
        return weights, np.maximum((self.field[band] + left) * self.scale[band], 1e-4)

    def at_stations(self, band: int, known: NDArray[np.int64], silent: NDArray[np.int64]) -> Array:
        """Weights (M, n) of silent stations on those that report."""
        among, towards = self.among[band][np.ix_(known, known)], self.among[band][np.ix_(silent, known)]
        return krige(among, self.nugget[band], towards)[0]


@torch.no_grad()
def truth_of(made: Layout, count: int, seed: int, mode: str) -> Truth:
    net, rows, seen, at = made.network.knn.kriging, band_rows(mode), record(count, seed), places()
    (between, km), here, there = distances(seen, at), terrain_features(at), terrain_features(seen)
    return Truth(
        covariances(net, rows, between, there, there),
        covariances(net, rows, km, here, there),
        nuggets(net, rows),
        net.variance(here.double(), rows).numpy(),
        net.log_scale[rows].double().exp().numpy(),
    )


@settings(max_examples=15)
@given(seeds, st.integers(1, 40))
@torch.no_grad()
def test_surroundings_of_reporting_stations_are_those_of_these_alone(seed: int, count: int):
    made, known, seen = layout(seed, count), some(seed, count), record(count, seed)
    found = made.surroundings(known)
    between, _ = distances(seen, places())
    only = surroundings(made.network.knn.kriging, between[known][:, known], terrain_features(seen)[known])
    for a, b in zip(found, only, strict=True):
        assert a.shape == (len(known), len(known))
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_surroundings_follow_the_stations_and_the_layout_that_is_asked():
    """They are kept, so: not those of other stations, and not those of another record."""
    one, other = layout(0), layout(1)
    for made in (one, other, one):
        for known in (np.arange(30), np.arange(29), np.arange(1, 30), np.arange(30)):
            between, _ = distances(record(30, 0 if made is one else 1), places())
            only = surroundings(made.network.knn.kriging, between[known][:, known], made.terrain[known])
            for a, b in zip(made.surroundings(known), only, strict=True):
                torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_layout_is_let_go_with_what_is_kept_of_it():
    """The weights of a large grid are gigabytes: no cache may hold them when nobody else does."""
    made = layout()
    made.surroundings(np.arange(20))
    held = weakref.ref(made)
    del made
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=10)
@given(seed=seeds, count=st.integers(1, 30))
@torch.no_grad()
def test_silent_stations_get_what_kriging_from_the_others_says_of_each_band(seed: int, count: int, mode: str):
    made, known = layout(seed, count, mode), some(seed, count)
    torch.manual_seed(seed)
    bands = torch.randn(len(known), 5, BANDS) + torch.tensor([0.0, 0.0, 0.0, 3.5])
    before = bands.clone()
    found = made.everywhere(bands, known)
    assert found.shape == (BANDS, count, 5)
    assert found.dtype == np.float64
    assert torch.equal(bands, before)
    truth, silent = truth_of(made, count, seed, mode), np.setdiff1d(np.arange(count), known)
    for b in range(BANDS):
        np.testing.assert_array_equal(found[b, known], bands[..., b].numpy())
        expected = truth.at_stations(b, known, silent) @ bands[..., b].double().numpy()
        np.testing.assert_allclose(found[b, silent], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=10)
@given(seed=seeds, count=st.integers(1, 30))
@torch.no_grad()
def test_estimates_from_all_stations_are_those_from_the_ones_that_report(seed: int, count: int, mode: str):
    """Weights of all stations, on bands of all stations: as kriging from the others alone has them."""
    made, known = layout(seed, count, mode), some(seed, count)
    made.update(known)
    torch.manual_seed(seed)
    bands = torch.randn(len(known), 5, BANDS) + torch.tensor([0.0, 0.0, 0.0, 3.5])
    truth = truth_of(made, count, seed, mode)
    every = made.everywhere(bands, known)
    for b in range(BANDS):
        expected = truth.at_points(b, known)[0] @ bands[..., b].double().numpy()
        found = made.cells.bands[b].astype(float) @ every[b]
        np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=10)
@given(seed=seeds, count=st.integers(1, 30))
@torch.no_grad()
def test_the_weights_of_a_record_are_those_of_kriging_from_all_its_stations(seed: int, count: int, mode: str):
    made = layout(seed, count, mode)
    assert made.cells.bands.shape == (BANDS, 9, count)
    truth, every = truth_of(made, count, seed, mode), np.arange(count)
    for b in range(BANDS):
        np.testing.assert_allclose(made.cells.bands[b], truth.at_points(b, every)[0], atol=1e-4)
    np.testing.assert_allclose(made.cells.bands.sum(axis=2), np.ones((BANDS, 9)), atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=10)
@given(seed=seeds, count=st.integers(1, 30))
@torch.no_grad()
def test_the_variance_is_that_of_kriging_from_the_stations_that_report(seed: int, count: int, mode: str):
    """Each band's, as the head's first layer is told, and their sum, which the interval starts from."""
    made, known = layout(seed, count, mode), some(seed, count)
    made.update(known)
    truth = truth_of(made, count, seed, mode)
    each = np.stack([truth.at_points(b, known)[1] for b in range(BANDS)], axis=1)  # (Q, B)
    np.testing.assert_allclose(made.cells.variance, each.sum(axis=1) / _ERROR, rtol=1e-3, atol=1e-5)
    _, km = distances(record(count, seed), places())
    near = np.log1p(np.minimum(km.numpy()[:, known].min(axis=1), 500.0))
    static = np.concatenate([np.log(each), near[:, None]], axis=1)
    first = made.network.head.mlp[0]
    expected = static @ first.weight[:, -static.shape[1] :].numpy().T + first.bias.numpy()
    np.testing.assert_allclose(made.cells.inflow[:, : len(first.bias)], expected, atol=2e-3)


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_stations_that_come_back_leave_everything_as_it_was(mode: str):
    made, every = layout(mode=mode), np.arange(30)
    made.update(every)
    before = [part.copy() for part in made.cells]
    for known in (np.arange(3), np.arange(0, 30, 2), np.array([7]), np.arange(29)):
        made.update(known)
        fresh = layout(mode=mode)
        fresh.update(known)
        for a, b in zip(made.cells, fresh.cells, strict=True):
            np.testing.assert_array_equal(a, b)
    made.update(every)
    for a, b in zip(made.cells, before, strict=True):
        np.testing.assert_array_equal(a, b)


@torch.no_grad()
def test_a_layout_is_the_same_however_many_points_are_worked_on_at_once(monkeypatch: pytest.MonkeyPatch):
    made, known = layout(), np.arange(20)
    made.update(known)
    monkeypatch.setattr(grid_layout, "_CHUNK", 2)
    pieces = layout()
    pieces.update(known)
    for a, b in zip(made.cells, pieces.cells, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_neighbours_are_the_48_nearest_that_report():
    made, seen = layout(count=70), record(70)
    known = np.setdiff1d(np.arange(70), np.arange(0, 70, 7))
    made.update(known)
    _, km = distances(seen, places())
    away = km.numpy()[:, known]
    assert made.cells.station.shape == (9, grid_layout.NEIGHBOURS) == (9, 48)
    for q in range(9):
        order = np.argsort(away[q], kind="stable")[:48]
        assert set(made.cells.station[q]) == set(known[order])
        np.testing.assert_allclose(made.cells.km[q], away[q][order], rtol=2e-4)
