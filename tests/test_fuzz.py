"""A seeded share of the fuzz of every reader, and proof that its oracle sees what it is there to see."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.fuzz.attempt import ARCHIVE, SITES, attempt, make, prepared, run
from benchmarks.fuzz.drive import Tally, watched
from benchmarks.fuzz.layouts import LAYOUTS, source
from benchmarks.fuzz.mutate import Text
from pipeline.contract import POLLUTANTS, line_column
from pipeline.errors import InputError

#: Inputs a layout here; `python -m benchmarks.fuzz` runs 100,000. NetCDF goes through a worker process.
SHARE = {"timeseries": 60}

LINES = [line_column(name) for name in POLLUTANTS]


@pytest.fixture(autouse=True)
def caught():
    with prepared():
        yield


@pytest.mark.parametrize("name", [*LAYOUTS, ARCHIVE, SITES])
def test_damaged_files(name):
    for index in range(SHARE.get(name, 200)):
        outcome = run(name, 7, index)
        assert not outcome.findings, f"input {index} of {name}, seed 7"


def test_inputs_are_the_same_on_every_machine():
    assert make("cnemc-wide", 1, 5) == make("cnemc-wide", 1, 5) != make("cnemc-wide", 2, 5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_seed_is_read_and_right(name):
    for seed in LAYOUTS[name].seeds:
        outcome = attempt(name, seed.data)
        assert outcome.kind.startswith("read"), outcome.shape
        assert not outcome.findings


def genuine(monkeypatch, name: str, data: bytes, stations: Path | None = None) -> None:
    """Read a whole genuine file, and trace every value in it."""
    layout = replace(LAYOUTS[name], seconds=60.0)
    reader = source(layout.network)
    sites = None
    if stations is not None and reader.read_sites is not None:
        sites = reader.read_sites(stations)
        layout = replace(layout, known=frozenset(sites.frame.index[sites.frame["lon"].notna()]))
    monkeypatch.setitem(LAYOUTS, name, layout)
    outcome = attempt(name, data, lambda raw, _sites, truncated: reader.parse(raw, sites, truncated))
    assert outcome.kind in ("read", "read in part"), outcome
    assert not outcome.findings


class TestGenuineFiles:
    """The oracle and the readers, written apart, agree on every value of genuine files."""

    def test_cnemc(self, shared_data, monkeypatch):
        with zipfile.ZipFile(shared_data / "cnemc" / "unmodified_20191202-20191208.zip") as archive:
            text = archive.read("china_sites_20191203.csv")
        lines = text.splitlines(keepends=True)[:16]  # one hour
        genuine(monkeypatch, "cnemc-wide", b"".join(lines), shared_data / "cnemc" / "stations.csv")

    def test_cnemc_api(self, shared_data, monkeypatch):
        with zipfile.ZipFile(shared_data / "samples" / "cnemc-api" / "2026-02-27.zip") as archive:
            genuine(monkeypatch, "cnemc-api", archive.read("2026-02-27/2026-02-27T05.csv"))

    def test_prsa(self, shared_data, monkeypatch):
        with zipfile.ZipFile(shared_data / "prsa" / "PRSA_Data_20130301-20170228.zip") as archive:
            text = archive.read("PRSA_Data_Dongsi_20130301-20170228.csv")
        lines = text.splitlines(keepends=True)[:6001]
        genuine(monkeypatch, "prsa", b"".join(lines), shared_data / "prsa" / "stations.csv")

    @pytest.mark.parametrize(
        ("name", "file", "sites"),
        [
            ("airnow-data", "airnow/HourlyData_2025072409.dat", "airnow/monitoring_site_locations.dat"),
            ("airnow-aqobs", "airnow/HourlyAQObs_2026092715.dat", None),
            ("openaq", "openaq/archive_location-7727-20221101_excerpt.csv", None),
        ],
    )
    def test_samples(self, shared_data, monkeypatch, name, file, sites):
        folder = shared_data / "samples"
        genuine(monkeypatch, name, (folder / file).read_bytes(), folder / sites if sites else None)


def later(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(time=table["time"] + np.timedelta64(1, "h"))


def thousandfold(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(**{name: table[name] * 1000 for name in POLLUTANTS if name in table})


def next_line(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(
        **{name: table[name].where(table[name] == 0, table[name] + 1) for name in LINES if name in table}
    )


def first_row_gone(table: pd.DataFrame) -> pd.DataFrame:
    return table.iloc[1:].reset_index(drop=True)


def doubled(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table], ignore_index=True)


def half_hours(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(time=table["time"] + np.timedelta64(30, "m"))


def spoiled(name: str, fault: Callable[[pd.DataFrame], pd.DataFrame]) -> set[str]:
    """Kinds of findings in the first valid file of a layout, of its own reader with a fault planted."""

    def parse(*arguments: object) -> Iterator[pd.DataFrame]:
        return (fault(table) for table in source(LAYOUTS[name].network).parse(*arguments))

    return {finding.kind for finding in attempt(name, LAYOUTS[name].seeds[0].data, parse).findings}


@pytest.mark.parametrize("name", LAYOUTS)
class TestOracle:
    def test_sees_a_wrong_zone(self, name):
        assert spoiled(name, later) & {"wrong hour", "wrong line", "wrong value"}

    def test_sees_a_wrong_unit(self, name):
        assert "wrong unit" in spoiled(name, thousandfold)

    def test_sees_a_wrong_line(self, name):
        assert "wrong line" in spoiled(name, next_line) or "wrong hour" in spoiled(name, next_line)

    def test_sees_times_that_are_no_hours(self, name):
        assert spoiled(name, half_hours) >= {"no StationTable"}


@pytest.mark.parametrize("name", ["cnemc-wide", "cnemc-api", "airnow-data", "openaq", "prsa", "aqs", "purpleair"])
def test_the_oracle_sees_what_is_lost_or_twice(name):
    assert "lost" in spoiled(name, first_row_gone)
    assert "twice" in spoiled(name, doubled)


def test_the_oracle_sees_a_unit_that_is_not_known():
    seed = LAYOUTS["airnow-data"].seeds[0]
    assert isinstance(seed, Text)

    def trusting(raw, sites, truncated):
        changed = replace(raw, data=raw.data.replace(b"|NG/M3|", b"|UG/M3|"))
        return source("airnow").parse(changed, sites, truncated)

    data = seed.data.replace(b"|UG/M3|", b"|NG/M3|")
    assert attempt("airnow-data", data).kind == "refused"
    assert {finding.kind for finding in attempt("airnow-data", data, trusting).findings} == {"wrong unit"}


def failing(what: Callable[[], object]) -> set[str]:
    def parse(*_arguments: object) -> Iterator[pd.DataFrame]:
        what()
        yield from ()

    return {finding.kind for finding in attempt("table-csv", LAYOUTS["table-csv"].seeds[0].data, parse).findings}


def test_the_harness_sees_tracebacks_hangs_and_bad_errors(monkeypatch):
    monkeypatch.setitem(LAYOUTS, "table-csv", replace(LAYOUTS["table-csv"], seconds=0.2))

    def endless() -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:  # a reader that holds on to everything
                continue

    def refuse(message: str) -> None:
        raise InputError(message)

    assert failing(lambda: 1 / 0) == {"traceback"}
    assert failing(lambda: np.float32(1e38) * np.float32(1e38)) == {"traceback"}  # a warning is one, too
    assert failing(endless) == {"hang"}
    assert failing(lambda: refuse("folder/t.csv: two\nlines")) == {"not one line"}
    assert failing(lambda: refuse("no file")) == {"error without file"}
    assert failing(lambda: refuse("folder/t.csv, line 2: expected a number; found 'x'")) == set()


def dying_at_7(_name, _seed, indices, there, at) -> None:
    """What `watched` lets a child do: tallies of one input each, and a death at input 7."""
    for index in indices:
        at.value = index
        if index == 7:
            os._exit(11)
        there.send(Tally(inputs=1))
    there.send(None)


def test_a_crash_costs_one_input():
    found = watched("table-csv", 1, 12, dying_at_7)
    assert (found.inputs, dict(found.findings)) == (12, {"crash": 1})
    assert found.first["crash"] == [(7, "the process died with exit code 11")]


def hanging_at_3(_name, _seed, indices, there, at) -> None:
    """What `watched` lets a child do: tallies of one input each, and no answer any more at input 3."""
    for index in indices:
        at.value = index
        if index == 3:
            threading.Event().wait()
        there.send(Tally(inputs=1))
    there.send(None)


def test_a_hang_that_no_alarm_ends_costs_one_input(monkeypatch):
    monkeypatch.setattr("benchmarks.fuzz.drive.SILENCE", 0.5)
    found = watched("table-csv", 1, 6, hanging_at_3)
    assert (found.inputs, dict(found.findings)) == (6, {"hang": 1})
