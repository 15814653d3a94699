"""The soak: what is delivered is what the archive holds, a difference is seen, and a server runs a few hours.

The hours on a server take minutes: `AQNET_TEST_SOAK=1` runs a few here, `make soak` runs 48.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from benchmarks import arrivals, prefect_site, soak
from pipeline.contract import POLLUTANTS
from pipeline.store import layout, ledger
from pipeline.store.ingest import ingest


def test_every_hour_arrives_whole_in_each_of_the_four_ways() -> None:
    found = arrivals.plan(48, seed=6)
    whole = [one for one in found if one.kind == "whole"]
    assert sorted(one.hour for one in whole) == list(range(48))
    assert [one.run for one in whole if one.hour < 12] == list(range(1, 13))
    late = [one.run - one.hour - 1 for one in whole if 12 <= one.hour < 24]
    assert min(late) == 0
    assert 6 < max(late) <= 12
    counts = Counter(one.kind for one in found if 24 <= one.hour < 36)
    assert counts == {"whole": 12, "again": 12, "provisional": 8, "outdated": 4}
    last = [one.hour for one in sorted(whole, key=lambda one: one.run) if one.hour >= 36]
    assert last != sorted(last)


def test_whatever_is_delivered_the_store_ends_with_the_archive(shared_data: Path, tmp_path: Path) -> None:
    """Hours in the API's layout, late, altered, outdated and again hold what the archive's day files hold."""
    work = soak.Soak(hours=8)
    archive = arrivals.Archive(shared_data / "cnemc", soak.START, work.end)
    sites, folder = shared_data / "cnemc" / "stations.csv", tmp_path / "arrivals"
    folder.mkdir()
    for one in work.deliveries():
        arrivals.deliver(archive, soak.START, one, folder)
        ingest(tmp_path / "hourly", "cnemc", folder, sites)
    hourly = layout.load(tmp_path / "hourly")
    ingest(tmp_path / "once", "cnemc", archive.cut(tmp_path / "days.zip", soak.START, work.end, soak.ARCHIVED), sites)
    pairs = [(tmp_path / name, layout.load(tmp_path / name).find("cnemc", "2019-12")) for name in ("hourly", "once")]
    ours, theirs = (layout.read_partition(*pair)[0] for pair in pairs)
    assert len(ours) == len(theirs) > 8 * 1400
    assert len(ledger.differences(ours, theirs)) == 0
    assert hourly.ingest > 8


def test_a_provisional_file_differs(shared_data: Path) -> None:
    archive = arrivals.Archive(shared_data / "cnemc", soak.START, soak.START + timedelta(hours=1))
    whole, provisional = archive.hour(soak.START), archive.hour(soak.START, random.Random(1))
    assert whole is not None
    assert provisional is not None
    assert whole[0] == provisional[0] == "2019-12-09T15.csv"
    share = len(provisional[1].splitlines()) / len(whole[1].splitlines())
    assert 0.75 < share < 0.85
    assert not set(provisional[1].splitlines()) <= set(whole[1].splitlines())


def cube(last: float) -> xr.Dataset:
    values = np.array([[1.0, np.nan], [2.0, last]])
    hours = np.array(["2019-12-09T06", "2019-12-09T07"], "M8[ns]")
    data = {"pm2p5": (("time", "cell"), values), "stream": ("time", [0, 0]), "revision": ("time", [1, 2])}
    return xr.Dataset(data, {"time": hours})


def test_one_value_that_differs_is_seen() -> None:
    assert soak.compare(cube(3), cube(3))["differ"].sum() == 0
    assert soak.compare(cube(3), cube(3.5)).iloc[0].to_dict() == {
        "variable": "pm2p5",
        "values": 4,
        "differ": 1,
        "largest": 0.5,
    }
    assert soak.compare(cube(np.nan), cube(3))["differ"].sum() == 1


def test_runs_at_once_are_seen() -> None:
    spans = [("10:00", "10:05"), ("10:06", "10:09"), ("10:08", "10:10")]
    assert soak.overlaps([{"start_time": start, "end_time": end} for start, end in spans]) == 1


def test_an_empty_folder_of_arrivals_is_no_error_but_an_absent_one_is(tmp_path: Path) -> None:
    from flows.scheduled import is_empty

    assert is_empty(tmp_path)
    assert not is_empty(tmp_path / "absent")
    (tmp_path / ".half.part").touch()
    assert is_empty(tmp_path)
    (tmp_path / "2019-12-09T15.csv").touch()
    assert not is_empty(tmp_path)


@pytest.mark.skipif("AQNET_TEST_SOAK" not in os.environ, reason="takes minutes; AQNET_TEST_SOAK=1 runs it")
def test_a_few_hours_on_a_server(shared_data: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    postgres = prefect_site.has_postgres() and os.getuid() != 0  # as root the database's user must reach the folder
    found = soak.soak_on(tmp_path, shared_data / "cnemc", soak.Soak(hours=3), postgres)
    assert found.passed, found.as_text()
    assert set(found.states["state"]) == {"Completed", "NothingDue"}


def test_pollutants_of_both_layouts_are_those_of_the_contract() -> None:
    assert sorted(arrivals.COLUMNS.values()) == sorted(name.replace("2p5", "2_5") for name in POLLUTANTS)
