from __future__ import annotations

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
from pipeline.sources.purpleair import SOURCE, corrected, read_sites

HEADER = "time_stamp,sensor_index,humidity,pm2.5_cf_1_a,pm2.5_cf_1_b\n"
LIST = "sensor_index,latitude,longitude,altitude\n274866,40.5,-120.25,1000\n7,41.5,-121.25,\n"

#: 2023-01-01T00:00:00Z in Unix seconds: 19358 days * 86400.
START = 1672531200


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    path = tmp_path_factory.mktemp("purpleair") / "sensors.csv"
    path.write_text(LIST)
    return read_sites(path)


def row(minute: float, a: object = 10, b: object = 12, humidity: object = 50, sensor: object = 274866) -> str:
    return f"{START + round(60 * minute)},{sensor},{humidity},{a},{b}\n"


def parse(text: str, sites=None, name: str = "history.csv") -> pd.DataFrame:
    raw = RawFile(f"d/{name}", name, text.encode())
    return check_station_table(pd.concat(SOURCE.parse(raw, sites, "error")))


class TestCorrection:
    def test_the_us_wide_formula(self):
        # 0.524 * 11 - 0.0862 * 50 + 5.75 = 5.764 - 4.31 + 5.75 = 7.204
        assert corrected(np.array([11.0]), np.array([50.0])) == pytest.approx(7.204)

    def test_its_extension_to_smoke(self):
        # 4.21e-4 * 700**2 + 0.392 * 700 + 3.44 = 206.29 + 274.4 + 3.44 = 484.13, whatever the humidity
        assert corrected(np.array([700.0, 700.0]), np.array([0.0, 100.0])) == pytest.approx([484.13, 484.13])
        # halfway, at 590: weight 0.0244 * 590 - 13.9 = 0.496; 381.27 by the one and 310.60 by the other at 50 %
        assert corrected(np.array([590.0]), np.array([50.0])) == pytest.approx([0.496 * 381.270 + 0.504 * 310.60])

    def test_is_continuous_where_the_forms_meet(self):
        for edge in (570.0, 611.0):
            below, above = corrected(np.array([edge - 1e-6, edge + 1e-6]), np.array([50.0, 50.0]))
            assert below == pytest.approx(above, abs=1.5)


class TestHours:
    def test_documented_two_minute_rows(self, sites):
        # a real row of the API, but for the time: 53 % and 8.8 in both channels: 0.524 * 8.8 - 0.0862 * 53 + 5.75
        text = HEADER + "".join(row(2 * i, 8.8, 8.8, 53) for i in range(30))
        found = parse(text, sites).iloc[0]
        assert found["time"] == np.datetime64("2023-01-01T00")
        assert found["pm2p5"] == pytest.approx(5.7926)
        assert (found["station"], found["line_pm2p5"]) == ("purpleair:274866", 31)
        assert (found["lon"], found["lat"]) == (-120.25, 40.5)
        assert found["elevation"] == pytest.approx(304.8)  # 1000 feet

    def test_iso_times_and_an_unsorted_file(self, sites):
        stamps = ["2023-01-01T02:00:00Z", "2023-01-01T00:00:00Z", "2023-01-01T01:00:00Z"]
        text = HEADER + "".join(f"{stamp},7,50,{i},{i}\n" for i, stamp in enumerate(stamps))
        found = parse(text, sites)
        assert found["line_pm2p5"].tolist() == [3, 4, 2]
        assert found["time"].dt.hour.tolist() == [0, 1, 2]

    def test_an_hour_needs_three_quarters_of_its_samples(self, sites, caplog):
        text = HEADER + "".join(row(10 * i) for i in (0, 1, 2, 3, 5)) + "".join(row(60 + 10 * i) for i in (0, 1, 2, 3))
        with caplog.at_level(logging.WARNING, "aqnet"):
            found = parse(text, sites)
        assert found["line_pm2p5"].tolist() == [6]
        assert "left out 1 values: hours with less than 75% of their samples" in caplog.text

    def test_channels_and_humidity_are_averaged_before_the_correction(self, sites):
        text = HEADER + row(0, 10, 12, 40) + row(30, 14, 16, 60) + row(60) + row(90)
        # mean of a 12, of b 14, of both 13, humidity 50: 0.524 * 13 - 4.31 + 5.75 = 8.252
        assert parse(text, sites)["pm2p5"][0] == pytest.approx(8.252)

    def test_daily_means_are_refused(self, sites):
        with pytest.raises(
            InputError, match="column 'time_stamp': expected hourly or shorter means; found a daily file"
        ):
            parse(HEADER + row(0) + row(1440), sites)
        with pytest.raises(InputError, match="found means of 6 hours or more"):
            parse(HEADER + row(0) + row(360), sites)


class TestChannels:
    @pytest.mark.parametrize(
        ("a", "b", "kept"),
        [
            (10, 15, True),  # 5 apart
            (1, 5.9, True),  # 142 % of the mean, but less than 5 apart
            (10, 15.1, True),  # 5.1 apart, but 41 % of 12.55
            (10, 18.7, True),  # 8.7 apart, 60.6 % of 14.35
            (10, 18.9, False),  # 8.9 apart, 61.6 % of 14.45
            (200, 260, True),
            (0, 6, False),
        ],
    )
    def test_agreement(self, sites, caplog, a, b, kept):
        with caplog.at_level(logging.WARNING, "aqnet"):
            found = parse(HEADER + row(0, a, b) + row(60, a, b), sites)
        assert len(found) == (2 if kept else 0)
        assert ("left out 2 values: channels A and B differ by more than 5 ug m-3 and 61%" in caplog.text) != kept

    def test_a_sample_needs_all_three(self, sites, caplog):
        text = HEADER + row(0) + row(60, a="") + row(120, b="nan") + row(180, humidity="null") + row(240, humidity=120)
        with caplog.at_level(logging.WARNING, "aqnet"):
            assert parse(text, sites)["line_pm2p5"].tolist() == [2]
        assert "left out 4 values: a channel or the humidity is missing" in caplog.text


class TestPlaces:
    def test_columns_of_the_file_come_first(self, sites):
        text = HEADER.replace("\n", ",latitude,longitude\n") + row(0).replace("\n", ",1.5,2.5\n")
        found = parse(text, sites)
        assert (found["lon"][0], found["lat"][0]) == (2.5, 1.5)

    def test_a_list_beside_the_files(self, tmp_path):
        (tmp_path / "sensors.csv").write_text(LIST)
        (tmp_path / "h.csv").write_text(HEADER + row(0))
        day = np.datetime64("2023-01-01"), np.datetime64("2023-01-02")
        assert len(pd.concat(sources.read("purpleair", tmp_path, None, *day, None))) == 1
        (tmp_path / "sensors.csv").unlink()
        with pytest.raises(InputError, match=r"expected the columns latitude and longitude, or a sensor list"):
            list(sources.read("purpleair", tmp_path, None, *day, None))

    def test_the_index_may_stand_in_the_name(self, sites):
        text = "time_stamp,humidity,pm2.5_cf_1_a,pm2.5_cf_1_b\n" + row(0).replace(",274866", "")
        assert parse(text, sites, "274866 2023-01-01 2023-01-02.csv")["station"].tolist() == ["purpleair:274866"]
        with pytest.raises(InputError, match="expected the column sensor_index, or a file name that begins with it"):
            parse(text, sites)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("sensor_index,lat\n", "with the column 'latitude'"),
            ("sensor_index,latitude,longitude\n7,91,0\n", "line 2, column 'lat': expected degrees"),
            ("sensor_index,latitude,longitude\nx,1,0\n", "line 2, column 'sensor_index': expected a whole number"),
        ],
    )
    def test_errors_of_the_list(self, tmp_path, text, message):
        (tmp_path / "s.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            read_sites(tmp_path / "s.csv")
        with pytest.raises(InputError, match="found none"):
            read_sites(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a CSV header"),
        ("<html>\n", "line 1: expected a PurpleAir history file, with the column 'time_stamp'; found <html>"),
        ('{"error": "ApiKeyInvalidError"}\n', "expected a PurpleAir history file"),
        (
            "time_stamp,sensor_index,humidity,pm2.5_atm_a,pm2.5_atm_b\n",
            "expected the columns pm2.5_cf_1_a, .*pm2.5_atm_a",
        ),
        ("time_stamp,sensor_index,humidity,pm2.5_cf_1\n", "needs both channels; found time_stamp,sensor_index"),
        (HEADER + row(0, "x"), "line 2, column 'pm2.5_cf_1_a': expected a number; found 'x'"),
        (HEADER + row(0) + row(0).replace("1672531200", "167253120"), "line 3, column 'time_stamp': expected Unix sec"),
        (HEADER + row(0).replace("1672531200", "0672531200"), "line 2, column 'time_stamp': expected Unix seconds"),
        (HEADER + row(0).replace("1672531200", "2023-01-01T00:00:00"), "line 2, column 'time_stamp'"),
        (HEADER + row(0).replace("1672531200", "2023-01-01T00:00:00+08:00"), "line 2, column 'time_stamp'"),
        (HEADER + row(0).replace("1672531200", "2300-01-01T00:00:00Z"), "line 2, column 'time_stamp'"),
        (HEADER + row(0).replace("1672531200", "9999999999"), "line 2, column 'time_stamp'"),
        (HEADER + row(0).replace("1672531200", "20\x1a1"), r"found '20\\x1a1'"),
        (HEADER + row(0, sensor=""), "line 2, column 'sensor_index': expected a sensor's index"),
        (HEADER + row(0, sensor=99), "expected a line for each station that reports.*99"),
        (HEADER + "1,2\n", "line 2: expected 5 columns; found 2"),
    ],
)
def test_refusals(sites, text, message):
    with pytest.raises(InputError, match=message) as error:
        parse(text, sites)
    assert "\n" not in str(error.value)


reading = st.tuples(
    st.sampled_from([7, 274866]), st.integers(0, 40), st.decimals(0, 500, places=1), st.decimals(0, 100, places=0)
)


@given(rows=st.lists(reading, min_size=1, max_size=30))
def test_round_trip_of_hourly_averages(rows, sites):
    # each sensor has two further hours, so that no draw looks like daily means
    every = [*rows, *((sensor, hour, 1, 50) for sensor in {r[0] for r in rows} for hour in (50, 51))]
    text, expected = HEADER, {}
    for line, (sensor, hour, value, humidity) in enumerate(every, start=2):
        text += row(60 * hour, value, value, humidity, sensor)
        right = corrected(np.array([float(value)]), np.array([float(humidity)]))[0]
        expected[f"purpleair:{sensor}", hour] = line, pytest.approx(right, rel=1e-5, abs=1e-5)
    found = parse(text, sites)
    hours = (found["time"].to_numpy("M8[h]") - np.datetime64("2023-01-01T00")).astype(int).tolist()
    held = zip(found["station"], hours, found["line_pm2p5"], found["pm2p5"], strict=True)
    assert {(station, hour): (line, value) for station, hour, line, value in held} == expected
