"""AQ-Net on a record: the fast path is the training path, days are anchored, nothing looks farther than it may."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import Geod
from torch import Tensor

from model import calibration, checkpoint, grid_layout, infer, nearest
from model.aqnet import AQNet, AQNetConfig
from model.geometry import distance_matrix
from model.grid_layout import NEIGHBOURS
from model.infer import Interpolator, day_blocks, estimate, utc_days
from model.kriging import MODES, Geometry
from model.layout import surroundings
from model.windows import (
    LEVELS,
    POLLUTANTS,
    Estimate,
    Observations,
    Points,
    cyclic,
    from_z,
    terrain_features,
    window,
)

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
LEAD, TAIL, MIDNIGHT = 6, 6, 24 * 18000

both_modes = pytest.mark.parametrize("mode", MODES)


def network(seed: int = 0, noise: float = 0.1) -> AQNet:
    """Weights some way from the quiet start: what must hold, must hold for any."""
    torch.manual_seed(seed)
    made = AQNet(TINY).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight += noise * torch.randn_like(weight)
    return calibration.calibrated(made, (1.3, 0.8, 1.1, 0.9, 1.2, 1.5))


def record(hours: int = 78, stations: int = 20, first: int = MIDNIGHT - LEAD, missing: float = 0.2) -> Observations:
    """By default the lead and three UTC days; values depend on the hour, not on where the record begins."""
    values = np.empty((len(POLLUTANTS), hours, stations), np.float32)
    for i, hour in enumerate(range(first, first + hours)):
        rng = np.random.default_rng(hour)
        values[:, i] = rng.lognormal(3.0, 0.8, (len(POLLUTANTS), stations))
        values[:, i][rng.random((len(POLLUTANTS), stations)) < missing] = np.nan
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(113, 117, stations), rng.uniform(36, 39, stations)
    elevation, relief = rng.uniform(0, 900, stations), rng.uniform(-300, 300, (stations, 4))
    return Observations(np.arange(first, first + hours), values, lon, lat, elevation, relief)


def places(count: int = 7) -> Points:
    rng = np.random.default_rng(5)
    lon, lat, elevation = rng.uniform(113, 117, count), rng.uniform(36, 39, count), rng.uniform(0, 900, count)
    return Points(lon, lat, elevation, rng.uniform(-300, 300, (count, 4)))


def place(at: Points, i: int) -> Points:
    return Points(*(part[i : i + 1] for part in (at.lon, at.lat, at.elevation, at.relief)))


def cut(seen: Observations, hours: slice) -> Observations:
    return replace(seen, hours=seen.hours[hours], values=seen.values[:, hours])


def only(seen: Observations, stations: NDArray[np.int64]) -> Observations:
    part = {name: getattr(seen, name)[stations] for name in ("lon", "lat", "elevation", "relief")}
    return replace(seen, values=seen.values[:, :, stations], **part)


def assert_same(a: Estimate | infer.Block, b: Estimate | infer.Block, rtol: float = 0.0, atol: float = 0.0) -> None:
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol, atol=atol)
    np.testing.assert_allclose(a.quantiles, b.quantiles, rtol=rtol, atol=atol)


def assert_close(a: Estimate | infer.Block, b: Estimate | infer.Block) -> None:
    """Up to the rounding of sums in another order."""
    assert_same(a, b, rtol=1e-4, atol=1e-3)


def together(blocks: Iterator[infer.Block]) -> Estimate:
    made = list(blocks)
    return Estimate(np.concatenate([b.mean for b in made]), np.concatenate([b.quantiles for b in made], axis=1))


def late(found: Estimate, start: int) -> Estimate:
    return Estimate(found.mean[start:], found.quantiles[:, start:])


def early(found: Estimate, stop: int) -> Estimate:
    return Estimate(found.mean[:stop], found.quantiles[:, :stop])


# ---- the fast path ----


@both_modes
@pytest.mark.parametrize(("stations", "silent"), [(5, 0), (5, 2), (20, 7), (70, 0), (70, 25)])
def test_the_fast_path_gives_what_the_training_path_gives(mode: str, stations: int, silent: int):
    """`AQNet.forward` on the window of the second day, from the stations that report alone, as training has them.

    Of 70 stations enough lie 50 km away to judge each other apart, and not all are neighbours; three are fewer than
    attention looks at.
    """
    net, seen, at = network(), record(hours=LEAD + 48 + TAIL, stations=stations, missing=0.3), places()
    hours = slice(LEAD + 24, LEAD + 48)
    span = slice(hours.start - LEAD, hours.stop + (TAIL if mode == "final" else 0))
    seen.values[0, span, :silent] = np.nan  # they report before, and without PM2.5 still
    chosen = np.flatnonzero(np.isfinite(seen.values[0, span]).any(axis=0))
    assert len(chosen) == stations - silent
    z, mean = trained(net, seen, hours, span, chosen, at, mode)
    found = estimate(net, seen, at, mode)
    index = np.argsort(distance_matrix(at.lon, at.lat, seen.lon[chosen], seen.lat[chosen]), axis=1)[:, :NEIGHBOURS]
    heard = np.isfinite(seen.values[0, hours][:, chosen[index]]).any(axis=2)  # (T, Q)
    expected = np.where(heard, from_z(z).permute(2, 1, 0), np.nan), np.where(heard, from_z(mean).T, np.nan)
    np.testing.assert_allclose(found.quantiles[:, hours], expected[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.mean[hours], expected[1], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def trained(
    net: AQNet,
    seen: Observations,
    hours: slice,
    span: slice,
    chosen: NDArray[np.int64],
    at: Points,
    mode: str,
) -> tuple[Tensor, Tensor]:
    """Quantiles (Q, T, N) and mean (Q, T) in z as training makes them, from the chosen stations of a window."""
    lon, lat, terrain = seen.lon[chosen], seen.lat[chosen], terrain_features(seen)[chosen]
    between, km = (
        torch.from_numpy(distance_matrix(*places, lon, lat)).float() for places in ((lon, lat), (at.lon, at.lat))
    )
    geometry = Geometry(km, between, terrain_features(at), terrain)
    nearest = km.topk(min(TINY.near, len(chosen)), largest=False)[1]
    weights, around = net.knn(geometry, nearest, mode), surroundings(net.knn.kriging, between, terrain)
    channels = net.encoder(window(seen, span, chosen, TINY.mean, TINY.std), around, mode)
    return net(channels, nearest, weights, cyclic(seen.hours[hours], at.lon, 24.0))


@both_modes
def test_estimates_are_in_order_and_not_negative(mode: str):
    found = estimate(network(noise=0.6), record(), places(), mode)
    assert found.mean.shape == (78, 7)
    assert found.quantiles.shape == (len(LEVELS), 78, 7)
    assert found.mean.dtype == found.quantiles.dtype == np.float32
    assert (np.diff(found.quantiles, axis=0) >= 0).all()
    assert (found.mean >= 0).all()
    assert (found.quantiles >= 0).all()


def test_levels_are_a_selection_of_all():
    net, seen, at = network(), record(), places()
    few = together(day_blocks(net, seen, at, (0.5, 0.05))).quantiles
    every = estimate(net, seen, at).quantiles
    np.testing.assert_allclose(few, every[[LEVELS.index(0.5), LEVELS.index(0.05)]], rtol=1e-5)


def test_points_do_not_change_each_other(monkeypatch: pytest.MonkeyPatch):
    """Nor does it matter how many are worked on at once."""
    net, seen, at = network(), record(), places(11)
    whole = estimate(net, seen, at)
    for module, name in ((grid_layout, "_CHUNK"), (nearest, "_CHUNK"), (infer, "_BLOCK")):
        monkeypatch.setattr(module, name, 3)
    assert_same(estimate(net, seen, at), whole, rtol=2e-4)
    for i in (0, 5, 10):
        one = estimate(net, seen, place(at, i))
        np.testing.assert_allclose(one.mean[:, 0], whole.mean[:, i], rtol=2e-4)
        np.testing.assert_allclose(one.quantiles[:, :, 0], whole.quantiles[:, :, i], rtol=2e-4)


@both_modes
def test_days_together_are_each_day_alone_bit_for_bit(mode: str):
    """Their sums are taken together, in groups that this record does not fill; stations come and go."""
    net, seen, at = network(), record(24 * 7, stations=40), places(450)
    seen.values[:, 20:40, :9] = np.nan
    seen.values[:, 50:75, 30:] = np.nan
    one_by_one = Interpolator(net, seen, at, mode=mode)
    days = list(utc_days(seen.hours, 0))
    assert len(days) > 4
    for hours, found in zip(days, Interpolator(net, seen, at, mode=mode).run(days), strict=True):
        alone = one_by_one(hours)
        np.testing.assert_array_equal(found.mean, alone.mean)
        np.testing.assert_array_equal(found.quantiles, alone.quantiles)


@both_modes
def test_threads_do_not_change_the_estimates(mode: str):
    """Neither those that share out the points nor the one that reads the next day, though stations come and go."""
    net, seen, at = network(), record(stations=40), places(700)
    seen.values[:, 20:40, :9] = np.nan
    seen.values[:, 50:, 30:] = np.nan
    alone = estimate(net, seen, at, mode)
    torch.set_num_threads(2)
    try:
        shared = estimate(net, seen, at, mode)
    finally:
        torch.set_num_threads(1)
    assert_same(shared, alone, rtol=1e-5)


@both_modes
def test_stations_in_another_order_give_the_same_estimates(mode: str):
    net, seen, at = network(), record(), places()
    shuffled = only(seen, np.random.default_rng(1).permutation(20))
    assert_same(estimate(net, shuffled, at, mode), estimate(net, seen, at, mode), rtol=1e-3)


@both_modes
def test_estimator_is_the_network_of_a_file_in_a_mode(tmp_path: Path, mode: str):
    net = network()
    checkpoint.save(net, tmp_path / "w.safetensors", {})
    found = infer.estimator(tmp_path / "w.safetensors", mode)(record(), places())
    assert_same(found, estimate(net, record(), places(), mode))


def test_terrain_and_relief_of_a_point_count():
    net, seen, at = network(), record(), places()
    before = estimate(net, seen, at).mean
    for other in (replace(at, elevation=at.elevation + 500), replace(at, relief=at.relief + 300)):
        assert (np.abs(estimate(net, seen, other).mean / before - 1) > 1e-3).any(axis=0).all()


def test_unknown_relief_counts_as_flat():
    net, seen, at = network(), record(), places()
    flat = estimate(net, replace(seen, relief=np.zeros((20, 4))), replace(at, relief=np.zeros((7, 4))))
    assert_same(estimate(net, replace(seen, relief=None), replace(at, relief=None)), flat)


# ---- days ----


@given(st.integers(0, 10**6), st.integers(0, 90), st.integers(0, 90))
def test_utc_days_cut_at_every_midnight_and_nowhere_else(first: int, count: int, start: int):
    hours = np.arange(first, first + count)
    found = list(utc_days(hours, start))
    assert [i for s in found for i in range(s.start, s.stop)] == list(range(start, count))
    days = [set(hours[s] // 24) for s in found]
    assert all(len(day) == 1 for day in days)
    assert len({day.pop() for day in days}) == len(found)


@both_modes
@pytest.mark.parametrize("earlier", [1, 7, 24, 24 * 15])
def test_a_day_does_not_depend_on_where_its_record_begins(earlier: int, mode: str):
    """From its lead or from weeks earlier: 20 appended runs and one long run make the same product."""
    net, at = network(), places()
    short = estimate(net, record(), at, mode)
    long = estimate(net, record(78 + earlier, first=MIDNIGHT - LEAD - earlier), at, mode)
    assert_same(late(long, earlier + LEAD), late(short, LEAD))


@both_modes
@pytest.mark.parametrize("pieces", [[30, 54, 78], [29, 31, 53, 78], [7, 11, 40, 41, 78]])
def test_pieces_make_what_one_run_makes(pieces: list[int], mode: str):
    """Each piece is a run of its own that reads what it needs; midnight UTC is at 6, 30 and 54."""
    net, seen, at = network(), record(78 + TAIL), places()
    whole = late(together(day_blocks(net, seen, at, LEVELS, stop=78, mode=mode)), LEAD)
    start, found = LEAD, []
    for stop in pieces:
        midnight = start - int(seen.hours[start] % 24)
        last = stop - 1 - int(seen.hours[stop - 1] % 24) + 24 + TAIL if mode == "final" else stop
        part = cut(seen, slice(midnight - LEAD, last))
        offset = midnight - LEAD
        found.append(together(day_blocks(net, part, at, LEVELS, start - offset, stop - offset, mode)))
        start = stop
    mean, quantiles = np.concatenate([p.mean for p in found]), np.concatenate([p.quantiles for p in found], axis=1)
    assert_same(Estimate(mean, quantiles), whole)  # bit by bit: what is published is rounded, and must round alike


@both_modes
def test_a_day_depends_on_its_lead_hours_and_no_earlier_ones(mode: str):
    net, seen, at = network(), record(), places()
    before = estimate(net, seen, at, mode)
    for hour, moved in ((23, False), (24, True)):  # the second midnight is at 30, its lead begins at 24
        values = seen.values.copy()
        values[:, hour] = 300.0
        after = estimate(net, replace(seen, values=values), at, mode)
        assert np.array_equal(after.mean[30:54], before.mean[30:54]) != moved
        np.testing.assert_array_equal(after.mean[54:], before.mean[54:])


def test_hours_past_the_stop_serve_as_the_future_of_final_mode_alone():
    net, seen, at = network(), record(), places()
    for mode in MODES:
        known = together(day_blocks(net, seen, at, LEVELS, stop=54, mode=mode))
        unknown = estimate(net, cut(seen, slice(0, 54)), at, mode)
        assert known.mean.shape == (54, 7)
        assert np.array_equal(known.mean[30:], unknown.mean[30:]) == (mode == "interim")
        assert_same(known, early(estimate(net, seen, at, mode), 54))


# ---- how far ahead it looks ----


@pytest.mark.parametrize("now", [6, 20, 29, 30, 52, 76])
def test_the_future_changes_no_earlier_estimate(now: int):
    net, seen, at = network(), record(missing=0.05), places()
    values = seen.values.copy()
    values[:, now + 1 :] = np.random.default_rng(1).lognormal(5, 1, values[:, now + 1 :].shape)
    values[:, now + 1 :, ::3] = np.nan
    before, after = estimate(net, seen, at), estimate(net, replace(seen, values=values), at)
    assert_same(early(before, now + 1), early(after, now + 1))
    assert not np.array_equal(after.mean[now + 1 :], before.mean[now + 1 :])


@pytest.mark.parametrize("first", [30, 36, 40, 59, 60, 61])
def test_final_mode_looks_to_the_end_of_the_tail_and_no_further(first: int):
    """Days end before 30, 54 and 78; hours from `first` on change."""
    net, seen, at = network(), record(missing=0.05), places()
    values = seen.values.copy()
    values[:, first:] = np.random.default_rng(1).lognormal(5, 1, values[:, first:].shape)
    values[:, first:, ::3] = np.nan
    before, after = (estimate(net, given, at, "final") for given in (seen, replace(seen, values=values)))
    for start, stop in ((6, 30), (30, 54), (54, 78)):
        same = np.array_equal(after.mean[start:stop], before.mean[start:stop])
        assert same == (first >= stop + TAIL)
        if not same:  # all hours of the day, since the window is the day's
            assert (after.mean[start:stop] != before.mean[start:stop]).any(axis=1).all()


def test_an_hour_of_the_day_reaches_the_hours_before_it_in_final_mode_alone():
    net, seen, at = network(), record(missing=0.0), places()
    values = seen.values.copy()
    values[0, 45] *= 3
    for mode in MODES:
        before, after = (estimate(net, given, at, mode) for given in (seen, replace(seen, values=values)))
        assert np.array_equal(after.mean[:45], before.mean[:45]) == (mode == "interim")


def test_in_final_mode_a_station_that_starts_in_the_tail_is_there_all_day():
    net, at = network(), places()
    values = record().values.copy()
    values[:, : 54 + TAIL - 1, :5] = np.nan
    with_start = replace(record(), values=values.copy())
    values[:, :, :5] = np.nan
    never = replace(record(), values=values)
    a, b = estimate(net, with_start, at, "final"), estimate(net, never, at, "final")
    assert_same(early(a, 30), early(b, 30), rtol=1e-5)
    assert not np.isclose(a.mean[30:54], b.mean[30:54], rtol=1e-4).all(axis=1).any()


def test_a_station_that_first_reports_later_in_the_day_changes_no_earlier_hour():
    """Its place among the neighbours would move kriging weights before it has said anything."""
    net, at = network(), places()
    values = record().values.copy()
    values[:, : LEAD + 24 + 15, :5] = np.nan  # five stations start at 15 UTC of the second day
    with_start = replace(record(), values=values.copy())
    values[:, :, :5] = np.nan
    never = replace(record(), values=values)
    a, b = estimate(net, with_start, at), estimate(net, never, at)
    assert_same(early(a, LEAD + 24 + 15), early(b, LEAD + 24 + 15))
    assert not np.allclose(a.mean[LEAD + 24 + 15 :], b.mean[LEAD + 24 + 15 :])


def test_a_day_in_two_pieces_is_the_day_in_one_though_a_station_starts_between():
    net, at = network(), places()
    values = record().values.copy()
    values[:, : LEAD + 15, :5] = np.nan
    seen = replace(record(), values=values)
    whole, half = estimate(net, seen, at), estimate(net, cut(seen, slice(0, LEAD + 12)), at)
    assert_same(early(whole, LEAD + 12), half)


# ---- stations come and go ----


@both_modes
def test_a_layout_kept_up_to_date_is_a_fresh_one(mode: str):
    """Stations stop and start from day to day; attention is computed again for the points that they touch alone."""
    rng, net, at = np.random.default_rng(2), network(), places(40)
    values = record(hours=24 * 9, first=MIDNIGHT, stations=60, missing=0.0).values.copy()
    for day in range(9):
        values[:, 24 * day : 24 * day + 24, rng.permutation(60)[: rng.integers(0, 8)]] = np.nan
    values[:, 120 - LEAD : 144 + TAIL, 3:] = np.nan  # fewer than attention looks at for a day
    seen = replace(record(hours=24 * 9, first=MIDNIGHT, stations=60), values=values)
    kept = Interpolator(net, seen, at, mode=mode)
    for hours in utc_days(seen.hours, 0):
        found, fresh = kept(hours), Interpolator(net, seen, at, mode=mode)(hours)
        assert_close(found, fresh)
        np.testing.assert_allclose(found.distance, fresh.distance)


def test_attention_is_computed_again_for_points_that_a_station_touches_alone(monkeypatch: pytest.MonkeyPatch):
    seen, at, net = record(hours=48, first=MIDNIGHT, stations=60, missing=0.0), places(40), network()
    seen.values[0, 18:, 3] = np.nan  # station 3 is there on the first day, but not in the window of the second
    kept = Interpolator(net, seen, at)
    counts: list[int] = []
    attention = net.knn.attention  # once for every point whose attention is computed

    def spy(whole: Tensor, *layout: Tensor) -> Tensor:
        counts[-1] += len(whole)
        return attention(whole, *layout)

    monkeypatch.setattr(net.knn, "attention", spy)
    for hours in utc_days(seen.hours, 0):
        counts.append(0)
        kept(hours)
    km = distance_matrix(at.lon, at.lat, seen.lon, seen.lat)
    assert counts == [40, int((np.argsort(km, axis=1)[:, : TINY.near] == 3).any(axis=1).sum())]
    assert 0 < counts[1] < 40


def test_a_station_without_pm2p5_is_not_there_whatever_else_it_reports():
    net, seen, at = network(), record(), places()
    seen.values[0, :, 4] = np.nan
    seen.values[1:, :, 4] = 1e4
    rest = np.delete(np.arange(20), 4)
    for mode in MODES:
        assert_close(estimate(net, seen, at, mode), estimate(net, only(seen, rest), at, mode))


@both_modes
@settings(max_examples=12)
@given(seed=st.integers(0, 2**31))
def test_silent_stations_are_as_if_they_were_not_in_the_record(mode: str, seed: int):
    """Any number of them, whatever their places: weights of all stations say the same, bit by bit."""
    rng, seen, at = np.random.default_rng(seed), record(hours=LEAD + 24, stations=60), places()
    talking = np.sort(rng.permutation(60)[: rng.integers(1, 60)])
    silent = np.setdiff1d(np.arange(60), talking)
    place = silent[rng.random(len(silent)) < 0.3]  # some at the very place of one that reports, or of a point
    for name in ("lon", "lat", "elevation"):
        getattr(seen, name)[place] = rng.choice([getattr(seen, name)[talking[0]], getattr(at, name)[0]])
    seen.values[0, :, silent] = np.nan
    net = network(seed % 3)
    assert_same(estimate(net, seen, at, mode), estimate(net, only(seen, talking), at, mode))


@both_modes
def test_each_day_is_that_of_a_record_of_its_stations_alone(mode: str):
    """Stations that report in its window; and whoever reports at other times has no part in it."""
    net, at = network(), places()
    seen = record(hours=24 * 4 + LEAD, stations=30, missing=0.1)
    for day, away in enumerate((slice(0, 9), slice(5, 30), slice(0, 0), slice(20, 29))):
        seen.values[0, 24 * day : 24 * day + LEAD + 24 + TAIL, away] = np.nan
    found, counts = estimate(net, seen, at, mode), []
    for hours in utc_days(seen.hours, LEAD):
        stop = hours.stop + (TAIL if mode == "final" else 0)
        part = cut(seen, slice(hours.start - LEAD, stop))
        reporting = np.flatnonzero(np.isfinite(part.values[0]).any(axis=0))
        counts.append(len(reporting))
        alone = together(day_blocks(net, only(part, reporting), at, LEVELS, LEAD, LEAD + 24, mode))
        assert_same(Estimate(found.mean[hours], found.quantiles[:, hours]), alone)
    assert min(counts) <= 10
    assert len(set(counts)) > 2


@both_modes
@pytest.mark.parametrize("stations", [1, 2, 7])
def test_fewer_stations_than_neighbours_are_enough(stations: int, mode: str):
    found = estimate(network(), record(stations=stations, missing=0.0), places(), mode)
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.quantiles).all()


def test_one_station_gives_about_its_value_everywhere():
    torch.manual_seed(0)
    seen = record(stations=1, missing=0.0)
    found = estimate(AQNet(TINY).eval(), seen, places())
    median = np.cbrt(found.quantiles[LEVELS.index(0.5)])
    assert (np.abs(median - np.cbrt(seen.values[0])) < 0.3).all()


@both_modes
@pytest.mark.parametrize("stations", [0, 3])
def test_without_any_observation_there_is_no_estimate(stations: int, mode: str):
    blocks = list(day_blocks(network(), record(stations=stations, missing=1.1), places(), LEVELS, mode=mode))
    for block in blocks:
        for values in (block.mean, block.quantiles, block.distance):
            assert np.isnan(values).all()
        assert (block.count == 0).all()
    assert sum(len(block.mean) for block in blocks) == 78


def test_no_points_make_an_empty_estimate():
    found = estimate(network(), record(), places(0))
    assert found.mean.shape == (78, 0)
    assert found.quantiles.shape == (len(LEVELS), 78, 0)


@both_modes
def test_an_hour_without_observations_is_empty_and_its_neighbours_are_not(mode: str):
    seen = record(missing=0.0)
    seen.values[:, 40:43] = np.nan
    blocks = list(day_blocks(network(), seen, places(), LEVELS, mode=mode))
    mean, distance, count = (np.concatenate([getattr(b, n) for b in blocks]) for n in ("mean", "distance", "count"))
    np.testing.assert_array_equal(np.isnan(mean).all(axis=1), np.isin(np.arange(78), [40, 41, 42]))
    np.testing.assert_array_equal(np.isnan(mean).any(axis=1), np.isin(np.arange(78), [40, 41, 42]))
    np.testing.assert_array_equal(np.isnan(distance).all(axis=1), np.isin(np.arange(78), [40, 41, 42]))
    np.testing.assert_array_equal(count == 0, np.isin(np.arange(78), [40, 41, 42]))


def test_an_hour_without_observations_does_not_pull_the_next_ones_to_0():
    """Nor does the time before the record: everything is 50, so everything is estimated as about 50."""
    seen = record(missing=0.0)
    seen.values[:] = 50.0
    seen.values[:, 40:50] = np.nan
    torch.manual_seed(0)
    net = AQNet(TINY).eval()
    for mode in MODES:
        median = estimate(net, seen, places(), mode).quantiles[LEVELS.index(0.5)]
        known = np.delete(median, np.arange(40, 50), axis=0)
        assert ((known > 40) & (known < 62)).all()


@both_modes
def test_before_the_first_observation_there_is_no_estimate(mode: str):
    """Stations that report later in the day say nothing of the hours before: NaN, not 0 ug m-3."""
    seen = record(missing=0.0)
    seen.values[:, : LEAD + 10] = np.nan
    found = estimate(network(), seen, places(), mode)
    assert np.isnan(found.mean[: LEAD + 10]).all()
    assert np.isnan(found.quantiles[:, : LEAD + 10]).all()
    assert np.isfinite(found.mean[LEAD + 10 :]).all()


@both_modes
def test_in_an_hour_without_any_observation_there_is_no_estimate(mode: str):
    seen = record(missing=0.0)
    silent = LEAD + 24  # the whole network stops at the second midnight
    seen.values[:, silent:] = np.nan
    found = estimate(network(), seen, places(), mode)
    assert np.isfinite(found.mean[:silent]).all()
    assert np.isnan(found.mean[silent:]).all()
    assert np.isnan(found.quantiles[:, silent:]).all()


@pytest.mark.parametrize("silent", [NEIGHBOURS - 1, NEIGHBOURS])
def test_a_point_whose_neighbours_fell_silent_gets_no_invented_value(silent: int):
    """The nearest stations spoke last in the first hour of the window; the others go on. One neighbour is enough."""
    seen, at = record(stations=60, missing=0.0), places(1)
    order = np.argsort(distance_matrix(at.lon, at.lat, seen.lon, seen.lat)[0])
    seen.values[:] = 50.0
    seen.values[:, 25:, order[:silent]] = np.nan  # the second midnight is at 30, its lead begins at 24
    median = estimate(network(noise=0.0), seen, at).quantiles[LEVELS.index(0.5), :, 0]
    known = np.isfinite(median)
    assert known[:25].all()
    assert known[25:54].all() == (silent < NEIGHBOURS) == known[25:54].any()
    assert known[54:].all()  # the silent ones are no neighbours any more
    assert ((median[known] > 30) & (median[known] < 80)).all()


# ---- distance and count ----


def test_distance_is_the_geodesic_to_the_nearest_valid_station_of_the_hour():
    seen, at = record(missing=0.4), places()
    blocks = list(day_blocks(network(), seen, at, LEVELS))
    distance, count = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("distance", "count"))
    geod = Geod(ellps="WGS84")
    km = np.array([[geod.inv(a, b, c, d)[2] / 1000 for c, d in zip(seen.lon, seen.lat, strict=True)]
                   for a, b in zip(at.lon, at.lat, strict=True)])  # fmt: skip
    valid = np.isfinite(seen.values[0])
    expected = np.where(valid[:, None], km[None], np.inf).min(axis=2)
    np.testing.assert_array_equal(count, valid.sum(axis=1))
    np.testing.assert_allclose(distance, expected, rtol=1e-6)


def test_distance_reaches_beyond_the_neighbours_when_none_of_them_is_valid():
    """The nearest valid station of the hour may be farther than those without which there is no estimate."""
    seen, at = record(stations=60, missing=0.0), places(1)
    km = distance_matrix(at.lon, at.lat, seen.lon, seen.lat)[0]
    order = np.argsort(km)
    seen.values[0, 40, order[: NEIGHBOURS + 1]] = np.nan
    block = list(day_blocks(network(), seen, at, LEVELS))[2]
    assert block.distance[40 - block.hours.start, 0] == pytest.approx(km[order[NEIGHBOURS + 1]], rel=1e-3)
    assert np.isnan(block.mean[40 - block.hours.start, 0])


@both_modes
def test_a_point_at_a_station_is_0_km_away(mode: str):
    """And is estimated as a point a metre from it, whose distance is no division by 0."""
    net, seen = network(), record(missing=0.0)
    at = Points(*(part[:5] for part in (seen.lon, seen.lat, seen.elevation, seen.relief)))
    exact, beside = (
        next(day_blocks(net, seen, points, LEVELS, LEAD, mode=mode)) for points in (at, replace(at, lat=at.lat + 1e-5))
    )
    assert np.abs(exact.distance).max() < 1e-3
    np.testing.assert_allclose(beside.distance, 1.11e-3, rtol=0.02)
    assert_same(exact, beside, rtol=5e-3)


# ---- anywhere on Earth ----


@pytest.mark.parametrize("move", [(0, 0), (66, 0), (-115, -75), (180, 45)])
def test_every_place_on_earth_works_and_longitudes_may_run_either_way(move: tuple[float, float]):
    seen, at = record(), places()
    seen = replace(seen, lon=seen.lon + move[0], lat=seen.lat + move[1])
    at = replace(at, lon=at.lon + move[0], lat=at.lat + move[1])
    found = estimate(network(), seen, at)
    assert np.isfinite(found.mean).all()
    wrapped = replace(at, lon=(at.lon + 180) % 360 - 180)
    assert_same(estimate(network(), seen, wrapped), found, rtol=2e-4)


@both_modes
def test_the_date_line_is_a_meridian_like_any_other(mode: str):
    """Stations and points on both sides of it, with longitudes to 182 or from -180."""
    net, seen, at = network(), record(), places()
    seen, at = replace(seen, lon=seen.lon + 65), replace(at, lon=at.lon + 65)
    wrapped = replace(seen, lon=(seen.lon + 180) % 360 - 180)
    assert 0 < (wrapped.lon < 0).sum() < 20
    assert_same(estimate(net, wrapped, at, mode), estimate(net, seen, at, mode), rtol=2e-4)


def test_a_point_across_the_earth_has_a_finite_estimate_and_a_distance():
    block = next(day_blocks(network(), record(), Points(*np.array([[-65.0], [-38.0], [0.0]])), LEVELS))
    assert np.isfinite(block.quantiles).all()
    assert (block.distance > 15000).all()
