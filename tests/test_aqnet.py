"""The network's parts against closed forms and brute force: kriging, gaps, bands, causality, sums, quantiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from model import aqnet
from model.aqnet import (
    MEDIAN,
    AQNet,
    AQNetConfig,
    Channels,
    Sums,
    Surroundings,
    Weights,
    bands_of,
    fill,
    gather,
    kernel,
    recent_error,
)
from model.geometry import distance_matrix
from model.kriging import BANDS, MODES, SCALES, WHOLE, Geometry, Kriging, band_rows, nearest_of
from model.layout import surroundings
from model.windows import FEATURES, LEVELS, TERRAIN_FEATURES, Window

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


def network(seed: int = 0, config: AQNetConfig = TINY, noise: float = 0.3) -> AQNet:
    """Random weights, far from the quiet start: what must hold, must hold for any."""
    torch.manual_seed(seed)
    made = AQNet(config).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight += noise * torch.randn_like(weight)
        made.knn.kriging.log_drift.uniform_(-5, -1)  # at the start drift and amplitude are too small to be noticed
        made.knn.kriging.amplitude.uniform_(-1, 1)
    return made


def stations_at(seed: int, stations: int) -> tuple[Array, Array, Tensor]:
    """Longitudes, latitudes and terrain features of places in 4 by 3 degrees."""
    rng = np.random.default_rng(seed)
    lon, lat = rng.uniform(113, 117, stations), rng.uniform(36, 39, stations)
    return lon, lat, torch.from_numpy(rng.uniform(-1, 1.5, (stations, TERRAIN_FEATURES))).float()


def layout(seed: int = 0, points: int = 6, stations: int = 60) -> tuple[Tensor, Geometry]:
    """The nearest stations (Q, A) of points, and the layout of these and of all stations."""
    lon, lat, terrain = stations_at(seed, stations + points)
    km = torch.from_numpy(distance_matrix(lon, lat, lon, lat)).float()
    there, here = slice(0, stations), slice(stations, None)
    geometry = Geometry(km[here, there], km[there, there], terrain[here], terrain[there])
    return geometry.distance.topk(min(TINY.near, stations), largest=False)[1], geometry


def weigh(net: AQNet, given: tuple[Tensor, Geometry], mode: str = "interim") -> Weights:
    index, geometry = given
    with torch.no_grad():
        return net.knn(geometry, index, mode)


def around(net: AQNet, seed: int = 0, stations: int = 30) -> Surroundings:
    """What stations say of one another."""
    lon, lat, terrain = stations_at(seed, stations)
    with torch.no_grad():
        return surroundings(net.knn.kriging, torch.from_numpy(distance_matrix(lon, lat, lon, lat)).float(), terrain)


def channels(seed: int = 0, stations: int = 60, hours: int = 5) -> Channels:
    torch.manual_seed(seed)
    bands = torch.randn(stations, hours, BANDS) * torch.tensor([0.2, 0.3, 0.4, 0.8])
    bands[..., -1] += 3.5
    error, heard = torch.rand(stations, hours), torch.rand(stations, hours)
    return Channels(bands, torch.randn(stations, hours, TINY.embedding), error * heard, heard)


def inputs(seed: int = 0, stations: int = 30, hours: int = 18, missing: float = 0.3) -> Window:
    torch.manual_seed(seed)
    valid = torch.rand(stations, hours) >= missing
    z = (3.5 + torch.randn(stations, hours)) * valid
    return Window(torch.randn(stations, hours, FEATURES), z, valid)


def length(mode: str, hours: int = 12) -> int:
    """Hours of a window with `hours` output hours."""
    return TINY.lead_hours + hours + (TINY.tail_hours if mode == "final" else 0)


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...], atol: float = 1e-4) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=atol, rtol=1e-4)


# ---- kriging ----


def covariance(kriging: Kriging, row: int, km: float, a: Array, b: Array, least: float = 1e-6) -> float:
    """The covariance of the docstring, a pair of places at a time and in float64; of two places, `least` km2 apart."""
    take = lambda name: getattr(kriging, name)[row].detach().double().numpy()  # noqa: E731
    factor, drift, slope = np.exp(take("log_factor")), np.exp(take("log_drift")), np.tanh(take("amplitude"))
    d = np.sqrt(km**2 + least + ((factor * (a - b)) ** 2).sum())
    power = 2 * np.minimum(1 / (1 + np.exp(-take("shape"))), 0.975)
    decay = np.exp(take("log_sill")) * np.exp(-((d / np.exp(take("log_range"))) ** power))
    amplitude = np.exp(0.3 * (slope * np.clip(a, -3, 3)).sum()), np.exp(0.3 * (slope * np.clip(b, -3, 3)).sum())
    return float((decay.sum() + (drift * a * b).sum()) * amplitude[0] * amplitude[1])


@torch.no_grad()
def krige(kriging: Kriging, row: int, geometry: Geometry, q: int) -> tuple[Array, float]:
    """Weights (K,) and unscaled variance at place q: the bordered system of Cressie 1993, (3.2.12), solved by numpy."""
    k = geometry.distance.shape[1]
    between, km, here, at = (
        part.double().numpy() for part in (geometry.between, geometry.distance[q], geometry.place[q], geometry.stations)
    )
    system, right = np.zeros((k + 1, k + 1)), np.ones(k + 1)
    system[k, :k] = system[:k, k] = 1
    for i in range(k):
        right[i] = covariance(kriging, row, km[i], here, at[i])
        system[i, :k] = [covariance(kriging, row, between[i, j], at[i], at[j]) for j in range(k)]
    nugget = float(kriging.log_nugget[row].exp())
    system[np.arange(k), np.arange(k)] += nugget
    solved = np.linalg.solve(system, right)
    return solved[:k], covariance(kriging, row, 0.0, here, here, least=0.0) + nugget - float(solved @ right)


def of(geometry: Geometry, q: int, stations: Tensor) -> Geometry:
    """Layout of one place and some of the stations."""
    between = geometry.between[stations][:, stations]
    return Geometry(
        geometry.distance[q : q + 1, stations], between, geometry.place[q : q + 1], geometry.stations[stations]
    )


@pytest.mark.parametrize("k", [1, 2, 9, 24])
@pytest.mark.parametrize("mode", MODES)
def test_each_band_is_kriged_from_all_stations_with_its_own_covariance(k: int, mode: str):
    net, (index, geometry) = network(k), layout(k, points=3, stations=k)
    kriging, first = net.knn.kriging, BANDS * MODES.index(mode)
    weights = weigh(net, (index, geometry), mode)
    assert weights.bands.shape == (3, BANDS, k)
    for q in range(3):
        for band in range(BANDS):
            expected, variance = krige(kriging, first + band, geometry, q)
            scale = kriging.log_scale[first + band].detach().exp().item()
            np.testing.assert_allclose(weights.bands[q, band], expected, atol=1e-5)
            np.testing.assert_allclose(weights.variance[q, band], max(variance * scale, 1e-4), rtol=1e-5, atol=1e-5)


def test_rows_of_the_parameters_are_those_of_a_mode():
    assert [band_rows(mode) for mode in ("interim", "final")] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert WHOLE == 8


@pytest.mark.parametrize("k", [1, 3, 12])
@torch.no_grad()
def test_a_solved_system_gives_the_weights_and_variances_of_kriging_at_any_place(k: int):
    """And its precision takes nothing from a value that all stations share."""
    kriging, (_, geometry), rows = network(k).knn.kriging, layout(k, points=3, stations=k), [1, 6, WHOLE]
    solved = kriging.system(geometry.between, geometry.stations, rows)
    assert {part.dtype for part in solved} == {torch.float64}
    double = Geometry(*(part.double() for part in geometry))
    towards = kriging.covariance(double.distance, double.place, double.stations, rows)  # (R, I, K)
    weights = towards @ solved.precision + solved.mean[:, None]
    multiplier = solved.variance[:, None] - (towards * solved.mean[:, None]).sum(2)
    total = kriging.variance(double.place, rows) + kriging.log_nugget[rows].exp()[:, None]
    variance = total + multiplier - (weights * towards).sum(2)
    for r, row in enumerate(rows):
        for q in range(3):
            expected, spread = krige(kriging, row, geometry, q)
            np.testing.assert_allclose(weights[r, q], expected, atol=1e-5)
            np.testing.assert_allclose(variance[r, q], spread, atol=1e-5)
    torch.testing.assert_close(solved.precision.sum(2), torch.zeros(3, k, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(solved.mean.sum(1), torch.ones(3, dtype=torch.float64))


@torch.no_grad()
def test_a_batch_of_layouts_is_each_layout_by_itself():
    kriging, rows = network().knn.kriging, [0, 5, WHOLE]
    several = [layout(seed, points=3, stations=7)[1] for seed in range(4)]
    batch = Geometry(*(torch.stack(parts).view(2, 2, *parts[0].shape).double() for parts in zip(*several, strict=True)))
    weight, variance = kriging(batch, rows)
    assert weight.shape == (3, 2, 2, 3, 7)
    assert variance.shape == (3, 2, 2, 3)
    for n, one in enumerate(several):
        alone = kriging(Geometry(*(part.double() for part in one)), rows)
        same((weight[:, n // 2, n % 2], variance[:, n // 2, n % 2]), alone, atol=1e-9)


def test_the_nearest_of_a_layout_have_their_own_distances_and_terrain():
    geometry = Geometry(
        torch.tensor([[5.0, 9.0, 7.0], [2.0, 1.0, 3.0]]),
        torch.arange(9.0).view(3, 3),
        torch.arange(10.0).view(2, 5) + 70,
        torch.arange(15.0).view(3, 5),
    )
    found = nearest_of(geometry, torch.tensor([[0, 2], [1, 0]]))
    torch.testing.assert_close(found.distance, torch.tensor([[[5.0, 7.0]], [[1.0, 2.0]]]))
    torch.testing.assert_close(found.between, torch.tensor([[[0.0, 2.0], [6.0, 8.0]], [[4.0, 3.0], [1.0, 0.0]]]))
    torch.testing.assert_close(found.place, geometry.place[:, None])
    torch.testing.assert_close(found.stations, torch.stack([geometry.stations[[0, 2]], geometry.stations[[1, 0]]]))


@torch.no_grad()
def test_attention_is_told_the_kriging_weights_of_the_whole_value_among_the_nearest(monkeypatch: pytest.MonkeyPatch):
    net, (index, geometry) = network(), layout(points=3)
    told: list[tuple[Tensor, ...]] = []
    attention = net.knn.attention
    monkeypatch.setattr(net.knn, "attention", lambda *args: told.append(args) or attention(*args))
    weights = weigh(net, (index, geometry))
    ((whole, distance, place, stations),) = told
    for q in range(3):
        near = of(geometry, q, index[q])
        np.testing.assert_allclose(whole[q], krige(net.knn.kriging, WHOLE, near, 0)[0], atol=1e-3)
        torch.testing.assert_close(distance[q], near.distance[0])
        torch.testing.assert_close(stations[q], near.stations)
    torch.testing.assert_close(place, geometry.place)
    torch.testing.assert_close(weights.attention, attention(whole, distance, place, stations))


def test_the_head_is_told_how_near_the_nearest_station_is():
    index, geometry = layout()
    for km in (1.0, 100.0):  # in hundreds of km all lie beyond the farthest distance that the network has seen
        found = weigh(network(), (index, geometry._replace(distance=km * geometry.distance))).near
        nearest = np.minimum(km * geometry.distance.numpy().min(1, keepdims=True), 500)
        np.testing.assert_allclose(found, np.log1p(nearest), rtol=1e-6)


def test_the_bands_of_a_mode_move_with_its_rows_alone():
    net, given_layout = network(), layout()
    before = {mode: weigh(net, given_layout, mode) for mode in MODES}
    with torch.no_grad():
        net.knn.kriging.log_range[BANDS : 2 * BANDS] += 1.0
    after = {mode: weigh(net, given_layout, mode) for mode in MODES}
    same(before["interim"], after["interim"], atol=0)
    assert (before["final"].bands - after["final"].bands).abs().max() > 1e-3
    torch.testing.assert_close(before["final"].attention, after["final"].attention)


@settings(max_examples=25)
@given(seeds, st.integers(1, 60))
def test_weights_of_every_band_sum_to_1_and_attention_is_positive(seed: int, k: int):
    weights = weigh(network(seed % 7), layout(seed, stations=k), MODES[seed % 2])
    assert weights.bands.shape == (6, BANDS, k)
    assert weights.attention.shape == (6, min(k, TINY.near))
    torch.testing.assert_close(weights.bands.sum(-1), torch.ones(6, BANDS), atol=1e-4, rtol=0)
    torch.testing.assert_close(weights.attention.sum(-1), torch.ones(6))
    assert (weights.attention > 0).all()
    assert (weights.variance > 0).all()


@settings(max_examples=15)
@given(seeds)
def test_covariances_are_symmetric_and_positive_definite(seed: int):
    lon, lat, terrain = stations_at(seed, 25)
    km = torch.from_numpy(distance_matrix(lon, lat, lon, lat))
    kriging, rows = network(seed % 7).knn.kriging, list(range(WHOLE + 1))
    with torch.no_grad():
        matrix = kriging.covariance(km, terrain.double(), terrain.double(), rows)
        variance = kriging.variance(terrain.double(), rows)
    torch.testing.assert_close(matrix, matrix.transpose(1, 2))
    assert (torch.linalg.eigvalsh(matrix) > -1e-6).all()
    assert (matrix.diagonal(dim1=1, dim2=2) <= variance + 1e-9).all()


@pytest.mark.parametrize("feature", range(TERRAIN_FEATURES))
def test_other_terrain_makes_a_station_more_distant(feature: int):
    torch.manual_seed(0)
    kriging = AQNet(TINY).knn.kriging
    at = torch.zeros(3, TERRAIN_FEATURES)
    at[1, feature], at[2, feature] = 0.5, -0.5
    with torch.no_grad():
        level, above, below = kriging.covariance(torch.full((1, 3), 10.0), at[:1], at, [0])[0, 0]
    assert above < level
    assert above == pytest.approx(below.item(), rel=1e-5)


@torch.no_grad()
def test_attention_starts_at_the_positive_weights_of_the_nearest():
    torch.manual_seed(0)
    net, (index, geometry) = AQNet(TINY), layout()
    whole = torch.stack([net.knn.kriging(of(geometry, q, index[q]), [WHOLE])[0][0, 0] for q in range(6)])
    start = whole.clamp(min=0) + 5e-3
    torch.testing.assert_close(weigh(net, (index, geometry)).attention, start / start.sum(-1, keepdim=True))


# ---- gaps ----


@pytest.mark.parametrize(("gaps", "atol"), [([4], 1e-4), ([0], 1e-4), ([2, 9], 5e-3)])
@torch.no_grad()
def test_a_filled_gap_changes_no_estimate_of_fixed_weights(gaps: list[int], atol: float):
    """Kriging from all stations with the gaps kriged is kriging from the others: gaps say nothing of their own.

    Several gaps are filled in rounds, one from the other, and so nearly.
    """
    net, S = network(2), 12
    _, geometry = layout(3, points=1, stations=S)
    alone = surroundings(net.knn.kriging, geometry.between, geometry.stations).alone
    keep = [s for s in range(S) if s not in gaps]

    def weights(stations: list[int]) -> Tensor:
        near = Geometry(*(part.double() for part in of(geometry, 0, torch.tensor(stations))))
        return net.knn.kriging(near, [WHOLE])[0][0, 0].float()

    torch.manual_seed(0)
    z = torch.randn(S, 1) + 3.5
    valid = torch.ones(S, 1, dtype=torch.bool)
    valid[gaps] = False
    filled, _ = fill(Window(torch.zeros(S, 1, FEATURES), z * valid, valid), alone, two_sided=False)
    fixed, fewer = weights(list(range(S))) @ filled, weights(keep) @ z[keep]
    torch.testing.assert_close(fixed, fewer, atol=atol, rtol=0)
    assert (weights(list(range(S)))[gaps].abs() > 0.02).any()


@settings(max_examples=15)
@given(seeds, st.floats(0, 1), st.booleans())
def test_observed_values_stay_and_what_a_gap_holds_is_never_read(seed: int, missing: float, two_sided: bool):
    given_inputs, alone = inputs(seed, missing=missing), around(network()).alone
    filled, departure = fill(given_inputs, alone, two_sided)
    valid = given_inputs.valid
    assert torch.equal(filled[valid], given_inputs.z[valid])
    assert (departure[~valid] == 0).all()
    other = given_inputs._replace(z=torch.where(valid, given_inputs.z, 99.0))
    for a, b in zip(fill(other, alone, two_sided), (filled, departure), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("missing", [0.2, 0.6, 0.9])
def test_gaps_stay_about_where_the_observations_are(missing: float):
    """Rounds of kriging among gaps settle, whatever the share of gaps."""
    torch.manual_seed(0)
    given_inputs, alone = inputs(stations=60, hours=40, missing=missing), around(AQNet(TINY), stations=60).alone
    filled, _ = fill(given_inputs, alone, two_sided=False)
    z = given_inputs.z[given_inputs.valid]
    assert filled.min() > z.min() - 2
    assert filled.max() < z.max() + 2


def test_the_departure_is_that_from_what_the_neighbours_say():
    given_inputs, alone = inputs(missing=0.0), around(network()).alone
    _, departure = fill(given_inputs, alone, two_sided=False)
    for s in range(30):
        others = [i for i in range(30) if i != s]
        said = alone[s, others] @ given_inputs.z[others]
        torch.testing.assert_close(departure[s], given_inputs.z[s] - said, atol=1e-4, rtol=1e-4)


def alone_with_a_gap(hours: int = 41) -> tuple[Window, Tensor]:
    """Constant neighbours, and station 0 one unit above them at both ends of a gap of all hours between."""
    given_inputs = inputs(hours=hours, missing=0.0)
    given_inputs.z[:] = 3.0
    given_inputs.z[0, 0], given_inputs.z[0, -1] = 4.0, 2.0
    given_inputs.valid[0, 1:-1] = False
    return given_inputs, around(network()).alone


def test_a_departure_fades_into_a_gap():
    given_inputs, alone = alone_with_a_gap()
    filled, _ = fill(given_inputs, alone, two_sided=False)
    expected = 3 + torch.exp(-torch.arange(40.0) / 12)
    torch.testing.assert_close(filled[0, :-1], expected, atol=1e-3, rtol=0)


def test_seen_from_both_sides_a_gap_is_the_mean_of_an_ornstein_uhlenbeck_bridge():
    """Simple kriging in time with the covariance exp(-lag / 12 h), from the two ends of the gap."""
    given_inputs, alone = alone_with_a_gap()
    filled, _ = fill(given_inputs, alone, two_sided=True)
    hour = np.arange(41)
    c = lambda lag: np.exp(-np.abs(lag) / 12)  # noqa: E731
    weights = np.linalg.solve([[1, c(40)], [c(40), 1]], np.stack([c(hour), c(40 - hour)]))
    np.testing.assert_allclose(filled[0], 3 + np.array([1.0, -1.0]) @ weights, atol=1e-3)


def test_one_station_keeps_its_values_and_departs_from_nothing():
    given_inputs, alone = inputs(stations=1), around(network(), stations=1).alone
    filled, departure = fill(given_inputs, alone, two_sided=False)
    assert torch.equal(filled[given_inputs.valid], given_inputs.z[given_inputs.valid])
    assert (departure == 0).all()


# ---- bands ----


@pytest.mark.parametrize("mode", MODES)
def test_the_kernel_is_a_moving_mean_over_the_past_or_about_the_hour(mode: str):
    found = kernel(3.0, 9, mode)
    for t in range(9):
        for u in range(9):
            past = np.exp(-(t - u) / 3.0) if u <= t else 0.0
            assert found[t, u] == pytest.approx(past if mode == "interim" else np.exp(-((t - u) ** 2) / 18), abs=1e-6)


@settings(max_examples=15)
@given(seeds, st.sampled_from(MODES))
def test_bands_add_up_to_z_and_are_those_of_brute_force(seed: int, mode: str):
    torch.manual_seed(seed)
    filled, some = torch.randn(4, 15), torch.rand(15) > 0.2
    found = bands_of(filled, some, mode)
    assert found.shape == (4, 15, BANDS)
    torch.testing.assert_close(found.sum(-1), filled, atol=1e-4, rtol=0)
    smooth = [filled.double().numpy()]
    for scale in SCALES[mode]:
        weight = kernel(scale, 15, mode).double().numpy() * some.numpy()
        total = np.maximum(weight.sum(axis=1), 1e-9)
        smooth.append(np.stack([(smooth[0] * weight[t]).sum(axis=1) / total[t] for t in range(15)], axis=1))
    for band in range(BANDS - 1):
        np.testing.assert_allclose(found[..., band], smooth[band] - smooth[band + 1], atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_an_hour_without_data_counts_in_no_other_hour(mode: str):
    filled, some = torch.randn(4, 15), torch.ones(15, dtype=torch.bool)
    some[6:8] = False
    before = bands_of(filled, some, mode)
    filled[:, 6:8] = 50.0
    torch.testing.assert_close(bands_of(filled, some, mode)[:, some], before[:, some])


@pytest.mark.parametrize("mode", MODES)
def test_a_level_is_all_in_the_slowest_band(mode: str):
    found = bands_of(torch.full((2, 15), 3.0), torch.ones(15, dtype=torch.bool), mode)
    torch.testing.assert_close(found[..., -1], torch.full((2, 15), 3.0))
    torch.testing.assert_close(found[..., :-1], torch.zeros(2, 15, BANDS - 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_recent_error_is_the_weighted_mean_of_brute_force(mode: str):
    given_inputs, arounds = inputs(stations=8, hours=9), around(network(), stations=8)
    filled, _ = fill(given_inputs, arounds.alone, two_sided=False)
    error, heard = recent_error(given_inputs, filled, arounds, mode)
    scale = {"interim": 2.0, "final": 1.5}[mode]
    for s in range(8):
        said = [(weights[s, :, None] * filled).sum(0) for weights in (arounds.alone, arounds.apart)]
        off = sum((given_inputs.z[s] - x).abs() for x in said)
        for t in range(9):
            lag = t - np.arange(9)
            past = np.where(lag >= 0, np.exp(-lag / scale), 0)
            weight = past if mode == "interim" else np.exp(-0.5 * (lag / scale) ** 2)
            weight = weight / weight.sum()
            valid = given_inputs.valid[s].double().numpy()
            assert error[s, t] == pytest.approx(float((weight * valid * off.double().numpy()).sum()), abs=1e-4)
            assert heard[s, t] == pytest.approx(float((weight * valid).sum()), abs=1e-5)


def test_neighbours_that_are_right_make_no_error():
    given_inputs, arounds = inputs(), around(network())
    given_inputs.z[:] = 4.0 * given_inputs.valid
    filled, _ = fill(given_inputs, arounds.alone, two_sided=False)
    error, heard = recent_error(given_inputs, filled, arounds, "interim")
    assert error.abs().max() < 0.02
    assert heard.min() >= 0
    assert heard.max() <= 1 + 1e-5


# ---- encoder ----


@settings(max_examples=15)
@given(seeds, st.integers(0, 10))
def test_the_encoder_looks_back_only(seed: int, hour: int):
    """Anything after an output hour may change: the channels up to it stay the same bit for bit."""
    net, before = network(), inputs(seed)
    after, other = Window(*(part.clone() for part in before)), inputs(seed + 1)
    for part, new in zip(after, other, strict=True):
        part[:, TINY.lead_hours + hour + 1 :] = new[:, TINY.lead_hours + hour + 1 :]
    arounds = around(net)
    with torch.no_grad():
        for a, b in zip(net.encoder(before, arounds), net.encoder(after, arounds), strict=True):
            assert torch.equal(a[:, : hour + 1], b[:, : hour + 1])
            assert not torch.equal(a[:, hour + 1 :], b[:, hour + 1 :])


@pytest.mark.parametrize("part", ["z", "features"])
def test_the_final_encoder_looks_ahead_too(part: str):
    """The last hour of the tail reaches every output hour through z; other pollutants reach as far as the history."""
    net, before = network(), inputs(hours=length("final"))
    changed = getattr(before, part).clone()
    changed[:, 12 + TINY.lead_hours + TINY.history - 1] += 1.0
    arounds = around(net)
    with torch.no_grad():
        a, b = (net.encoder(x, arounds, "final") for x in (before, before._replace(**{part: changed})))
    assert (a.bands != b.bands).any(-1).any(0).all()
    assert a.bands.shape == (30, 12, BANDS)


@pytest.mark.parametrize("mode", MODES)
def test_other_pollutants_count_within_the_history_alone(mode: str):
    net, before = network(), inputs(hours=length(mode))
    arounds, lead, history = around(net), TINY.lead_hours, TINY.history
    far = [*range(lead - history), *range(lead + 12 + history, length(mode))]
    for hours, moved in ((far, False), ([lead - history], True)):
        features = before.features.clone()
        features[:, hours] = 3.0
        with torch.no_grad():
            a, b = (net.encoder(x, arounds, mode) for x in (before, before._replace(features=features)))
        assert torch.equal(a.bands, b.bands) != moved


@pytest.mark.parametrize("mode", MODES)
def test_attention_reaches_all_that_was_read_but_the_future_in_interim_mode(mode: str):
    net, T, history = network(), 9, TINY.history
    torch.manual_seed(0)
    state = torch.randn(1, history + T + (history if mode == "final" else 0), 2 * TINY.hidden)
    with torch.no_grad():
        before = net.encoder.attend(state, T, mode)
        for hour in range(state.shape[1]):
            changed = state.clone()
            changed[:, hour] += 1.0
            moved = (net.encoder.attend(changed, T, mode) != before).any(-1)[0].nonzero()[:, 0]
            expected = [t for t in range(T) if mode == "final" or t + history >= hour]
            assert moved.tolist() == expected


def test_the_final_context_is_symmetric_in_time():
    """What gaps, bands and errors are made of, read backwards, is the same backwards."""
    given_inputs, arounds = inputs(hours=25), around(network())
    turned = Window(*(part.flip(1) for part in given_inputs))
    found, back = [], []
    for read, kept in ((given_inputs, found), (turned, back)):
        filled, departure = fill(read, arounds.alone, two_sided=True)
        bands = bands_of(filled, read.valid.any(0), "final")
        kept += [filled, departure, bands, *recent_error(read, filled, arounds, "final")]
    same(tuple(found), tuple(x.flip(1) for x in back))
    one_sided = [
        bands_of(fill(read, arounds.alone, False)[0], read.valid.any(0), "interim") for read in (given_inputs, turned)
    ]
    assert (one_sided[0] - one_sided[1].flip(1)).abs().max() > 0.1


@pytest.mark.parametrize("mode", MODES)
def test_a_missing_value_is_never_read(mode: str):
    net, before = network(), inputs(hours=length(mode))
    after, arounds = before._replace(z=torch.where(before.valid, before.z, 99.0)), around(net)
    with torch.no_grad():
        for a, b in zip(net.encoder(before, arounds, mode), net.encoder(after, arounds, mode), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_stations_in_another_order_have_the_same_channels(mode: str):
    net, before = network(), inputs(hours=length(mode))
    lon, lat, terrain = stations_at(0, 30)
    order = torch.randperm(30)
    between = torch.from_numpy(distance_matrix(lon, lat, lon, lat)).float()
    with torch.no_grad():
        found = net.encoder(before, surroundings(net.knn.kriging, between, terrain), mode)
        arounds = surroundings(net.knn.kriging, between[order][:, order], terrain[order])
        shuffled = net.encoder(Window(*(part[order] for part in before)), arounds, mode)
    same(tuple(channel[order] for channel in found), shuffled, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_the_untrained_encoder_gives_back_about_what_was_observed(mode: str):
    torch.manual_seed(0)
    net, given_inputs = AQNet(TINY), inputs(hours=length(mode))
    with torch.no_grad():
        found = net.encoder(given_inputs, around(net), mode)
    own = slice(TINY.lead_hours, TINY.lead_hours + 12)
    valid = given_inputs.valid[:, own]
    assert ((found.bands.sum(-1) - given_inputs.z[:, own])[valid].abs() < 0.2).all()


@pytest.mark.parametrize("stations", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_any_number_of_stations_has_channels(stations: int, mode: str):
    net = network()
    with torch.no_grad():
        found = net.encoder(inputs(stations=stations, hours=length(mode)), around(net, stations=stations), mode)
    assert found.heard.shape == (stations, 12)
    assert all(torch.isfinite(channel).all() for channel in found)


# ---- sums ----


def test_gather_is_the_sums_of_its_definition():
    index, geometry = layout(points=3)
    given_channels, net = channels(), network()
    weights = weigh(net, (index, geometry))
    found = gather(given_channels, index, weights)
    bands, embedding, error, heard = (c.double().numpy() for c in given_channels)
    for q in range(3):
        near = index[q].numpy()
        a, kriging = weights.attention[q].double().numpy(), weights.bands[q].double().numpy()
        for t in range(5):
            for band in range(BANDS):
                assert found.bands[q, t, band] == pytest.approx(kriging[band] @ bands[:, t, band], abs=1e-4)
            assert found.error[q, t] == pytest.approx(a @ error[near, t], abs=1e-5)
            assert found.heard[q, t] == pytest.approx(a @ heard[near, t], abs=1e-5)
            np.testing.assert_allclose(found.embedding[q, t], a @ embedding[near, t], atol=1e-4)


def test_a_constant_in_a_band_comes_out_as_it_is():
    """Every value is traced to observations by weights that sum to 1."""
    index, geometry = layout()
    given_channels, net = channels(), network()
    weights = weigh(net, (index, geometry))
    before = gather(given_channels, index, weights)
    after = gather(given_channels._replace(bands=given_channels.bands + 1.0), index, weights)
    torch.testing.assert_close(after.bands, before.bands + 1, atol=1e-4, rtol=0)


# ---- head ----


@settings(max_examples=25)
@given(seeds)
def test_quantiles_never_decrease(seed: int):
    index, geometry = layout(seed)
    torch.manual_seed(seed)
    net = network(seed, noise=1.0)
    with torch.no_grad():
        quantiles, mean = net(channels(seed), index, net.knn(geometry, index), torch.randn(6, 5, 2))
    assert quantiles.shape == (6, 5, len(LEVELS))
    assert (quantiles.diff(dim=-1) >= 0).all()
    assert torch.isfinite(mean).all()


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_head_is_kriging_with_a_normal_interval(seed: int):
    """Median: the sum of the bands. Width: the variances of the bands, times how far neighbours are off nearby."""
    torch.manual_seed(seed)
    net, (index, geometry) = AQNet(TINY), layout(seed)
    with torch.no_grad():
        weights = net.knn(geometry, index)
        sums = gather(channels(seed), index, weights)
        quantiles, mean = net.head(sums, weights, torch.zeros(6, 5, 2))
    torch.testing.assert_close(quantiles[..., MEDIAN], sums.bands.sum(-1), atol=0.1, rtol=0)
    error = sums.error / (sums.heard + 1e-3) + 1e-3
    variance = weights.variance.sum(1)[:, None] * error / aqnet._ERROR
    width = quantiles[..., -1] - quantiles[..., 0]
    torch.testing.assert_close(width, 2 * 1.645 * variance.sqrt(), rtol=0.25, atol=0)
    # z^3 of a normal has the mean z^3 + 3 z variance, whose cube root is z + variance / z where that is small
    lift = variance / quantiles[..., MEDIAN].clamp(min=1)
    torch.testing.assert_close(mean - quantiles[..., MEDIAN], lift, rtol=0.25, atol=0)


def test_neighbours_that_were_farther_off_widen_the_interval():
    torch.manual_seed(0)
    net, (index, geometry) = AQNet(TINY), layout()
    with torch.no_grad():
        weights = net.knn(geometry, index)
        sums = gather(channels(), index, weights)
        near, far = (
            net.head(sums._replace(error=share * sums.heard), weights, torch.zeros(6, 5, 2))[0] for share in (0.2, 1.0)
        )
    assert ((far[..., -1] - far[..., 0]) > 1.5 * (near[..., -1] - near[..., 0])).all()


def test_the_cycle_of_the_query_reaches_its_estimate():
    index, geometry = layout()
    net = network()
    with torch.no_grad():
        weights = net.knn(geometry, index)
        noon, night = (net(channels(), index, weights, torch.full((6, 5, 2), s))[0] for s in (1.0, -1.0))
    assert not torch.equal(noon, night)


def test_the_head_stays_finite_where_nothing_was_heard():
    net, (index, geometry) = network(), layout()
    with torch.no_grad():
        weights = net.knn(geometry, index)
        silent = Sums(torch.zeros(6, 5, BANDS), torch.zeros(6, 5), torch.zeros(6, 5), torch.zeros(6, 5, TINY.embedding))
        found = net.head(silent, weights, torch.zeros(6, 5, 2))
    assert all(torch.isfinite(part).all() for part in found)


# ---- the whole ----


@pytest.mark.parametrize("k", [1, 2, 5, 48])
def test_any_number_of_stations_works(k: int):
    index, geometry = layout(stations=k)
    net = network()
    with torch.no_grad():
        quantiles, mean = net(channels(stations=k), index, net.knn(geometry, index), torch.randn(6, 5, 2))
    assert torch.isfinite(quantiles).all()
    assert torch.isfinite(mean).all()


def test_one_station_gives_its_value():
    given_channels, (index, geometry) = channels(stations=1), layout(stations=1)
    sums = gather(given_channels, index, weigh(network(), (index, geometry)))
    torch.testing.assert_close(sums.bands, given_channels.bands.expand(6, -1, -1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sums.embedding, given_channels.embedding.expand(6, -1, -1))


@pytest.mark.parametrize("km", [0.0, 3000.0, 19000.0])
def test_a_place_at_a_station_or_across_the_earth_has_weights(km: float):
    net, (index, geometry) = network(), layout()
    weights = weigh(net, (index, geometry._replace(distance=torch.full_like(geometry.distance, km))))
    assert all(torch.isfinite(part).all() for part in weights)
    torch.testing.assert_close(weights.bands.sum(-1), torch.ones(6, BANDS), atol=1e-3, rtol=0)


def test_every_gradient_is_finite_where_stations_share_a_place_or_say_nothing():
    net = network()
    index, geometry = layout(stations=60)
    one = index[0]  # these instruments and the first query stand at one place
    geometry.distance[:, one] = geometry.distance[:, one[:1]]
    geometry.between[:, one] = geometry.between[:, one[:1]]
    geometry.between[one] = geometry.between[one[:1]]
    geometry.distance[0] = geometry.between[one[0]]
    geometry.stations[one] = geometry.place[0]
    index = geometry.distance.topk(TINY.near, largest=False)[1]
    assert geometry.distance[0, index[0]].max() == geometry.between[one][:, one].max() == 0
    given_inputs = inputs(stations=60, hours=length("final"), missing=0.7)
    given_inputs.valid[index[1]] = False  # nothing at all near the second query
    total = torch.zeros(())
    for mode in MODES:
        read = given_inputs if mode == "final" else Window(*(part[:, : length(mode)] for part in given_inputs))
        read_channels = net.encoder(read, around(net, stations=60), mode)
        quantiles, mean = net(read_channels, index, net.knn(geometry, index, mode), torch.randn(6, 12, 2))
        total = total + quantiles.sum() + mean.sum()
    total.backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
    assert net.knn.kriging.log_range.grad.abs().sum() > 0
    assert net.encoder.recency.grad.abs().sum() > 0
