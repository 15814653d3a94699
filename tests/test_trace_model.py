"""An estimate taken apart by the reference network adds up to what the fast path makes of the same record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_infer import LEAD, both_modes, network, place, places, record
from test_outlook import network as outlook_network
from test_outlook import observed, points

from model import infer, trace_outlook
from model.outlook_infer import outlook_blocks
from model.trace import DAY, as_z, in_ug, take_apart, window_of
from model.windows import LEVELS


@both_modes
@pytest.mark.parametrize("hour", [0, 13, 23, 30])
def test_the_parts_are_those_of_the_estimate(mode: str, hour: int) -> None:
    net, seen, at = network(), record(), place(places(), 2)
    seen.values[0, : LEAD + 15, 3] = np.nan  # first reports at 15 UTC
    found = take_apart(net, seen, at, LEAD + hour, mode)
    fast = next(iter(infer.day_blocks(net, seen, at, LEVELS, LEAD + hour, LEAD + hour + 1, mode)))
    assert found is not None
    assert found.mean == pytest.approx(fast.mean[0, 0], rel=1e-4)
    np.testing.assert_allclose(found.quantiles, fast.quantiles[:, 0, 0], rtol=1e-4, atol=1e-3)
    assert in_ug(found.median + found.lift) == pytest.approx(found.mean, rel=1e-5)
    assert in_ug(found.median) == pytest.approx(found.quantiles[LEVELS.index(0.5)], rel=1e-5)
    assert (3 in found.stations) == (mode == "final" or hour >= 15)


@both_modes
def test_weights_belong_to_observations_and_sum_to_one(mode: str) -> None:
    net, seen, at = network(), record(missing=0.4), LEAD + 20
    found = take_apart(net, seen, place(places(), 0), at, mode)
    assert found is not None
    values = seen.values[0, found.hours][:, found.stations].T
    valid = np.isfinite(values)
    assert not found.weight[~valid].any()
    assert found.weight.sum() == pytest.approx(1, abs=1e-5)
    assert found.band_weight.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (found.weight[valid] * as_z(values[valid])).sum() == pytest.approx(found.kriged, abs=1e-4)


@both_modes
def test_kriging_is_linear_so_a_weight_is_exactly_what_an_observation_adds(mode: str) -> None:
    net, seen, at, there = network(), record(), LEAD + 20, place(places(), 1)
    before = take_apart(net, seen, there, at, mode)
    assert before is not None
    row, hour = np.unravel_index(np.abs(before.weight).argmax(), before.weight.shape)
    values = seen.values.copy()
    old = values[0, before.hours.start + hour, before.stations[row]]
    values[0, before.hours.start + hour, before.stations[row]] = 4 * old
    after = take_apart(net, replace(seen, values=values), there, at, mode)
    assert after is not None
    rise = as_z(np.array([4 * old]))[0] - as_z(np.array([old]))[0]
    assert after.kriged - before.kriged == pytest.approx(before.weight[row, hour] * rise, rel=1e-3)


def test_the_window_is_that_of_the_mode_and_must_be_there() -> None:
    net, seen = network(), record()
    assert window_of(net, seen, LEAD + 26, "interim") == slice(DAY, LEAD + 27)
    assert window_of(net, seen, LEAD + 26, "final") == slice(DAY, LEAD + 2 * DAY + 6)
    with pytest.raises(ValueError, match=r"record: expected hours 48 to 84; found 0 to 78"):
        take_apart(net, seen, place(places(), 0), LEAD + 50, "final")


def test_without_any_observation_there_is_nothing_to_take_apart() -> None:
    seen = record()
    seen.values[0] = np.nan
    assert take_apart(network(), seen, place(places(), 0), LEAD + 3) is None


@pytest.mark.parametrize("lead", [1, 30, 168])
def test_a_forecast_is_the_weighted_sum_of_those_around_and_what_the_head_adds(lead: int) -> None:
    net, seen, every = outlook_network(noise=0.02), observed(), points()
    there = type(every)(*(np.asarray(part)[:1] for part in (every.lon, every.lat, every.elevation)))
    found = trace_outlook.take_apart(net, seen, there, lead)
    assert found is not None
    *_, block = outlook_blocks(net, seen, there, LEVELS, len(seen.hours), lead)
    assert found.weight.sum() == pytest.approx(1, abs=1e-5)
    assert (found.weight * found.centre).sum() == pytest.approx(found.combined)
    assert np.expm1(found.combined + found.shift + found.lift) == pytest.approx(block.mean[-1, 0], rel=1e-4, abs=1e-3)
    np.testing.assert_allclose(found.quantiles, block.quantiles[:, -1, 0], rtol=1e-4, atol=1e-3)
