from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.contract import POLLUTANTS, check_station_table, line_column
from pipeline.errors import InputError
from pipeline.sources import columns, hourly
from pipeline.sources.columns import TEXT
from pipeline.sources.csvfile import CsvFile
from pipeline.sources.longform import Readings, to_table

HOUR0 = np.datetime64("2023-01-01T00", "h")
FILE = CsvFile("f.csv", b"a,b\n")


def readings(rows: list[tuple[int, str, int, float, int]]) -> Readings:
    """Of (hour, station, pollutant, value, line); longitude is the line."""
    hour, station, pollutant, value, line = (list(column) for column in zip(*rows, strict=True)) if rows else [[]] * 5
    lines = np.array(line, dtype="int64")
    return Readings(
        time=HOUR0 + np.array(hour, dtype="m8[h]"),
        station=np.array(station, dtype="object"),
        pollutant=np.array(pollutant, dtype="int64"),
        value=np.array(value, dtype="float64"),
        line=lines,
        lon=lines / 10,
        lat=np.zeros(len(lines)),
        elevation=np.full(len(lines), np.nan),
    )


row = st.tuples(st.integers(-100, 100), st.sampled_from(["b:2", "a:1", "c:3"]), st.integers(0, 5), st.integers(-9, 500))


@given(st.lists(row, max_size=60), st.booleans())
def test_each_value_stands_once_with_the_line_that_counts(rows, by_precedence):
    numbered = [(*entry, line) for line, entry in enumerate(rows, start=2)]
    precedence = np.array([value % 3 for *_, value, _ in numbered], dtype="int64")
    found = check_station_table(to_table(readings(numbered), precedence if by_precedence else None))
    expected: dict[tuple[int, str, int], tuple[int, int, int]] = {}
    for hour, station, pollutant, value, line in numbered:
        new = (value % 3 if by_precedence else 0, line, value)
        key = hour, station, pollutant
        expected[key] = max(expected.get(key, new), new)
    seen = {}
    for record in found.to_dict("records"):
        for index, name in enumerate(POLLUTANTS):
            if line := record[line_column(name)]:
                hour = int((np.datetime64(record["time"], "h") - HOUR0).astype(int))
                seen[hour, record["station"], index] = line, record[name]
            else:
                assert np.isnan(record[name])
    assert seen == {key: (line, value) for key, (_, line, value) in expected.items()}
    assert found.equals(found.sort_values(["time", "station"], kind="stable"))


def test_a_categorical_of_stations_gives_the_same_table():
    plain = readings([(0, "b:2", 0, 1.0, 2), (1, "a:1", 1, 2.0, 3), (0, "b:2", 1, 3.0, 4)])
    quick = Readings(**(plain.__dict__ | {"station": columns.named(np.array([0, 1, 0]), ["b:2", "a:1"])}))
    pd.testing.assert_frame_equal(to_table(plain), to_table(quick))


class TestHourlyMeans:
    def means(self, minutes, seconds, value):
        start = np.datetime64("2023-01-01T00:00", "s") + np.array(minutes, dtype="m8[m]")
        key = np.zeros(len(minutes), dtype="int64")
        return hourly.hourly_means(FILE, key, start, np.full(len(minutes), float(seconds)), np.array(value)[:, None])

    def test_of_whole_hours_is_the_value(self):
        found = self.means([0, 60, 180], 3600, [1.0, 2.0, 4.0])
        assert list(found.hour - HOUR0) == [np.timedelta64(h, "h") for h in (0, 1, 3)]
        assert found.mean[:, 0].tolist() == [1, 2, 4]
        assert found.last.tolist() == [0, 1, 2]

    def test_three_of_four_quarters_are_enough_and_two_are_not(self, caplog):
        with caplog.at_level(logging.WARNING, "aqnet"):
            found = self.means([0, 15, 45, 60, 75], 900, [1.0, 2.0, 6.0, 1.0, 1.0])
        assert found.mean[:, 0].tolist() == [3.0]
        assert found.last.tolist() == [2]
        assert "f.csv: left out 1 values: hours with less than 75% of their samples" in caplog.text

    def test_an_hour_that_begins_at_half_past_is_left_out(self, caplog):
        with caplog.at_level(logging.WARNING, "aqnet"):
            assert len(self.means([30, 90], 3600, [1.0, 2.0]).hour) == 0
        assert "left out 2 values: samples that reach over the edge of a UTC hour" in caplog.text

    def test_order_of_the_file_does_not_matter(self):
        found = self.means([45, 0, 30, 15], 900, [4.0, 1.0, 3.0, 2.0])
        assert (found.mean[0, 0], found.last[0]) == (2.5, 0)

    def test_of_nothing(self):
        assert len(self.means([], 3600, np.zeros(0)).hour) == 0


def test_cadence_is_the_median_gap_of_each_key():
    time = np.array(["2023-01-01T00:00", "2023-01-01T05:00", "2023-01-01T00:02", "2023-01-01T00:04"], dtype="M8[s]")
    found = hourly.cadences(np.array([0, 1, 0, 0]), time)
    assert np.array_equal(found, [120, np.nan, 120, 120], equal_nan=True)


def table(texts: list[str | None]) -> tuple[CsvFile, pa.Table]:
    data = "d,t\n" + "".join(f"{text or ''},x\n" for text in texts)
    file = CsvFile("f.csv", data.encode())
    return file, file.read({"d": TEXT, "t": TEXT})


@pytest.mark.parametrize("text", ["2023-1-01", "2023-01-1", "2023-13-01", "2023-02-30", "0023-01-01", "", "x"])
def test_dates_are_read_digit_for_digit(text):
    file, found = table(["2023-01-01", text])
    clock = found.set_column(1, "t", pa.array(["01:00", "01:00"]).dictionary_encode())
    clock = clock.set_column(1, "t", clock["t"].cast(TEXT))
    with pytest.raises(InputError, match=r"f.csv, line 3, column 'd': expected a date written as 2001-02-03"):
        columns.clock_times(file, clock, "d", "t", "%Y-%m-%d", np.ones(2, dtype=bool))
    rows = np.array([True, False])
    found = columns.clock_times(file, clock, "d", "t", "%Y-%m-%d", rows)
    assert found[0] == np.datetime64("2023-01-01T01:00")
    assert np.isnat(found[1])


def test_numbers_knows_marks_however_they_are_written():
    file = CsvFile("f.csv", b"a\n-999.0\n-999\n1e1\nnan\n")
    found = columns.numbers(file, file.read({"a": pa.float64()}), "a", ("", "-999"))
    assert np.array_equal(found, [np.nan, np.nan, 10, np.nan], equal_nan=True)


@pytest.mark.parametrize("text", ["inf", "-inf", "1e300", "1e10"])
def test_numbers_refuses_what_is_none(text):
    file = CsvFile("f.csv", f"a\n1\n{text}\n".encode())
    with pytest.raises(InputError, match=r"f.csv, line 3, column 'a': expected a (finite )?number"):
        columns.numbers(file, file.read({"a": pa.float64()}), "a")


def test_coded_of_a_column_in_several_chunks():
    one, two = (pa.array(texts).dictionary_encode().cast(TEXT) for texts in (["b", None], ["a", "b"]))
    found = columns.coded(pa.table({"c": pa.chunked_array([one, two])}), "c")
    assert [found.texts[code] if code >= 0 else None for code in found.codes] == ["b", None, "a", "b"]
