from __future__ import annotations

import gzip
import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import sources
from pipeline.contract import check_station_table
from pipeline.errors import InputError
from pipeline.sources.archive import RawFile
from pipeline.sources.openaq import SOURCE

HEADER = "location_id,sensors_id,location,datetime,lat,lon,parameter,units,value\n"


def row(time: str, value: object, sensor=22, parameter="pm25", units="µg/m³", location=7, **place: str) -> str:
    lat, lon = place.get("lat", "22.25"), place.get("lon", "113.5")
    return f'{location},{sensor},"Tung Chung, {location}",{time},{lat},{lon},{parameter},{units},{value}\n'


def parse(text: str, name: str = "x.csv") -> pd.DataFrame:
    raw = RawFile(f"d/{name}", name, text.encode())
    return check_station_table(pd.concat(SOURCE.parse(raw, None, "error")))


class TestRealArchive:
    name = "archive_location-7727-20221101_excerpt.csv"

    def test_values_hours_and_lines(self, shared_data):
        path = shared_data / "samples" / "openaq" / self.name
        day = np.datetime64("2022-10-31"), np.datetime64("2022-11-02")
        found = pd.concat(sources.read("openaq", path, None, *day, None))
        # 2022-11-01T01:00:00+08:00 is the end: 00-01 local is 16-17 UTC of the day before; pm10 100.3 ug m-3, line 2
        first = found.iloc[0]
        assert first["time"] == np.datetime64("2022-10-31T16")
        assert (first["station"], first["pm10"], first["line_pm10"]) == ("openaq:7727", np.float32(100.3), 2)
        assert (first["lon"], first["lat"]) == (113.943611111111, 22.2888888888889)
        assert found["pm10"].tolist() == pytest.approx([100.3, 56.9, 45.1, 46.0, 51.5, 45.7])
        assert found["line_pm10"].tolist() == [2, 3, 4, 5, 6, 7]
        assert found["pm2p5"].isna().all()

    def test_a_gzip_file_by_its_archive_name(self, shared_data, tmp_path):
        data = (shared_data / "samples" / "openaq" / self.name).read_bytes()
        path = tmp_path / "location-7727-20221101.csv.gz"
        path.write_bytes(gzip.compress(data))
        hour = np.datetime64("2022-10-31T16"), np.datetime64("2022-10-31T17")
        found = pd.concat(sources.read("openaq", tmp_path, None, *hour, None))
        assert found["pm10"].tolist() == [np.float32(100.3)]
        assert set(found["source_file"]) == {path.name}
        with pytest.raises(InputError, match="expected files for 2022-11-03"):
            list(sources.read("openaq", tmp_path, None, np.datetime64("2022-11-03"), np.datetime64("2022-11-04"), None))

    @pytest.mark.parametrize("name", ["air_quality_long_pandas_excerpt.csv", "air_quality_stations_pandas.csv"])
    def test_files_of_other_tools_are_refused(self, shared_data, name):
        text = (shared_data / "samples" / "openaq" / name).read_text()
        with pytest.raises(InputError, match="expected an OpenAQ archive file, with the column 'location_id'; found"):
            parse(text, name)


class TestTimes:
    @pytest.mark.parametrize(
        "time",
        ["2022-11-01T01:00:00+08:00", "2022-11-01 01:00:00+08:00", "2022-10-31T17:00:00Z", "2022-10-31T12:00:00-0500"],
    )
    def test_each_has_its_own_offset(self, time):
        assert parse(HEADER + row(time, 1))["time"][0] == np.datetime64("2022-10-31T16")

    @pytest.mark.parametrize(
        "time",
        [
            *("2022-11-01T01:00:00", "2022-11-01T01:00:00+18:00", "2022-11-01T01:00:00+08:07", "2022-11-01T25:00:00Z"),
            *("0022-11-01T01:00:00Z", "2022-11-31T01:00:00Z", "2022-11-1T01:00:00Z", "", "1667260800"),
        ],
    )
    def test_a_time_that_cannot_be_sure_is_refused(self, time):
        text = HEADER + row("2022-11-01T01:00:00+08:00", 1) + row(time, 1)
        with pytest.raises(InputError, match=r"line 3, column 'datetime': expected YYYY-MM-DDThh:mm:ss.hh:mm; found"):
            parse(text)

    def test_quarters_become_the_mean_of_their_hour(self):
        # ends at 00:15, 00:30, 00:45 and 01:00: the hour from 00; then three, which are enough, and two, which are not
        minutes = [15, 30, 45, 60, 75, 90, 105, 135, 150]
        start = pd.Timestamp("2022-11-01T00:00:00Z")
        times = [(start + pd.Timedelta(m, "min")).isoformat() for m in minutes]
        found = parse(HEADER + "".join(row(time, value) for value, time in enumerate(times)))
        assert found["time"].dt.hour.tolist() == [0, 1]
        assert found["pm2p5"].tolist() == [1.5, 5.0]  # (0 + 1 + 2 + 3) / 4, (4 + 5 + 6) / 3
        assert found["line_pm2p5"].tolist() == [5, 8]

    def test_quarters_of_a_zone_with_half_hours_fit_utc_hours(self):
        times = [f"2022-11-01T{h:02}:{m:02}:00+05:30" for h in (5, 6) for m in (0, 15, 30, 45)]
        found = parse(HEADER + "".join(row(time, value) for value, time in enumerate(times)))
        # ends 05:45, 06:00, 06:15, 06:30 local are the hour from 00 UTC
        assert found[found["time"] == np.datetime64("2022-11-01T00")]["pm2p5"].tolist() == [4.5]

    def test_hours_of_a_zone_with_half_hours_do_not(self, caplog):
        with caplog.at_level(logging.WARNING, "aqnet"):
            found = parse(HEADER + "".join(row(f"2022-11-01T{h:02}:00:00+05:30", h) for h in (5, 6, 7)))
        assert found.empty
        assert "left out 3 values: samples that reach over the edge of a UTC hour" in caplog.text

    def test_daily_means_are_refused(self):
        text = HEADER + "".join(row(f"2022-11-0{d}T00:00:00+08:00", d) for d in (1, 2, 4))
        with pytest.raises(InputError, match="column 'datetime': expected hourly or shorter means; found a daily file"):
            parse(text)


class TestRules:
    def test_the_sensor_with_the_lowest_id_counts(self):
        one, two = "2022-11-01T01:00:00Z", "2022-11-01T02:00:00Z"
        found = parse(HEADER + row(one, 9, sensor=5) + row(one, 7, sensor=31) + row(two, 8, sensor=31))
        assert found["pm2p5"].tolist() == [9, 8]

    def test_of_a_row_twice_the_later_counts(self):
        time = "2022-11-01T01:00:00Z"
        found = parse(HEADER + row(time, 9) + row(time, 7))
        assert (found["pm2p5"].tolist(), found["line_pm2p5"].tolist()) == ([7], [3])

    def test_negative_values_are_kept_and_marks_are_not(self):
        times = [f"2022-11-01T0{h}:00:00Z" for h in range(1, 5)]
        found = parse(HEADER + "".join(row(t, v) for t, v in zip(times, (-3, -9999, -999.0, ""), strict=True)))
        assert found["pm2p5"].tolist() == [-3]

    def test_gases_by_the_unit_of_each_row(self):
        time = "2022-11-01T01:00:00Z"
        gases = [("o3", "ppm", 0.05), ("no2", "ppb", 10), ("co", "ppm", 0.3), ("so2", "µg/m³", 4), ("bc", "?", 1)]
        text = HEADER + "".join(row(time, v, sensor=i, parameter=p, units=u) for i, (p, u, v) in enumerate(gases))
        found = parse(text).iloc[0]
        # at 25 degrees C: 50 ppb * 1.96187, 10 ppb * 1.88045, 0.3 ppm * 1.14488 mg m-3
        assert [found[name] for name in ("o3", "no2", "co", "so2")] == pytest.approx(
            [98.09, 18.80, 0.3435, 4], rel=1e-3
        )

    def test_two_locations_at_one_place_stay_two(self):
        found = parse(HEADER + row("2022-11-01T01:00:00Z", 1) + row("2022-11-01T01:00:00Z", 2, location=8))
        assert found["station"].tolist() == ["openaq:7", "openaq:8"]

    def test_names(self):
        assert SOURCE.span("location-7-20221101.csv.gz") == SOURCE.span("loc-7-20221101.csv")
        assert SOURCE.span("location-7-20221301.csv.gz") is None
        first, last = SOURCE.span("location-7-20221101.csv.gz")
        assert first <= np.datetime64("2022-10-31T09") < np.datetime64("2022-11-02T11") < last  # UTC+14 to UTC-12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a CSV header"),
        ("<html>\n", "line 1: expected an OpenAQ archive file, with the column 'location_id'; found <html>"),
        (HEADER.replace("sensors_id", "id"), "with the column 'sensor_id'"),
        (
            "location,city,country,utc,local,parameter,value,unit,latitude,longitude,attribution\n",
            "found location,city,country,utc,local,parameter,value,unit",
        ),
        (HEADER + row("2022-11-01T01:00:00Z", 1, units="ppb"), "line 2, column 'units': expected a unit of pm2p5"),
        (HEADER + row("2022-11-01T01:00:00Z", "x"), "line 2, column 'value': expected a number; found 'x'"),
        (HEADER + row("2022-11-01T01:00:00Z", 1, lat=""), r"line 2, column 'lat': expected degrees in \[-90, 90\]"),
        (HEADER + row("2022-11-01T01:00:00Z", 1, lon="999"), "line 2, column 'lon': expected degrees.*found '999.0'"),
        (HEADER + row("2022-11-01T01:00:00Z", 1, sensor=""), "line 2, column 'sensors_id': expected an OpenAQ sensor"),
        (HEADER + row("2022-11-01T01:00:00Z", 1, location=""), "line 2, column 'location_id': expected an OpenAQ loc"),
        (HEADER + "1,2\n", "line 2: expected 9 columns; found 2"),
    ],
)
def test_refusals(text, message):
    with pytest.raises(InputError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


NAMES = {"pm25": "pm2p5", "pm10": "pm10", "so2": "so2"}
entry = st.tuples(
    st.integers(1, 3), st.sampled_from(list(NAMES)), st.integers(0, 47), st.decimals(-5, 900, places=1), st.booleans()
)


@given(rows=st.lists(entry, min_size=1, max_size=40), offset=st.sampled_from([-8, 0, 3, 8]))
def test_round_trip_of_hourly_files(rows, offset):
    # each sensor has two further values an hour apart, so that no draw looks daily
    every = [(*r[:4], r[4]) for r in rows]
    every += [(place, name, hour, 1, False) for place, name in {r[:2] for r in rows} for hour in (60, 61)]
    text, expected = HEADER, {}
    for line, (place, name, hour, value, zulu) in enumerate(every, start=2):
        end = np.datetime64("2022-11-01T01", "s") + np.timedelta64(hour, "h")
        local = f"{end}Z" if zulu else f"{end + np.timedelta64(offset, 'h')}{offset:+03}:00"
        text += row(local, value, sensor=place * 10 + list(NAMES).index(name), parameter=name, location=place)
        expected[f"openaq:{place}", hour, NAMES[name]] = line, pytest.approx(float(value))
    found = parse(text)
    hours = (found["time"].to_numpy("M8[h]") - np.datetime64("2022-11-01T00")).astype(int)
    held = {
        (record["station"], hour, name): (record[f"line_{name}"], record[name])
        for hour, record in zip(hours.tolist(), found.to_dict("records"), strict=True)
        for name in NAMES.values()
        if record[f"line_{name}"]
    }
    assert held == expected
