from __future__ import annotations

import contextlib
import hashlib
import logging
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fuzz import parquet, rows
from pipeline import sources
from pipeline.contract import POLLUTANTS, check_station_table, line_column
from pipeline.errors import ConfigError, InputError
from pipeline.sources.archive import RawFile, members
from pipeline.sources.csvfile import CsvFile

DAY = np.datetime64("2019-12-10"), np.datetime64("2019-12-11")
LIST = "code,lon,lat\n1001A,116.3,39.9\n1002A,116.2,40.3\n"
HEADER = "date,hour,type,1001A,1002A\n"
LINES = [line_column(name) for name in POLLUTANTS]


def wide(folder: Path, body: str, header: str = HEADER, stations: str = LIST, name: str = "20191210") -> Path:
    """Write one archive file and a station list beside it; return the file."""
    (folder / "stations.csv").write_text(stations)
    path = folder / f"china_sites_{name}.csv"
    path.write_text(header + body)
    return path


def read(path: Path, start=DAY[0], end=DAY[1], bbox=None, **options) -> pd.DataFrame:
    stations = options.pop("stations", None)
    source = options.pop("source", "cnemc")
    return pd.concat(sources.read(source, path, stations, start, end, bbox, **options), ignore_index=True)


def at(table: pd.DataFrame, station: str, time: str) -> pd.Series:
    rows = table[(table["station"] == station) & (table["time"] == np.datetime64(time))]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.fixture(scope="module")
def day(shared_data) -> pd.DataFrame:
    """All stations, 2019-12-10 UTC."""
    return read(shared_data / "cnemc")


class TestRealArchive:
    def test_label_8_beijing_is_the_hour_from_23_utc_of_the_day_before(self, shared_data):
        # china_sites_20191210.csv, hour 8, 1001A: PM2.5 163, PM10 196, CO 2.9; averaged 07-08 Beijing = 23-24 UTC
        table = read(shared_data / "cnemc", np.datetime64("2019-12-09T23"), np.datetime64("2019-12-10T00"))
        row = at(table, "cnemc:1001A", "2019-12-09T23")
        assert row["pm2p5"] == 163
        assert row["pm10"] == 196
        assert row["co"] == np.float32(2.9)

    def test_values_of_the_next_hour(self, day):
        # 20191210,9: PM2.5 171,118,192; O3 empty,1,3
        assert [at(day, f"cnemc:100{i}A", "2019-12-10T00")["pm2p5"] for i in (1, 2, 3)] == [171, 118, 192]
        assert np.isnan(at(day, "cnemc:1001A", "2019-12-10T00")["o3"])
        assert at(day, "cnemc:1003A", "2019-12-10T00")["o3"] == 3

    def test_a_day_is_a_station_table_in_its_period(self, day):
        check_station_table(day)
        assert day["time"].min() == np.datetime64("2019-12-10T00")
        assert day["time"].max() == np.datetime64("2019-12-10T23")
        assert day["station"].nunique() > 1400
        assert set(day["source_file"]) == {f"china_sites_201912.zip!china_sites_201912{d}.csv" for d in (10, 11)}

    def test_published_week_and_reduced_month_agree(self, shared_data):
        period = np.datetime64("2019-12-03"), np.datetime64("2019-12-04")
        list_path = shared_data / "cnemc" / "stations.csv"
        one, other = (
            read(shared_data / "cnemc" / name, *period, stations=list_path).drop(columns=["source_file", *LINES])
            for name in ("unmodified_20191202-20191208.zip", "china_sites_201912.zip")
        )
        pd.testing.assert_frame_equal(one, other)

    def test_bbox_keeps_the_stations_inside(self, shared_data):
        table = read(shared_data / "cnemc", *DAY, bbox=(116, 39, 117, 41))
        assert table["lon"].between(116, 117).all()
        assert table["lat"].between(39, 41).all()
        assert "cnemc:1001A" in set(table["station"])

    @pytest.mark.parametrize(
        ("day", "line", "found"), [("2019-02-20", 51, "932"), ("2019-04-24", 165, "110")], ids=["february", "april"]
    )
    def test_truncated_files(self, shared_data, day, line, found, caplog):
        start = np.datetime64(day, "h")
        with pytest.raises(InputError, match=rf"line {line}: expected 1608 columns; found {found}; set truncated"):
            read(shared_data / "cnemc", start, start + np.timedelta64(24, "h"))
        with caplog.at_level(logging.WARNING, "aqnet"):
            kept = read(shared_data / "cnemc", start, start + np.timedelta64(24, "h"), truncated="keep")
        assert f"line {line}" in caplog.text
        assert len(kept) > 1000

    def test_a_code_twice_in_the_header_counts_once(self, shared_data):
        table = read(shared_data / "cnemc", np.datetime64("2019-06-01"), np.datetime64("2019-06-01T06"))
        assert not table.duplicated(["time", "station"]).any()

    def test_digests_are_of_the_members_that_a_read_opens(self, shared_data):
        found = sources.input_digests("cnemc", shared_data / "cnemc", *DAY)
        with zipfile.ZipFile(shared_data / "cnemc" / "china_sites_201912.zip") as archive:
            names = [f"china_sites_201912{d}.csv" for d in (10, 11)]
            expected = {
                f"china_sites_201912.zip!{name}": hashlib.sha256(archive.read(name)).hexdigest() for name in names
            }
        stations = (shared_data / "cnemc" / "stations.csv").read_bytes()
        assert found == expected | {"stations.csv": hashlib.sha256(stations).hexdigest()}


class TestRealApi:
    def test_hour_and_values(self, shared_data):
        path = shared_data / "samples" / "cnemc-api" / "2026-02-27.zip"
        table = read(path, np.datetime64("2026-02-26"), np.datetime64("2026-02-28"))
        # 2026-02-27T0500,2568A,102.2503,31.8896: pm10 11, pm2_5 3, o3 42, no2 3, so2 5, co 0.3
        row = at(table, "cnemc:2568A", "2026-02-26T20")
        assert [row[name] for name in POLLUTANTS] == [3, 11, 5, 3, 42, np.float32(0.3)]
        assert (row["lon"], row["lat"]) == (102.2503, 31.8896)
        assert table["time"].min() == np.datetime64("2026-02-26T15")
        assert table["time"].max() == np.datetime64("2026-02-27T14")

    def test_only_the_files_of_the_period_are_opened(self, shared_data):
        path = shared_data / "samples" / "cnemc-api" / "2026-02-27.zip"
        found = sources.input_digests("cnemc", path, np.datetime64("2026-02-26T20"), np.datetime64("2026-02-26T22"))
        assert list(found) == [f"2026-02-27.zip!2026-02-27/2026-02-27T0{h}.csv" for h in (5, 6)]


cells = st.one_of(st.none(), st.integers(-5, 3000))


@given(grid=st.lists(st.tuples(cells, cells), min_size=24, max_size=24), kind=st.sampled_from(["PM2.5", "PM10", "O3"]))
def test_wide_file_round_trip(grid, kind, tmp_path_factory):
    text = "".join(
        f"20191210,{hour},{kind},{','.join('' if v is None else str(v) for v in row)}\n"
        for hour, row in enumerate(grid)
    )
    path = wide(tmp_path_factory.mktemp("wide"), text + "20191210,0,PM2.5_24h,1,1\n20191210,0,AQI,1,1\n")
    column = {"PM2.5": "pm2p5", "PM10": "pm10", "O3": "o3"}[kind]
    expected = {
        (np.datetime64("2019-12-09T15") + hour, f"cnemc:100{i + 1}A"): value
        for hour, row in enumerate(grid)
        for i, value in enumerate(row)
        if value is not None
    }
    period = np.datetime64("2019-12-09T00"), np.datetime64("2019-12-12T00")
    if not expected:
        with pytest.raises(InputError, match="expected observations"):
            read(path, *period)
        return
    table = read(path, *period)
    keys = zip(table["time"].to_numpy("datetime64[h]"), table["station"], strict=True)
    assert dict(zip(keys, table[column], strict=True)) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("20191210,9,PM2.5,1\n", "line 2: expected 5 columns; found 4; set truncated"),
        ("20191210,9,PM2.5,1,2\n20191210,10,PM2.5,1,2,3\n", "line 3: expected 5 columns; found 6"),
        ("20191210,9,PM2.5,1,2\n20191210,10,PM2.5,x7,2\n", "line 3, column '1001A': expected a number; found 'x7'"),
        ("2019-12-10,9,PM2.5,1,2\n", "line 2, column 'date': expected a whole number; found '2019-12-10'"),
        ("20191310,9,PM2.5,1,2\n", "line 2, column 'date': expected a date as YYYYMMDD; found '20191310'"),
        (
            "20191210,9,PM2.5,1,2\n20191210,24,PM2.5,1,2\n",
            "line 3, column 'hour': expected an hour in 0..23; found '24'",
        ),
        ("20191210,9,PM2.5_24h,1,2\n", "column 'type': expected PM2.5, PM10, .*; found 'PM2.5_24h'"),
    ],
)
def test_broken_wide_files(tmp_path, body, message):
    path = wide(tmp_path, body)
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_keep_uses_the_whole_rows(tmp_path, caplog):
    path = wide(tmp_path, "20191210,9,PM2.5,1,2\n\n20191210,10,PM2.5,4\n")
    with caplog.at_level(logging.WARNING, "aqnet"):
        table = read(path, truncated="keep")
    assert list(table["pm2p5"]) == [1, 2]
    assert "line 4: expected 5 columns; found 4" in caplog.text


def test_unknown_header(tmp_path):
    path = wide(tmp_path, "1,2,3,4,5\n", header="Date Local,Sample,x,y,z\n")
    with pytest.raises(InputError, match="expected a header date,hour,type"):
        read(path)


def test_header_without_codes(tmp_path):
    with pytest.raises(InputError, match="expected station codes"):
        read(wide(tmp_path, "20191210,9,PM2.5\n", header="date,hour,type\n"))


def test_empty_file(tmp_path):
    with pytest.raises(InputError, match="expected a CSV header"):
        read(wide(tmp_path, "", header=""))


def test_header_only_file_holds_nothing(tmp_path):
    with pytest.raises(InputError, match="found none at all"):
        read(wide(tmp_path, ""))


class TestStationList:
    body = "20191210,9,PM2.5,1,2\n"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("code,lon,lat\n1001A,116,39\n1002A,,\n", "stations.csv, line 3: expected lon and lat of station 1002A"),
            ("code,lon,lat\n1001A,116,39\n1002A,116,\n", "stations.csv, line 3: expected lon and lat of station 1002A"),
            ("code,lon,lat\n1001A,116,39\n", "for 1 of 2: 1002A"),
            ("code,lon\n1001A,116\n", "expected the columns code, lon, lat; 'lat' is missing"),
            ("code,lon,lat\n1001A,x,39\n", "line 2, column 'lon': expected a number; found 'x'"),
            ("code,lon,lat\n1001A,116,99\n", r"line 2, column 'lat': expected degrees in \[-90, 90\]; found 99"),
        ],
    )
    def test_what_it_lacks_is_an_error(self, tmp_path, text, message):
        with pytest.raises(InputError, match=message):
            read(wide(tmp_path, self.body, stations=text))

    def test_no_coordinates_are_needed_for_a_station_that_does_not_report(self, tmp_path):
        path = wide(tmp_path, "20191210,9,PM2.5,1,\n", stations="code,lon,lat\n1001A,116,39\n1002A,,\n")
        assert list(read(path)["station"]) == ["cnemc:1001A"]

    def test_a_few_codes_it_does_not_have_are_left_out_with_one_warning(self, tmp_path, caplog):
        codes = [f"{i}A" for i in range(1000, 1100)]
        row = ",".join(["5"] * 100)
        path = wide(
            tmp_path,
            f"20191210,9,PM2.5,{row}\n20191210,10,PM2.5,{row}\n",
            header=f"date,hour,type,{','.join(codes)}\n",
            stations="code,lon,lat\n" + "".join(f"{code},116,39\n" for code in codes[2:]),
        )
        with caplog.at_level(logging.WARNING, "aqnet"):
            table = read(path)
        assert table["station"].nunique() == 98
        assert [r.message.split(": ", 1)[1] for r in caplog.records] == ["no line for 2 codes, left out: 1000A, 1001A"]

    def test_it_must_exist(self, tmp_path):
        path = wide(tmp_path, self.body)
        with pytest.raises(InputError, match="found no such file"):
            read(path, stations=tmp_path / "nowhere.csv")
        (tmp_path / "stations.csv").unlink()
        with pytest.raises(InputError, match="expected a station list"):
            read(path)


class TestPaths:
    body = "20191210,9,PM2.5,1,2\n"

    def test_missing_path(self, tmp_path):
        with pytest.raises(InputError, match="nope: expected a file or folder"):
            read(tmp_path / "nope")

    def test_zip_without_csv(self, tmp_path):
        path = tmp_path / "empty.zip"
        zipfile.ZipFile(path, "w").close()
        with pytest.raises(InputError, match=r"empty.zip: expected a zip with at least one .csv file; found 0 members"):
            read(path)

    def test_no_zip(self, tmp_path):
        path = tmp_path / "page.zip"
        path.write_text("<html>not found</html>")
        with pytest.raises(InputError, match=r"page.zip: expected a zip archive"):
            read(path)

    def test_damaged_member(self, tmp_path):
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("china_sites_20191210.csv", HEADER + self.body)
        path.write_bytes(path.read_bytes().replace(b"PM2.5,1", b"PM2.5,9"))
        with pytest.raises(InputError, match=r"a.zip!china_sites_20191210.csv: expected a readable zip member"):
            read(path)

    @pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
    def test_damaged_compression(self, tmp_path, kind):
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", kind) as archive:
            archive.writestr("china_sites_20191210.csv", HEADER + self.body * 50)
        data = bytearray(path.read_bytes())
        start = 30 + len("china_sites_20191210.csv")
        data[start + 4 : start + 14] = bytes(255 - byte for byte in data[start + 4 : start + 14])
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"a.zip!china_sites_20191210.csv: expected a readable zip member"):
            read(path, stations=wide(tmp_path, self.body).parent / "stations.csv")

    def test_a_zip_in_a_zip_is_not_unpacked_beyond_the_limit(self, tmp_path, monkeypatch):
        monkeypatch.setattr("pipeline.sources.archive.MAX_BYTES", 100)
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("bomb.zip", b"0" * 101)
        with pytest.raises(InputError, match=r"a.zip!bomb.zip: expected at most 100 bytes unpacked; found 101"):
            members(tmp_path / "a.zip")

    def test_a_member_with_control_characters_in_its_name(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("x\n\x1b[31m.csv", "nothing\n")
        with pytest.raises(InputError, match=r"a.zip!x \\x1b\[31m.csv: expected a header") as error:
            read(tmp_path / "a.zip", stations=wide(tmp_path, self.body).parent / "stations.csv")
        assert str(error.value).isprintable()

    def test_folder_without_data(self, tmp_path):
        (tmp_path / "stations.csv").write_text(LIST)
        with pytest.raises(InputError, match=r"expected .csv or .zip files in the folder"):
            read(tmp_path)

    def test_period_without_files_names_the_period_of_the_files(self, tmp_path):
        wide(tmp_path, self.body)
        with pytest.raises(InputError, match="found files for 2019-12-09T15 to 2019-12-10T15 UTC only"):
            read(tmp_path, np.datetime64("2020-01-01"), np.datetime64("2020-01-02"))

    def test_period_without_rows(self, tmp_path):
        wide(tmp_path, self.body)
        with pytest.raises(InputError, match=r"found 2019-12-10T00:00.* to 2019-12-10T01:00.* UTC only"):
            read(tmp_path, np.datetime64("2019-12-10T05"), np.datetime64("2019-12-10T06"))

    def test_no_station_in_the_box(self, tmp_path):
        with pytest.raises(InputError, match=r"expected stations inside bbox \(0, 0, 1, 1\)"):
            read(wide(tmp_path, self.body), bbox=(0, 0, 1, 1))

    def test_of_two_files_of_one_day_the_last_counts(self, tmp_path):
        wide(tmp_path, self.body)
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("china_sites_20191210.csv", HEADER + "20191210,9,PM2.5,7,8\n")
        assert list(read(tmp_path)["pm2p5"]) == [1, 2]
        assert [m.label for m in members(tmp_path, ignore=["stations.csv"])] == [
            "a.zip!china_sites_20191210.csv",
            "china_sites_20191210.csv",
        ]

    def test_unknown_source(self, tmp_path):
        with pytest.raises(ConfigError, match=r"expected one of airnow, .*, timeseries; found 'nowhere'"):
            read(tmp_path, source="nowhere")

    def test_declared_conventions(self):
        assert (sources.CONVENTIONS["cnemc"].zone, sources.CONVENTIONS["cnemc"].label) == (8, "end")
        assert (sources.CONVENTIONS["table"].zone, sources.CONVENTIONS["table"].label) == ("each", "begin")


def test_carriage_returns_and_byte_order_mark(tmp_path):
    path = wide(tmp_path, "")
    path.write_bytes(b"\xef\xbb\xbf" + (HEADER + "20191210,9,PM2.5,1,/\n").replace("\n", "\r\n").encode())
    assert list(read(path)["pm2p5"]) == [1]


def test_datetime_with_zone_is_converted(tmp_path):
    path = wide(tmp_path, "20191210,9,PM2.5,1,2\n")
    table = read(path, datetime(2019, 12, 10, tzinfo=UTC), datetime(2019, 12, 10, 1, tzinfo=UTC))
    assert len(table) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2026-02-27T05,2568A,102,31,5", "line 2, column 'timepoint': expected YYYY-MM-DDThh00; found '2026-02-27T05'"),
        ("2026-02-27T0530,2568A,102,31,5", "line 2, column 'timepoint'"),
        ("2026-02-27T0500,2568A,,31,5", "line 2, column 'longitude': expected the station's degrees"),
    ],
)
def test_broken_api_rows(tmp_path, row, message):
    path = tmp_path / "2026-02-27T05.csv"
    path.write_text(f"timepoint,stationcode,longitude,latitude,pm2_5\n{row}\n")
    with pytest.raises(InputError, match=message):
        read(path, np.datetime64("2026-02-26"), np.datetime64("2026-02-28"))


TABLE = "time,station,lon,lat,pm2p5\n"


class TestTable:
    @pytest.mark.parametrize("time", ["2019-12-10T03:00", "2019-12-10 03:00:00Z", "2019-12-10T11:00:00+08:00"])
    def test_times_are_utc(self, tmp_path, time):
        path = tmp_path / "t.csv"
        path.write_text(f"{TABLE}{time},a:1,10,50,7\n2019-12-10T03:00Z,b:2,11,51,\n")
        table = sources.read_table(path)
        assert set(table["time"]) == {np.datetime64("2019-12-10T03")}
        assert list(table["station"]) == ["a:1", "b:2"]
        assert table["pm2p5"].dtype == "float32"
        check_station_table(table)

    @pytest.mark.parametrize("zone", [None, "Asia/Shanghai"])
    def test_parquet(self, tmp_path, zone):
        time = pd.Series(pd.date_range("2019-12-10", periods=3, freq="h")).dt.tz_localize(zone)
        frame = pd.DataFrame({"time": time, "station": "a:1", "lon": 10, "lat": 50.0, "pm2p5": [1, 2, 3], "note": "x"})
        frame.to_parquet(tmp_path / "t.parquet")
        table = sources.read_table(tmp_path / "t.parquet")
        first = "2019-12-10T00" if zone is None else "2019-12-09T16"
        assert table["time"][0] == np.datetime64(first)
        assert list(table.columns) == ["time", "station", "lon", "lat", "pm2p5", "line_pm2p5"]
        assert list(table["line_pm2p5"]) == [1, 2, 3]
        whole = read(tmp_path, np.datetime64("2019-12-09"), np.datetime64("2019-12-11"), source="table")
        assert set(whole["source_file"]) == {"t.parquet"}
        assert "t.parquet" in sources.input_digests("table", tmp_path, *DAY)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("2019-12-10T03:30,a,1,2,3\n", "line 2, column 'time': expected the start of an hour"),
            (
                "yesterday,a,1,2,3\n",
                "line 2, column 'time': expected an ISO 8601 time with its hour; found 'yesterday'",
            ),
            ("2019-12-10T03,a,1,2,3\n\n2019-12-10T03,b,1,95,3\n", "line 4, column 'lat': expected degrees"),
            ("2019-12-10T03,,1,2,3\n", "line 2, column 'station': expected a station identifier"),
            ("2019-12-10T03,a,1,2,low\n", "line 2, column 'pm2p5': expected a number; found 'low'"),
            ("2019-12-10T03,a,1,2\n", "line 2: expected 5 columns; found 4"),
            ("", "expected at least one observation"),
        ],
    )
    def test_errors_name_the_line(self, tmp_path, text, message):
        path = tmp_path / "t.csv"
        path.write_text(TABLE + text)
        with pytest.raises(InputError, match=message):
            sources.read_table(path)

    def test_missing_column(self, tmp_path):
        (tmp_path / "t.csv").write_text("time,station,lon,pm2p5\n")
        with pytest.raises(InputError, match="'lat' is missing"):
            sources.read_table(tmp_path / "t.csv")

    def test_parquet_errors(self, tmp_path):
        path = tmp_path / "t.parquet"
        path.write_text("no")
        with pytest.raises(InputError, match="expected a Parquet file"):
            sources.read_table(path)
        time = [np.datetime64("2019-12-10T00:00"), np.datetime64("2019-12-10T00:20")]
        frame = pd.DataFrame({"time": time, "station": "a", "lon": 1.0, "lat": 1.0, "pm2p5": 1.0})
        frame.to_parquet(path)
        with pytest.raises(InputError, match="row 2, column 'time': expected the start of an hour"):
            sources.read_table(path)
        frame.assign(time=time[0], pm2p5="x").to_parquet(path)
        with pytest.raises(InputError, match="column 'pm2p5': expected numbers"):
            sources.read_table(path)

    def test_missing_file(self, tmp_path):
        with pytest.raises(InputError, match="expected a file; found none"):
            sources.read_table(tmp_path / "t.csv")


class TestPoints:
    def test_read(self, tmp_path):
        (tmp_path / "p.csv").write_text("station,lon,lat,elevation\nhome,8.5,47.4,\nwork,8.6,47.5,410\n")
        points = sources.read_points(tmp_path / "p.csv")
        assert list(points.columns) == ["station", "lon", "lat", "elevation"]
        assert points["elevation"].isna().tolist() == [True, False]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("station,lon\n", "'lat' is missing"),
            ("station,lon,lat\n", "expected at least one point"),
            ("station,lon,lat\na,1,\n", "line 2, column 'lat'"),
            ("station,lon,lat\na,1,2\na,1,3\n", "line 3, column 'station': expected each station once; found 'a'"),
            ("station,lon,lat\na,east,2\n", "line 2, column 'lon': expected a number; found 'east'"),
        ],
    )
    def test_errors(self, tmp_path, text, message):
        (tmp_path / "p.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            sources.read_points(tmp_path / "p.csv")


def test_line_numbers_count_blank_and_broken_lines():
    file = CsvFile("f", b"a,b\n\n1,2\n3\n4,5\n")
    assert [file.line_at(row) for row in (0, 1)] == [3, 5]


def wide_error(tmp_path: Path, body: str | bytes) -> str:
    """The error that reading a wide file raises."""
    path = wide(tmp_path, "")
    path.write_bytes(HEADER.encode() + (body.encode() if isinstance(body, str) else body))
    with pytest.raises(InputError) as error:
        read(path)
    return str(error.value)


class TestDamage:
    """Found by `benchmarks.fuzz`; each would have been a wrong hour, a wrong value, a traceback or a broken message."""

    @pytest.mark.parametrize("date", ["2019121", "2019120", "16001210", "99991210", "0x1341A9A"])
    def test_a_date_that_lost_a_digit_is_no_other_date(self, tmp_path, date):
        # pandas takes 2019121 for 2019-12-01, and years beyond nanoseconds wrap around
        assert "line 3, column 'date': expected a" in wide_error(tmp_path, f"20191210,9,PM2.5,1,2\n{date},9,PM10,1,2\n")

    def test_an_hour_in_hexadecimal_is_none(self, tmp_path):
        assert "column 'hour': expected a whole number; found '0x10'" in wide_error(
            tmp_path, "20191210,0x10,PM2.5,1,2\n"
        )

    @pytest.mark.parametrize("text", ["inf", "-Infinity", "1e39", "1e400", "9" * 100_000])
    def test_no_value_is_infinite(self, tmp_path, text):
        error = wide_error(tmp_path, f"20191210,9,PM2.5,1,{text}\n")
        assert "line 2, column '1002A': expected a number" in error
        assert len(error) < 400

    @pytest.mark.parametrize("text", ["\uff11\uff12", "1_000", "\u00a05", "0x1A", "5*"])
    def test_what_python_takes_for_a_number_and_arrow_does_not_is_named(self, tmp_path, text):
        assert "line 2, column '1001A': expected a number" in wide_error(tmp_path, f"20191210,9,PM2.5,{text},2\n")

    def test_a_long_broken_number_is_refused_at_once(self, tmp_path):
        # A pattern that backtracks would take minutes over this.
        assert "expected a number" in wide_error(tmp_path, f"20191210,9,PM2.5,{'9' * 100_000}x,2\n")

    def test_an_error_is_one_line_of_printable_text(self, tmp_path):
        error = wide_error(tmp_path, '20191210,9,PM2.5,"1\n2\x1b[31m\u202e",2\n')
        assert error.isprintable()
        assert r"found '1\n2\x1b[31m\u202e'" in error

    def test_a_broken_row_that_is_not_utf8_prints_no_traceback(self, tmp_path, recwarn):
        # pytest makes an error of what pyarrow could only have printed
        error = wide_error(tmp_path, b"20191210,9,PM2.5,1,2\n20191210,10,PM2.5,\xff\n")
        assert "line 3: expected 5 columns; found 4" in error

    def test_a_broken_row_is_named_by_its_own_line(self, tmp_path):
        # \x0c and \x85 end a line for str.splitlines, not in a file
        assert "line 3: expected 5 columns; found 1" in wide_error(tmp_path, "20191210,9,\x0c\x85,1,2\nx\n")

    @pytest.mark.parametrize(
        "label", ["2026-02-27T050", "2026-02-27T500", "2026-2-27T0500", "2026-02-27T0530", "1600-02-27T0500"]
    )
    def test_an_api_label_has_all_its_digits(self, tmp_path, label):
        path = tmp_path / "2026-02-27T05.csv"
        path.write_text(f"timepoint,stationcode,longitude,latitude,pm2_5\n{label},2568A,102,31,5\n")
        with pytest.raises(InputError, match="line 2, column 'timepoint': expected YYYY-MM-DDThh00"):
            read(path, np.datetime64("2026-02-26"), np.datetime64("2026-02-28"))

    def test_of_an_api_station_and_hour_twice_the_last_row_counts(self, tmp_path, caplog):
        path = tmp_path / "2026-02-27T05.csv"
        rows = "2026-02-27T0500,2568A,102,31,5\n2026-02-27T0500,1001A,116,39,6\n2026-02-27T0500,2568A,102,31,7\n"
        path.write_text(f"timepoint,stationcode,longitude,latitude,pm2_5\n{rows}")
        with caplog.at_level(logging.WARNING, "aqnet"):
            table = read(path, np.datetime64("2026-02-26"), np.datetime64("2026-02-28"))
        assert sorted(zip(table["station"], table["pm2p5"], table["line_pm2p5"], strict=True)) == [
            ("cnemc:1001A", 6, 3),
            ("cnemc:2568A", 7, 4),
        ]
        assert "1 rows give a station and hour that a later row gives again" in caplog.text

    @pytest.mark.parametrize(
        "time",
        [
            "2019-12-10",
            "2019",
            "20191210",
            "2019-12-10T3:00",
            "now",
            "today",
            "9999-12-31T23:00",
            "1600-01-01T00:00",
            "-2019-12-10T03",
        ],
    )
    def test_a_table_time_has_its_hour(self, tmp_path, time):
        # pandas takes a date for midnight, and `now` for the moment of the read
        (tmp_path / "t.csv").write_text(f"{TABLE}{time},a,1,2,3\n")
        with pytest.raises(InputError, match="line 2, column 'time': expected an ISO 8601 time with its hour"):
            sources.read_table(tmp_path / "t.csv")

    def test_a_header_with_an_open_quote_is_damaged(self, tmp_path):
        path = wide(tmp_path, "20191210,9,PM2.5,1,2\n", header='date,hour,type,1001A,"1002A\n')
        with pytest.raises(InputError, match="line 1: expected a CSV header; found unexpected end of data"):
            read(path)

    @pytest.mark.parametrize("metadata", [b"", b"{", b'{"index_columns": ["time"], "columns": 3}'])
    def test_what_pandas_writes_beside_a_table_does_not_matter(self, tmp_path, metadata):
        time = pa.array([datetime(2019, 12, 10)])
        table = pa.table({"time": time, "station": ["a"], "lon": [1.0], "lat": [1], "pm2p5": [2.0], "co": pa.nulls(1)})
        pq.write_table(table.replace_schema_metadata({"pandas": metadata}), tmp_path / "t.parquet")
        assert sources.read_table(tmp_path / "t.parquet")["pm2p5"].tolist() == [2]

    @pytest.mark.parametrize(
        ("column", "cells", "found"),
        [
            ("pm2p5", pa.array([True]), "numbers; found bool"),
            ("pm2p5", pa.array(["7"]), "numbers; found string"),
            ("station", pa.array([b"a"]), "text or whole numbers; found binary"),
            ("time", pa.array([1575946800]), "times or text; found int64"),
            ("time", pa.array([18240], pa.date32()), "times or text; found date32"),
        ],
    )
    def test_a_parquet_column_is_of_a_type_that_can_be_it(self, tmp_path, column, cells, found):
        time = pa.array([datetime(2019, 12, 10)])
        columns = {"time": time, "station": ["a"], "lon": [1.0], "lat": [1.0], "pm2p5": [2.0]} | {column: cells}
        pq.write_table(pa.table(columns), tmp_path / "t.parquet")
        with pytest.raises(InputError, match=f"column '{column}': expected {found}"):
            sources.read_table(tmp_path / "t.parquet")

    def test_a_damaged_column_does_not_make_a_parquet_file_empty(self):
        # Where one byte of the footer says that a column has no values, Arrow reads no row of any, and says nothing.
        whole = parquet.written(rows.TABLE_ROWS)
        said = []
        for at in range(len(whole) - 1000, len(whole) - 8):
            if whole[at] == 6:  # three values, as Thrift writes it
                data = whole[:at] + b"\0" + whole[at + 1 :]
                with contextlib.suppress(InputError):
                    found = list(sources.find("table").parse(RawFile("t.parquet", "t.parquet", data), None, "error"))
                    assert sum(map(len, found)) == 3
                    continue
                said.append(at)
        assert said

    def test_a_parquet_column_twice(self, tmp_path):
        time = pa.array([datetime(2019, 12, 10)])
        table = pa.table({"time": time, "station": ["a"], "lon": [1.0], "lat": [1.0], "pm2p5": [2.0]})
        pq.write_table(table.append_column("pm2p5", pa.array([3.0])), tmp_path / "t.parquet")
        with pytest.raises(InputError, match="column 'pm2p5': expected numbers; found double and double"):
            sources.read_table(tmp_path / "t.parquet")

    @pytest.mark.parametrize("value", [1e39, np.inf])
    def test_a_parquet_number_that_float32_does_not_hold(self, tmp_path, value):
        time = np.datetime64("2019-12-10T00:00")
        pd.DataFrame({"time": [time], "station": "a", "lon": 1.0, "lat": 1.0, "pm2p5": [value]}).to_parquet(
            tmp_path / "t.parquet"
        )
        with pytest.raises(InputError, match=r"row 1, column 'pm2p5': expected a number up to 3\.4e"):
            sources.read_table(tmp_path / "t.parquet")
