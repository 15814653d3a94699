from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import sources
from pipeline.contract import POLLUTANTS, check_station_table, line_column
from pipeline.errors import InputError
from pipeline.sources import prsa
from pipeline.sources.archive import RawFile

HEADER = "No,year,month,day,hour,PM2.5,PM10,SO2,NO2,CO,O3,TEMP,PRES,DEWP,RAIN,wd,WSPM,station\n"
LIST = "station,code,lon,lat\nDongsi,1003A,116.4174,39.9289\nTiantan,1004A,,\n"


def line(hour: object = 0, values: str = "9,9,3,17,300,89", day: object = "2013,3,1", station: str = "Dongsi") -> str:
    return f'1,{day},{hour},{values},-0.5,1024.5,-21.4,0,"NNW",5.7,"{station}"\n'


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    path = tmp_path_factory.mktemp("prsa") / "stations.csv"
    path.write_text(LIST)
    return prsa.SOURCE.read_sites(path)


def parse(body: str, sites, header: str = HEADER, truncated="error") -> pd.DataFrame:
    (table,) = prsa.parse(RawFile("folder/PRSA.csv", "PRSA.csv", (header + body).encode()), sites, truncated)
    return check_station_table(table)


def read(path: Path, start: str, end: str) -> pd.DataFrame:
    found = sources.read("prsa", path, None, np.datetime64(start, "h"), np.datetime64(end, "h"), None)
    return pd.concat(found, ignore_index=True)


class TestGenuine:
    def test_first_hours_of_dongsi(self, shared_data):
        # line 2: 2013,3,1,0: 9,9,3,17,300,89; line 4: 2013,3,1,2: 7,7,NA,17,300,60. Hour 0 ends at 00:00 Beijing time
        table = read(shared_data / "prsa", "2013-02-28", "2013-03-01")
        rows = table[table["station"] == "prsa:Dongsi"].set_index("time")
        first, third = rows.loc["2013-02-28T15"], rows.loc["2013-02-28T17"]
        assert [first[name] for name in POLLUTANTS] == [9, 9, 3, 17, 89, np.float32(0.3)]
        assert [first[line_column(name)] for name in POLLUTANTS] == [2] * 6
        assert np.isnan(third["so2"])
        assert (third["line_so2"], third["line_pm2p5"]) == (0, 4)
        assert (first["lon"], first["lat"]) == (116.4174, 39.9289)
        assert first["source_file"].endswith("!PRSA_Data_Dongsi_20130301-20170228.csv")

    def test_a_blank_is_missing(self, shared_data):
        # Aotizhongxin, line 76: 75,2013,3,4,2,34,62, ,14,300,68: the hour from 17 UTC of the day before
        table = read(shared_data / "prsa", "2013-03-03T17", "2013-03-03T18")
        row = table[table["station"] == "prsa:Aotizhongxin"].iloc[0]
        assert np.isnan(row["so2"])
        assert [row[name] for name in ("pm2p5", "pm10", "no2", "o3")] == [34, 62, 14, 68]
        assert (row["line_pm2p5"], row["line_so2"]) == (76, 0)

    def test_midnight_fireworks_fall_into_the_hour_after_midnight(self, shared_data):
        """Fireworks of the Spring Festival begin at 00:00 Beijing time, 16:00 UTC: PM2.5 and SO2 leap in that hour."""
        for day in ("2014-01-31", "2015-02-19", "2016-02-08", "2017-01-28"):
            midnight = np.datetime64(day) - np.timedelta64(8, "h")
            table = read(shared_data / "prsa", midnight - np.timedelta64(4, "h"), midnight + np.timedelta64(4, "h"))
            for pollutant in ("pm2p5", "so2"):
                rise = table.groupby("time")[pollutant].mean().diff()
                assert rise.idxmax() == pd.Timestamp(midnight), (day, pollutant)

    def test_the_whole_archive(self, shared_data):
        table = check_station_table(read(shared_data / "prsa", "2013-01-01", "2018-01-01"))
        assert table["station"].nunique() == 12
        # 35,064 lines a station; cells that are neither NA nor blank: 412,029 of PM2.5 by `grep`, CO to 10 mg m-3
        assert table["pm2p5"].count() == 412_029
        assert table["co"].max() == 10
        assert (table["time"].min(), table["time"].max()) == (
            pd.Timestamp("2013-02-28T15"),
            pd.Timestamp("2017-02-28T14"),
        )

    def test_as_uci_serves_it_a_zip_in_a_zip(self, shared_data, tmp_path):
        whole = shared_data / "prsa" / "PRSA_Data_20130301-20170228.zip"
        name = "PRSA_Data_Dongsi_20130301-20170228.csv"
        inner = io.BytesIO()
        with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(inner, "w") as other:
            other.writestr(f"PRSA_Data_20130301-20170228/{name}", archive.read(name)[:20_000].rsplit(b"\n", 1)[0])
        with zipfile.ZipFile(tmp_path / "beijing.zip", "w") as outer:
            outer.writestr("PRSA2017_Data_20130301-20170228.zip", inner.getvalue())
        (tmp_path / "stations.csv").write_text(LIST)
        table = read(tmp_path / "beijing.zip", "2013-02-28", "2013-03-01")
        assert set(table["station"]) == {"prsa:Dongsi"}
        assert len(table) == 9


cells = st.one_of(st.none(), st.integers(0, 9000))


@given(rows=st.lists(st.tuples(*[cells] * 6), min_size=1, max_size=30), mark=st.sampled_from(["NA", "", " ", "  "]))
def test_round_trip(rows, mark, sites):
    start = np.datetime64("2016-02-28T00")
    text, expected = "", {}
    for i, values in enumerate(rows):
        label = pd.Timestamp(start + i)
        written = ",".join(mark if value is None else str(value) for value in values)
        text += line(label.hour, written, f"{label.year},{label.month},{label.day}")
        for column, value in zip(("pm2p5", "pm10", "so2", "no2", "co", "o3"), values, strict=True):
            if value is not None:
                scaled = np.float32(value * 1e-3 if column == "co" else value)
                expected[start + i - 9, column] = (scaled, i + 2)
    table = parse(text, sites)
    found = {
        (row["time"].to_numpy().astype("M8[h]"), name): (row[name], row[line_column(name)])
        for _, row in table.iterrows()
        for name in POLLUTANTS
        if not np.isnan(row[name])
    }
    assert found.keys() == expected.keys()
    for key, (value, number) in expected.items():
        assert found[key] == (pytest.approx(value, rel=1e-6), number)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (line(24), "line 2, column 'hour': expected a whole number in 0..23; found '24'"),
        (line("1.5"), "line 2, column 'hour': expected a whole number"),
        (line("1" + "0" * 400), "line 2, column 'hour': expected a whole number in 0..23; found '1000"),
        (line("x"), "line 2, column 'hour': expected a whole number; found 'x'"),
        (line("NA"), "line 2, column 'hour': expected a whole number"),
        (line(0, day="2013,2,29"), "line 2, column 'day': expected a day of the month; found '29'"),
        (line(0, day="213,2,1"), r"line 2, column 'year': expected a whole number in 1950..2199; found '213'"),
        (line(0, day="2013,13,1"), "line 2, column 'month'"),
        (line(0) + line(1, "9,9,low,17,300,89"), "line 3, column 'SO2': expected a number; found 'low'"),
        (
            line(0) + "\n" + line(1, "inf,9,3,17,300,89"),
            "line 4, column 'PM2.5': expected a concentration; found 'inf'",
        ),
        (line(0) + line(0), "line 3: expected each hour once; found the hour of 2013-02-28T15 UTC twice"),
        (line(0) + "2,2013\n", "line 3: expected 18 columns; found 2"),
        (line(0, station=""), "line 2, column 'station': expected a station"),
        (line(0, station="Tiantan"), "line 3: expected lon and lat of station Tiantan"),
        (line(0, station="Nowhere"), "for 1 of 1: Nowhere"),
    ],
)
def test_refusals_name_the_line(sites, body, message):
    with pytest.raises(InputError, match=message) as error:
        parse(body, sites)
    assert "\n" not in str(error.value)


def test_other_files_are_refused_by_name(sites):
    with pytest.raises(InputError, match=r"folder/PRSA.csv, line 1: expected hourly PRSA data, with the column 'hour'"):
        parse("1,2013,3,1,9\n", sites, header="No,year,month,day,PM2.5\n")
    with pytest.raises(InputError, match="expected the column 'hour' once; found it 2 times"):
        parse("", sites, header=HEADER.replace("TEMP", "hour"))


def test_truncated_keep_uses_the_whole_rows(sites, caplog):
    with caplog.at_level(logging.WARNING, "aqnet"):
        table = parse(line(0) + "2,2013\n" + line(1), sites, truncated="keep")
    assert list(table["line_pm2p5"]) == [2, 4]


def test_a_station_without_values_needs_no_coordinates(sites):
    assert parse(line(0, "NA,NA, ,NA,NA,NA", station="Tiantan"), sites).empty
    assert parse("", sites).empty


def test_the_name_tells_the_hours():
    assert prsa.span("PRSA_Data_Dongsi_20130301-20170228.csv") == (
        np.datetime64("2013-02-28T15"),
        np.datetime64("2017-02-28T15"),
    )
    assert prsa.span("PRSA_Data_Dongsi_20131301-20170228.csv") is None
    assert prsa.span("other.csv") is None


def test_the_list_must_be_one(tmp_path, sites):
    (tmp_path / "stations.csv").write_text("code,lon,lat\n")
    with pytest.raises(InputError, match="expected the columns station, lon, lat; 'station' is missing"):
        prsa.SOURCE.read_sites(tmp_path / "stations.csv")
    with pytest.raises(InputError, match="found no such file"):
        prsa.SOURCE.read_sites(tmp_path / "none.csv")
    with pytest.raises(InputError, match="expected a station list, because"):
        parse(line(), None)
