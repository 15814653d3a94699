"""Layouts of stations: what is gathered, who says something of whom, and who does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import layout
from model.aqnet import AQNet, AQNetConfig, NeuralKNN
from model.geometry import distance_matrix
from model.layout import APART_KM, SAYING, geometry_of, surroundings
from model.windows import TERRAIN_FEATURES

TINY = AQNetConfig(
    neighbours=8,
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


def knn() -> NeuralKNN:
    torch.manual_seed(0)
    made = AQNet(TINY).eval().knn
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return made


def stations(seed: int, count: int, degrees: float = 4.0) -> tuple[Tensor, Tensor]:
    """Distances (S, S) km and terrain features (S, G)."""
    rng = np.random.default_rng(seed)
    lon, lat = 113 + rng.uniform(0, degrees, count), 36 + rng.uniform(0, degrees, count)
    terrain = torch.from_numpy(rng.uniform(-1, 1, (count, TERRAIN_FEATURES))).float()
    return torch.from_numpy(distance_matrix(lon, lat, lon, lat)).float(), terrain


def test_a_geometry_gathers_distances_and_terrain():
    index, between = torch.tensor([[2, 0]]), torch.arange(9.0).view(3, 3)
    terrain, place = torch.arange(15.0).view(3, 5), torch.full((1, 5), 7.0)
    found = geometry_of(index, np.array([[5.0, 7.0]]), between, terrain, place)
    torch.testing.assert_close(found.between, torch.tensor([[[8.0, 6.0], [2.0, 0.0]]]))
    torch.testing.assert_close(found.stations, terrain[[2, 0]][None])
    assert found.distance.tolist() == [[5.0, 7.0]]
    assert found.distance.dtype == torch.float32
    assert found.place is place


@settings(max_examples=15)
@given(seeds, st.integers(2, 60))
@torch.no_grad()
def test_a_station_is_judged_by_its_nearest_others_and_never_by_itself(seed: int, count: int):
    between, terrain = stations(seed, count)
    alone, _ = surroundings(knn(), between, terrain)
    k = min(SAYING, count - 1)
    assert alone.index.shape == alone.weights.shape == (count, k)
    for s in range(count):
        others = sorted((i for i in range(count) if i != s), key=lambda i: between[s, i].item())
        assert alone.index[s].tolist() == others[:k]
    torch.testing.assert_close(alone.weights.sum(1), torch.ones(count), atol=1e-3, rtol=0)


@settings(max_examples=15)
@given(seeds, st.integers(2, 90), st.sampled_from([1.0, 2.0, 4.0]))
@torch.no_grad()
def test_apart_a_station_is_judged_by_none_within_50_km(seed: int, count: int, degrees: float):
    """Unless too few others lie so far away: then by its nearest ones."""
    between, terrain = stations(seed, count, degrees)
    alone, apart = surroundings(knn(), between, terrain)
    k = min(SAYING, count - 1)
    for s in range(count):
        far = sorted((i for i in range(count) if between[s, i] >= APART_KM), key=lambda i: between[s, i].item())
        assert apart.index[s].tolist() == (far[:k] if len(far) >= k else alone.index[s].tolist())
        assert s not in apart.index[s]
    torch.testing.assert_close(apart.weights.sum(1), torch.ones(count), atol=1e-3, rtol=0)


@torch.no_grad()
def test_apart_is_not_alone_where_there_are_cities():
    between, terrain = stations(0, 90)
    alone, apart = surroundings(knn(), between, terrain)
    assert between.gather(1, apart.index).min() >= APART_KM
    assert between.gather(1, alone.index).min() < APART_KM


@torch.no_grad()
def test_a_second_instrument_at_the_place_has_a_say():
    """Only the station itself is left out."""
    between, terrain = stations(0, 30)
    between, terrain = (x[[*range(30), 7]] for x in (between, terrain))
    between = between[:, [*range(30), 7]]
    alone, _ = surroundings(knn(), between, terrain)
    assert alone.index[7, 0] == 30
    assert alone.index[30, 0] == 7
    assert torch.isfinite(alone.weights).all()


@torch.no_grad()
def test_weights_are_those_of_kriging_however_many_are_solved_at_once(monkeypatch: pytest.MonkeyPatch):
    between, terrain = stations(0, 40)
    net = knn()
    for judged in surroundings(net, between, terrain):
        km = between.gather(1, judged.index)
        expected = net.whole(geometry_of(judged.index, km, between, terrain, terrain))
        torch.testing.assert_close(judged.weights, expected, atol=1e-4, rtol=1e-4)
    whole = surroundings(net, between, terrain)
    monkeypatch.setattr(layout, "_CHUNK", 7)
    for a, b in zip(whole, surroundings(net, between, terrain), strict=True):
        assert torch.equal(a.index, b.index)
        torch.testing.assert_close(a.weights, b.weights, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_one_station_has_no_surroundings_and_two_have_each_other():
    for judged in surroundings(knn(), *stations(0, 1)):
        assert judged.index.shape == judged.weights.shape == (1, 0)
    for judged in surroundings(knn(), *stations(0, 2)):
        assert judged.index.tolist() == [[1], [0]]
        torch.testing.assert_close(judged.weights, torch.ones(2, 1))


@torch.no_grad()
def test_distances_are_left_as_they_were():
    between, terrain = stations(0, 30)
    before = between.clone()
    surroundings(knn(), between, terrain)
    assert torch.equal(between, before)
