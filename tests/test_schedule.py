"""Which hours are due: on stores made by real ingests of tables, and cubes that stand for published ones."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import analyse, schedule
from pipeline.contract import HOUR, STREAMS
from pipeline.errors import InputError
from pipeline.store.ingest import ingest
from pipeline.store.layout import load

START = np.datetime64("2019-12-01T00", "h")


def put(store: Path, name: str, hours: list[int], value: float = 50.0) -> None:
    """Ingest a table with one station's values in hours counted from `START`."""
    times = pd.DatetimeIndex([START + hour * HOUR for hour in hours])
    table = pd.DataFrame({"time": times, "station": "x:1", "lon": 115.0, "lat": 38.0, "pm2p5": value})
    path = store.parent / f"{name}.csv"
    table.to_csv(path, index=False, date_format="%Y-%m-%dT%H:%M")
    ingest(store, "table", path)


def cube(streams: list[int], made_to: int | None = None, stream: str = "interim") -> xr.Dataset:
    """A cube with these streams from `START` on."""
    attrs = {} if made_to is None else {schedule.MADE_TO[stream]: str(made_to)}
    time = START.astype("M8[ns]") + np.arange(len(streams)) * HOUR
    return xr.Dataset({"stream": ("time", np.array(streams, np.int8))}, {"time": time}, attrs)


def offsets(due: schedule.Due) -> list[tuple[int, int]]:
    return [(int((first - START) / HOUR), int((end - START) / HOUR)) for first, end in due.periods]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Observations of hours 0 to 9."""
    put(tmp_path / "store", "first", list(range(10)))
    return tmp_path / "store"


def interim(store: Path, seen: xr.Dataset | None, now: int = 100) -> schedule.Due:
    return schedule.interim(store, seen, START, START + now * HOUR)


# ---- interim ----


def test_without_a_cube_all_hours_that_have_ended_and_were_observed_are_due(store: Path) -> None:
    due = interim(store, None)
    assert offsets(due) == [(0, 10)]
    assert due.attrs(due.periods[0]) == {"interim_hours_made_to_ingest": "1"}
    assert offsets(interim(store, None, now=7)) == [(0, 7)]
    assert offsets(interim(store, None, now=-3)) == []


def test_nothing_is_due_twice(store: Path) -> None:
    assert interim(store, cube([0] * 10, made_to=1)).periods == []


def test_new_hours_and_gaps_are_due(store: Path) -> None:
    assert offsets(interim(store, cube([0, 0, -1, -1, 0, 0, 0], made_to=1))) == [(2, 4), (7, 10)]


def test_outlook_hours_are_due_once_they_were_observed(store: Path) -> None:
    assert offsets(interim(store, cube([0] * 6 + [2] * 30, made_to=1))) == [(6, 10)]


def test_late_data_make_what_looks_back_on_them_due(store: Path) -> None:
    seen = cube([0] * 10, made_to=1)
    put(store, "late", [4], value=80.0)
    due = interim(store, seen)
    assert offsets(due) == [(4, 10)]
    assert due.attrs(due.periods[-1]) == {"interim_hours_made_to_ingest": "2"}


def test_data_before_the_cube_count_as_far_as_flags_look_back(store: Path) -> None:
    """An hour that no estimate reads, but whose value can set a flag of one that is read."""
    first = int((analyse.first_hour(START) - START) / HOUR)
    assert first < -240
    seen = cube([0] * 10, made_to=1)
    put(store, "before", [first - 1])
    assert interim(store, seen).periods == []
    put(store, "just", [first])
    assert offsets(interim(store, seen)) == [(0, 10)]


def test_final_hours_are_none_of_interims_business(store: Path) -> None:
    seen = cube([1] * 4 + [0] * 6, made_to=1)
    put(store, "late", [2], value=80.0)
    assert offsets(interim(store, seen)) == [(4, 10)]


def test_a_cube_begun_by_hand_is_taken_as_made_to_its_own_ingest(store: Path) -> None:
    seen = cube([0] * 10).assign_attrs(observation_store_ingest="1")
    assert interim(store, seen).periods == []
    put(store, "late", [9], value=80.0)
    assert offsets(interim(store, seen)) == [(9, 10)]
    assert offsets(interim(store, cube([0] * 10))) == [(0, 10)]  # it does not say: all over again


def test_only_the_last_period_completes_the_stream(store: Path) -> None:
    due = interim(store, cube([0, 0, -1, -1, 0, 0, 0], made_to=1))
    assert [due.attrs(period) for period in due.periods] == [{}, {"interim_hours_made_to_ingest": "1"}]


def test_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected an observation store"):
        interim(tmp_path / "none", None)


# ---- final ----


def final(store: Path, seen: xr.Dataset | None, now: int, **how: int) -> schedule.Due:
    return schedule.final(store, seen, START + now * HOUR, **how)


def test_whole_days_become_final_five_days_after(store: Path) -> None:
    seen = cube([0] * 24 * 7, made_to=1, stream="final")
    assert final(store, seen, now=24 * 5 - 1).periods == []
    assert offsets(final(store, seen, now=24 * 5)) == [(0, 24)]
    assert offsets(final(store, seen, now=24 * 6 + 3)) == [(0, 48)]
    assert offsets(final(store, seen, now=24 * 6 + 3, after_days=6)) == [(0, 24)]


def test_days_missed_are_caught_up_with_and_final_ones_left(store: Path) -> None:
    seen = cube([1] * 24 + [0] * 24 * 6, made_to=1, stream="final")
    assert offsets(final(store, seen, now=24 * 7)) == [(24, 72)]


def test_late_data_make_final_hours_before_and_after_them_due(store: Path) -> None:
    """Of a day, what it looks ahead to are the two days after it."""
    seen = cube([1] * 24 * 10, made_to=1, stream="final")
    put(store, "late", [24 * 5 + 3], value=80.0)
    assert offsets(final(store, seen, now=24 * 20)) == [(24 * 3, 24 * 10)]


def test_without_a_cube_nothing_becomes_final(store: Path) -> None:
    assert final(store, None, now=1000).periods == []


# ---- a life ----


@settings(max_examples=4)
@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=4, max_size=8))
def test_whatever_arrives_when_every_hour_is_made_after_all_that_it_depends_on(
    tmp_path_factory: pytest.TempPathFactory, arrivals: list[tuple[int, bool]]
) -> None:
    """Hours arrive in any order; after each a scheduled run makes what is due, or fails and makes nothing."""
    store = tmp_path_factory.mktemp("life") / "store"
    made = np.zeros(61, int)
    seen: xr.Dataset | None = None
    arrived: dict[int, int] = {}
    for number, (hour, works) in enumerate(arrivals):
        put(store, f"file{number}", [hour], value=float(number + 1))
        arrived[hour] = load(store).ingest
        due = interim(store, seen, now=61)
        if not works:
            continue
        for period in offsets(due):
            made[slice(*period)] = load(store).ingest
        if due.periods:
            streams = np.where(made[: max(np.flatnonzero(made)) + 1] > 0, STREAMS["interim"], -1)
            seen = cube(streams.tolist(), made_to=due.ingest)
        for hour_made in np.flatnonzero(made):
            assert made[hour_made] >= max((n for h, n in arrived.items() if h <= hour_made), default=0)
        assert all(first < end for first, end in pairwise([edge for period in offsets(due) for edge in period]))
