from __future__ import annotations

import itertools
import json
import os
import random
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import sources
from pipeline.contract import POLLUTANTS, line_column
from pipeline.errors import InputError
from pipeline.store import layout, ledger
from pipeline.store.ingest import ingest
from pipeline.store.rows import Rows, concatenate, from_table, merge
from pipeline.store.trace import trace

LIST = "code,lon,lat\n1001A,116.3,39.9\n1002A,116.2,40.3\n"
HEADER = "date,hour,type,1001A,1002A\n"
PERIOD = np.datetime64("2019-01-01"), np.datetime64("2020-12-31")


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the hundreds of stores made here the wait for the disk; tests/test_faults_store.py keeps it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def day_file(folder: Path, day: str, body: str, published: str = "2020-01-01", name: str | None = None) -> Path:
    """Write one CNEMC day file with a publication time, in a folder of its own with a station list."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stations.csv").write_text(LIST)
    path = folder / (name or f"china_sites_{day}.csv")
    path.write_text(HEADER + body)
    stamp = datetime.fromisoformat(published).replace(tzinfo=UTC).timestamp()
    os.utime(path, (stamp, stamp))
    return path


def observed(store: Path) -> pd.DataFrame:
    """Everything in the store, as a run reads it."""
    return pd.concat(sources.read("store", store, None, *PERIOD, None), ignore_index=True)


def cell(store: Path, station: str, time: str, pollutant: str = "pm2p5") -> float | None:
    found = [origin.value for origin in trace(store, station, np.datetime64(time), pollutant) if origin.counts]
    return found[0] if found else None


def hours_since(store: Path, ingest_number: int) -> list[str]:
    return [str(time) for time in ledger.since(store, ingest_number)["time"].to_numpy("datetime64[h]")]


class TestIngest:
    def test_values_places_and_lines(self, tmp_path):
        path = day_file(tmp_path / "raw", "20191210", "20191210,9,PM2.5,163,7\n20191210,9,PM10,196,\n")
        done = ingest(tmp_path / "s", "cnemc", path)
        assert (done.ingest, done.files, done.known, done.rows) == (1, 1, 0, 2)
        table = observed(tmp_path / "s").set_index("station")
        assert table.loc["cnemc:1001A", ["pm2p5", "pm10"]].tolist() == [163, 196]
        assert table.loc["cnemc:1002A", ["lon", "lat", "pm2p5"]].tolist() == [116.2, 40.3, 7]
        assert set(table["time"]) == {np.datetime64("2019-12-10T00")}
        (origin,) = trace(tmp_path / "s", "cnemc:1001A", np.datetime64("2019-12-10T00"), "pm10")
        assert (origin.value, origin.name, origin.line, origin.counts) == (196, "china_sites_20191210.csv", 3, True)

    def test_a_file_twice_changes_nothing(self, tmp_path):
        path = day_file(tmp_path / "raw", "20191210", "20191210,9,PM2.5,163,7\n")
        first = ingest(tmp_path / "s", "cnemc", path)
        manifest = (tmp_path / "s" / layout.MANIFEST).read_bytes()
        again = ingest(tmp_path / "s", "cnemc", path)
        assert (again.ingest, again.digest, again.files, again.known) == (1, first.digest, 0, 1)
        assert (tmp_path / "s" / layout.MANIFEST).read_bytes() == manifest

    def test_a_correction_replaces_withdraws_and_adds(self, tmp_path):
        day_file(tmp_path / "raw", "20191210", "20191210,9,PM2.5,1,2\n20191210,10,PM2.5,3,4\n20191210,11,PM2.5,5,\n")
        ingest(tmp_path / "s", "cnemc", tmp_path / "raw")
        body = "20191210,9,PM2.5,1,2\n20191210,10,PM2.5,3,\n20191210,11,PM2.5,9,6\n20191210,12,PM2.5,8,\n"
        day_file(tmp_path / "new", "20191210", body, published="2020-02-01")
        ingest(tmp_path / "s", "cnemc", tmp_path / "new")
        store = tmp_path / "s"
        assert cell(store, "cnemc:1002A", "2019-12-10T01") is None  # withdrawn
        assert cell(store, "cnemc:1001A", "2019-12-10T02") == 9
        assert hours_since(store, 1) == ["2019-12-10T01", "2019-12-10T02", "2019-12-10T03"]
        counts = ledger.since(store, 1)[list(ledger.COUNTS)].to_numpy().tolist()
        assert counts == [[0, 0, 1, 1], [1, 1, 0, 2], [1, 0, 0, 1]]
        former = [origin.value for origin in trace(store, "cnemc:1002A", np.datetime64("2019-12-10T01"))]
        assert former == [4]  # what was withdrawn can still be traced

    def test_an_older_file_after_a_newer_one_changes_no_value(self, tmp_path):
        day_file(tmp_path / "new", "20191210", "20191210,9,PM2.5,9,\n", published="2020-02-01")
        day_file(tmp_path / "old", "20191210", "20191210,9,PM2.5,1,2\n", published="2020-01-01")
        ingest(tmp_path / "s", "cnemc", tmp_path / "new")
        ingest(tmp_path / "s", "cnemc", tmp_path / "old")
        assert cell(tmp_path / "s", "cnemc:1001A", "2019-12-10T00") == 9
        assert cell(tmp_path / "s", "cnemc:1002A", "2019-12-10T00") is None
        assert hours_since(tmp_path / "s", 1) == []
        assert hours_since(tmp_path / "s", 0) == ["2019-12-10T00"]

    def test_files_without_a_dated_name_are_merged_value_by_value(self, tmp_path):
        day_file(tmp_path / "a", "", "20191210,9,PM2.5,1,2\n20191210,9,O3,5,\n", name="one.csv")
        day_file(tmp_path / "b", "", "20191210,9,PM2.5,,7\n", name="two.csv", published="2020-02-01")
        ingest(tmp_path / "s", "cnemc", tmp_path / "a")
        ingest(tmp_path / "s", "cnemc", tmp_path / "b")
        at = "2019-12-10T00"
        assert [cell(tmp_path / "s", f"cnemc:100{i}A", at) for i in (1, 2)] == [1, 7]
        assert cell(tmp_path / "s", "cnemc:1001A", at, "o3") == 5

    def test_the_publication_time_can_be_given(self, tmp_path):
        day_file(tmp_path / "a", "20191210", "20191210,9,PM2.5,1,2\n", published="2020-02-01")
        day_file(tmp_path / "b", "20191210", "20191210,9,PM2.5,3,4\n", published="2020-01-01")
        ingest(tmp_path / "s", "cnemc", tmp_path / "a")
        ingest(tmp_path / "s", "cnemc", tmp_path / "b", published=datetime(2020, 3, 1, tzinfo=UTC))
        assert cell(tmp_path / "s", "cnemc:1001A", "2019-12-10T00") == 3

    def test_other_coordinates_are_a_change(self, tmp_path):
        header = "time,station,lon,lat,pm2p5\n"
        for name, lon in (("a", 10), ("b", 11)):
            (tmp_path / f"{name}.csv").write_text(f"{header}2019-12-10T00,x:1,{lon},50,7\n")
        ingest(tmp_path / "s", "table", tmp_path / "a.csv", published=datetime(2020, 1, 1, tzinfo=UTC))
        ingest(tmp_path / "s", "table", tmp_path / "b.csv", published=datetime(2020, 1, 2, tzinfo=UTC))
        assert observed(tmp_path / "s")["lon"].tolist() == [11]
        assert ledger.since(tmp_path / "s", 1)[["added", "changed"]].to_numpy().tolist() == [[0, 1]]

    def test_bad_file_stops_with_nothing_changed_or_is_left_out(self, tmp_path):
        day_file(tmp_path / "raw", "20191210", "20191210,9,PM2.5,1,2\n")
        bad = day_file(tmp_path / "raw", "20191211", "20191211,9,PM2.5,1,x\n")
        with pytest.raises(InputError, match="line 2, column '1002A': expected a number; found 'x'"):
            ingest(tmp_path / "s", "cnemc", tmp_path / "raw")
        assert not (tmp_path / "s" / layout.MANIFEST).exists()
        done = ingest(tmp_path / "s", "cnemc", tmp_path / "raw", keep_going=True)
        assert (done.files, len(done.refused)) == (1, 1)
        assert str(bad) in done.refused[0]

    def test_one_ingest_at_a_time(self, tmp_path):
        from pipeline import atomic

        path = day_file(tmp_path / "raw", "20191210", "20191210,9,PM2.5,1,2\n")
        with (
            atomic.lock(tmp_path / "s", RuntimeError("taken")),
            pytest.raises(InputError, match="another ingest is at work"),
        ):
            ingest(tmp_path / "s", "cnemc", path)

    def test_leavings_of_a_killed_ingest_go(self, tmp_path):
        path = day_file(tmp_path / "raw", "20191210", "20191210,9,PM2.5,1,2\n")
        stray = tmp_path / "s" / "observations" / "network=cnemc" / "month=2019-12" / ".cnemc-2019-12-0.parquet.part"
        stray.parent.mkdir(parents=True)
        stray.write_bytes(b"half")
        ingest(tmp_path / "s", "cnemc", path)
        assert not stray.exists()

    def test_a_folder_that_is_no_store(self, tmp_path):
        with pytest.raises(InputError, match=r"expected an observation store .* found no manifest.json"):
            observed(tmp_path)
        (tmp_path / layout.MANIFEST).write_text("{}")
        with pytest.raises(InputError, match="expected the manifest of an observation store, format 1; found None"):
            observed(tmp_path)


FILES = {
    "a": ("20191130", "20191130,9,PM2.5,1,2\n20191130,9,O3,1,2\n20191201,8,PM2.5,5,5\n", "2020-01-01"),
    "b": ("20191201", "20191201,8,PM2.5,6,\n20191201,9,PM2.5,6,7\n", "2020-01-02"),
    "c": ("20191130", "20191130,9,PM2.5,3,\n", "2020-01-03"),
    "d": ("20191201", "20191201,8,PM2.5,,8\n20191201,9,PM2.5,6,7\n", "2019-12-31"),
}


@pytest.mark.parametrize("together", [True, False])
def test_files_in_any_order_make_the_same_store(tmp_path, together):
    for name, (day, body, published) in FILES.items():
        day_file(tmp_path / name, day, body, published)
    digests, tables = set(), set()
    for number, order in enumerate(itertools.permutations(FILES)):
        store = tmp_path / f"s{number}"
        for name in order if not together else [*order, *order]:
            ingest(store, "cnemc", tmp_path / name)
        digests.add(layout.load(store).digest)
        tables.add(observed(store).drop(columns="source_file").to_csv())
    assert len(digests) == 1
    assert len(tables) == 1


cells = st.one_of(st.none(), st.integers(1, 999))
tables = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from("xyz"), cells, cells),
    min_size=0,
    max_size=8,
    unique_by=lambda r: r[:2],
)


def rows_of(file: str, listed: list[tuple[int, str, int | None, int | None]]) -> Rows:
    frame = pd.DataFrame(
        {
            "time": [np.datetime64("2019-12-10", "ns") + np.timedelta64(hour, "h") for hour, *_ in listed],
            "station": [name for _, name, *_ in listed],
            "lon": 1.0,
            "lat": 2.0,
            "pm2p5": np.array([v for _, _, v, _ in listed], dtype="float32"),
            "o3": np.array([v for *_, v in listed], dtype="float32"),
            "line_pm2p5": range(1, len(listed) + 1),
            "line_o3": range(1, len(listed) + 1),
        }
    ).astype({"time": "datetime64[ns]"})
    return from_table(frame, file)


@settings(deadline=None)
@given(listed=st.lists(tables, min_size=1, max_size=4), seed=st.integers(0, 99), dropped=st.sets(st.integers(0, 3)))
def test_merge_is_what_a_loop_over_values_gives(listed, seed, dropped):
    names = [f"f{i}" for i in range(len(listed))]
    order = names.copy()
    random.Random(seed).shuffle(order)
    rank = {name: -1 if int(name[1:]) in dropped else order.index(name) for name in names}
    expected: dict[tuple[int, str, str], tuple[int, float, str]] = {}
    for name, table in zip(names, listed, strict=True):
        for hour, station, *values in table:
            for pollutant, value in zip(("pm2p5", "o3"), values, strict=True):
                key = hour, station, pollutant
                if value is not None and rank[name] >= 0 and (key not in expected or expected[key][0] < rank[name]):
                    expected[key] = rank[name], value, name
    rows = concatenate([rows_of(name, table) for name, table in zip(names, listed, strict=True)])
    found, contested = merge(rows, np.array([rank[name] for name in rows.files], dtype="int64"))
    first = np.datetime64("2019-12-10", "h").astype("int64")
    got = {
        (int(found.hour[i] - first), found.stations[found.station[i]], POLLUTANTS[p]): (
            rank[found.files[found.file[i, p]]],
            float(found.values[i, p]),
            found.files[found.file[i, p]],
        )
        for i, p in zip(*np.nonzero(np.isfinite(found.values)), strict=True)
    }
    assert got == expected
    assert (np.diff(found.key) > 0).all()
    assert len(contested) <= len(rows)


class TestLedger:
    def test_periods(self):
        hours = pd.Series(np.array(["2019-12-10T00", "2019-12-10T01", "2019-12-10T05"], dtype="M8[ns]"))
        assert [tuple(map(str, p)) for p in ledger.periods(hours)] == [
            ("2019-12-10T00", "2019-12-10T02"),
            ("2019-12-10T05", "2019-12-10T06"),
        ]
        assert ledger.periods(hours[:0]) == []

    def test_unknown_ingest(self, tmp_path):
        ingest(tmp_path / "s", "cnemc", day_file(tmp_path / "raw", "20191210", "20191210,9,PM2.5,1,2\n"))
        with pytest.raises(InputError, match="expected an ingest from 0 to 1; found 7"):
            ledger.since(tmp_path / "s", 7)

    def test_revisions_made_from_files(self):
        with pytest.raises(InputError, match="r3: expected a revision made from an observation store"):
            ledger.used_by({}, "r3")
        assert ledger.used_by(ledger.state(layout.Manifest(4)), "r3") == 4


def test_duckdb_queries_the_files_that_the_manifest_names(tmp_path):
    day_file(tmp_path / "a", "20191210", "20191210,9,PM2.5,1,2\n")
    day_file(tmp_path / "b", "20191210", "20191210,9,PM2.5,3,4\n", published="2020-02-01")
    store = tmp_path / "s"
    for name in "ab":
        ingest(store, "cnemc", tmp_path / name)
    paths = [
        str(store / part["observations"]) for part in json.loads((store / "manifest.json").read_text())["partitions"]
    ]
    with duckdb.connect() as db:
        found = db.execute("select station, pm2p5 from read_parquet(?) order by station", [paths]).fetchall()
    assert found == [("cnemc:1001A", 3.0), ("cnemc:1002A", 4.0)]


class TestRealYear:
    def test_a_week_equals_what_a_run_reads_from_the_files(self, tmp_path, shared_data):
        raw = tmp_path / "raw"
        raw.mkdir()
        for name in ("unmodified_20191202-20191208.zip", "stations.csv"):
            (raw / name).symlink_to(shared_data / "cnemc" / name)
        ingest(tmp_path / "s", "cnemc", raw)
        period = np.datetime64("2019-12-03"), np.datetime64("2019-12-05")
        one, other = (
            pd.concat(sources.read(source, path, None, *period, (110, 35, 120, 42)))
            .sort_values(["time", "station"])
            .astype({"station": "str"})
            .reset_index(drop=True)[["time", "station", "lon", "lat", *POLLUTANTS]]
            for source, path in (("store", tmp_path / "s"), ("cnemc", raw))
        )
        pd.testing.assert_frame_equal(one, other)

    def test_values_are_traced_to_file_and_line(self, tmp_path, shared_data):
        container = shared_data / "cnemc" / "unmodified_20191202-20191208.zip"
        ingest(tmp_path / "s", "cnemc", container, shared_data / "cnemc" / "stations.csv")
        table = observed(tmp_path / "s").sample(40, random_state=1)
        with zipfile.ZipFile(container) as archive:
            for row in table.itertuples():
                for pollutant in POLLUTANTS:
                    value = getattr(row, pollutant)
                    found = [o for o in trace(tmp_path / "s", row.station, row.time, pollutant) if o.counts]
                    assert len(found) == int(np.isfinite(value))
                    for origin in found:
                        lines = archive.read(origin.name.split("!")[1]).decode().splitlines()
                        at = lines[0].split(",").index(row.station.split(":")[1])
                        assert float(lines[origin.line - 1].split(",")[at]) == pytest.approx(float(value))
                        assert origin.value == value


def test_lines_of_a_partition_are_its_rows(tmp_path):
    ingest(tmp_path / "s", "cnemc", day_file(tmp_path / "raw", "20191210", "20191210,9,PM2.5,1,2\n20191210,9,O3,,5\n"))
    table = observed(tmp_path / "s")
    assert table[line_column("pm2p5")].tolist() == [1, 2]
    assert table[line_column("o3")].tolist() == [0, 2]
