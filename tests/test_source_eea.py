"""EEA: genuine metadata; the Parquet is written here in the documented schema, as no genuine file is at hand."""

from __future__ import annotations

import contextlib
import io
import logging
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import sources
from pipeline.contract import POLLUTANTS, check_station_table
from pipeline.errors import InputError
from pipeline.sources import eea
from pipeline.sources.archive import RawFile

#: As the download service writes it: decimal(38,18) values, timestamps without a zone, 32-bit codes.
SCHEMA = pa.schema(
    {
        "Samplingpoint": pa.string(),
        "Pollutant": pa.int32(),
        "Start": pa.timestamp("ns"),
        "End": pa.timestamp("ns"),
        "Value": pa.decimal128(38, 18),
        "Unit": pa.string(),
        "AggType": pa.string(),
        "Validity": pa.int32(),
        "Verification": pa.int32(),
        "ResultTime": pa.timestamp("ns"),
        "DataCapture": pa.decimal128(38, 18),
        "FkObservationLog": pa.string(),
    }
)
POINT = "MT/SPO-MT00005_06001_100"
METADATA = (
    "Country,Air Quality Station EoI Code,Sampling Point Id,Air Pollutant,"
    "Longitude,Latitude,Altitude,Measurement Type\n"
    '"Malta","MT00005","SPO-MT00005_06001_100","PM2.5","14.4899","35.8958","2.0","automatic"\n'
    '"Malta","MT00005","SPO-MT00005_06001_101","PM2.5","14.4899","35.8958","2.0","active"\n'
    '"Malta","MT00005","SPO-MT00005_00010_100","CO","14.4899","35.8958","","automatic"\n'
    '"Malta","MT00005","SPO-MT00005_00007_100","O3","14.4899","35.8958","","automatic"\n'
    '"Malta","MT00005","SPO-MT00005_00038_100","NO","14.4899","35.8958","","automatic"\n'
    '"Malta","MT00008","SPO-MT00008_00007_100","O3","","","","automatic"\n'
)


def row(hour: int = 0, value: object = "7.5", **other: object) -> dict[str, object]:
    start = pd.Timestamp("2019-07-01") + pd.Timedelta(hour, "h")
    found = {"Samplingpoint": POINT, "Pollutant": 6001, "Start": start, "End": start + pd.Timedelta("1h")}
    found |= {"Value": None if value is None else Decimal(str(value)), "Unit": "ug.m-3", "AggType": "hour"}
    found |= {"Validity": 1, "Verification": 1, "ResultTime": pd.Timestamp("2020-09-30"), "DataCapture": None}
    return found | {"FkObservationLog": "a1"} | other


def parquet(rows: list[dict[str, object]], schema: pa.Schema = SCHEMA) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), out)
    return out.getvalue()


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    path = tmp_path_factory.mktemp("eea") / "DataExtract.csv"
    path.write_text(METADATA)
    return eea.read_sites(path)


def parse(rows: list[dict[str, object]] | bytes, sites) -> pd.DataFrame:
    data = rows if isinstance(rows, bytes) else parquet(rows)
    (table,) = eea.parse(RawFile("folder/a.parquet", "a.parquet", data), sites, "error")
    return check_station_table(table)


class TestGenuineMetadata:
    def test_pollutants_of_a_station_join_and_further_points_stand_alone(self, shared_data):
        found = eea.read_sites(shared_data / "samples" / "eea" / "MT_metadata.csv.zip").frame
        # SPO-MT00003_00005_100 is automatic, _101 gravimetric: both PM10 at Kordin, 14.5111, 35.8804, 40 m
        for point, station in (
            ("SPO-MT00003_00007_100 o3", "MT00003"),
            ("SPO-MT00003_00005_100 pm10", "MT00003"),
            ("SPO-MT00003_00005_101 pm10", "MT00003/SPO-MT00003_00005_101"),
        ):
            assert list(found.loc[point, ["lon", "lat", "elevation", "station"]]) == [14.5111, 35.8804, 40, station]
        assert not found["station"].isna().any()
        assert not found.index.duplicated().any()

    def test_every_listed_file_of_our_pollutants_has_its_sampling_point(self, shared_data):
        folder = shared_data / "samples" / "eea"
        found = eea.read_sites(folder / "MT_metadata.csv.zip").frame.index
        urls = (folder / "MT_Historical_Valletta.csv").read_text().split()[1:]
        for url in urls:
            point = url.rsplit("/", 1)[1].removesuffix(".parquet")
            pollutant = eea.POLLUTANT_CODES.get(int(point.split("_")[1]))
            assert pollutant is None or f"{point} {pollutant}" in found

    def test_whole_read_with_the_genuine_zip_beside(self, shared_data, tmp_path):
        zipped = (shared_data / "samples" / "eea" / "MT_metadata.csv.zip").read_bytes()
        (tmp_path / "DataExtract.csv.zip").write_bytes(zipped)
        (tmp_path / "SPO-MT00005_06001_100.parquet").write_bytes(parquet([row(hour) for hour in range(3)]))
        o3 = [row(1, "80", Samplingpoint="MT/SPO-MT00005_00007_100", Pollutant=7)]
        (tmp_path / "SPO-MT00005_00007_100.parquet").write_bytes(parquet(o3))
        period = np.datetime64("2019-06-30"), np.datetime64("2019-07-02")
        table = pd.concat(sources.read("eea", tmp_path, None, *period, (14, 35, 15, 36)))
        assert set(table["station"]) == {"eea:MT00005"}
        assert table[["pm2p5", "o3"]].count().tolist() == [3, 1]


def test_hours_are_utc_plus_one_winter_and_summer(sites):
    # 2019-07-01 00:00-01:00 in UTC+1 is 2019-06-30 23:00-24:00 UTC; so it is in January
    winter = {"Start": pd.Timestamp("2019-01-01"), "End": pd.Timestamp("2019-01-01T01")}
    table = parse([row(0, "12.25"), row(**winter)], sites)
    assert list(table["time"]) == [pd.Timestamp("2018-12-31T23"), pd.Timestamp("2019-06-30T23")]
    assert list(table["pm2p5"]) == [7.5, 12.25]
    assert list(table["line_pm2p5"]) == [2, 1]
    assert list(table["station"]) == ["eea:MT00005"] * 2
    assert table[["lon", "lat", "elevation"]].iloc[0].tolist() == [14.4899, 35.8958, 2]


def test_units(sites):
    co = {"Samplingpoint": "MT/SPO-MT00005_00010_100", "Pollutant": 10}
    o3 = {"Samplingpoint": "SPO-MT00005_00007_100", "Pollutant": 7}
    units = [row(0, "0.4", Unit="mg.m-3", **co), row(1, "400", **co), row(2, "80", Unit="µg.m-3", **o3)]
    table = parse([*units, row(3, "40", Unit="ppb", **o3)], sites)
    assert list(table["co"][:2]) == [np.float32(0.4)] * 2
    # 40 ppb at 20 degrees C: 40 * 47.998 * 101325 / (8.314462618 * 293.15) / 1000 = 79.81 ug m-3
    assert list(table["o3"][2:]) == [80, pytest.approx(79.814, abs=1e-3)]


def test_validity_and_verification(sites, caplog):
    codes = [(1, 1), (2, 1), (3, 2), (-1, 3), (-99, 0), (4, 1)]
    with caplog.at_level(logging.WARNING, "aqnet"):
        table = parse([row(h, h + 1, Validity=v, Verification=w) for h, (v, w) in enumerate(codes)], sites)
    assert list(table["pm2p5"]) == [1, 2, 3]
    assert "left out 3 of 6 values: not valid (Validity)" in caplog.text
    ozone = row(0, 80, Validity=4, Samplingpoint="MT/SPO-MT00005_00007_100", Pollutant=7)
    assert list(parse([ozone], sites)["o3"]) == [80]


def test_of_one_hour_twice_the_verified_value_counts(sites):
    table = parse([row(0, 1, Verification=2), row(0, 2, Verification=1), row(0, 3, Verification=3)], sites)
    assert list(table["pm2p5"]) == [2]
    assert list(table["line_pm2p5"]) == [2]
    assert list(parse([row(0, 1), row(0, 2)], sites)["pm2p5"]) == [2]


def test_missing_values_and_marks(sites):
    assert list(parse([row(0, None), row(1, "-999"), row(2, "-9999.0"), row(3, "-0.4")], sites)["pm2p5"]) == [
        np.float32(-0.4)
    ]


def test_a_mark_in_a_decimal_of_another_scale_is_missing(sites):
    """Arrow makes -999.0000000000001 of it."""
    schema = SCHEMA.set(SCHEMA.get_field_index("Value"), pa.field("Value", pa.decimal256(50, 5)))
    assert parse(parquet([row(0, "-999.00000"), row(1, "7.5")], schema), sites)["pm2p5"].tolist() == [7.5]


def test_a_second_sampling_point_of_a_pollutant_is_a_station_of_its_own(sites):
    table = parse([row(0, 1), row(0, 2, Samplingpoint="MT/SPO-MT00005_06001_101")], sites)
    assert dict(zip(table["station"], table["pm2p5"], strict=True)) == {
        "eea:MT00005": 1,
        "eea:MT00005/SPO-MT00005_06001_101": 2,
    }


def test_what_is_left_out_is_said(sites, caplog):
    day = {"AggType": "day", "End": pd.Timestamp("2019-07-02")}
    other = {"Pollutant": 38, "Samplingpoint": "MT/SPO-MT00005_00038_100", "Unit": "count"}
    with caplog.at_level(logging.WARNING, "aqnet"):
        table = parse([row(0, 1), row(0, 2, **day), row(1, 3, **other), row(2, 4, Samplingpoint="MT/SPO-new")], sites)
    assert list(table["pm2p5"]) == [1]
    assert "left out 1 of 4 values: AggType is not hour" in caplog.text
    assert "left out 1 of 3 values: of other pollutants" in caplog.text
    assert sites.unknown == {"SPO-new pm2p5": "folder/a.parquet"}


@pytest.mark.parametrize(
    ("point", "verification", "said"),
    [("IT/a", 3, "Italy"), ("IT/a", 1, None), ("IE/a", 1, "Ireland"), ("IE/a", 2, None), ("MT/a", 3, None)],
)
def test_clocks_in_doubt_are_said(sites, caplog, point, verification, said):
    with caplog.at_level(logging.WARNING, "aqnet"):
        parse([row(Samplingpoint=point, Verification=verification)], sites)
    assert (said is None and not caplog.records) or (said is not None and said in caplog.text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"AggType": "day", "End": pd.Timestamp("2019-07-02")},
            r"'AggType': expected hourly values \(hour\); found day",
        ),
        ({"End": pd.Timestamp("2019-07-01T02")}, "row 1, column 'End': expected one hour after Start"),
        ({"Start": pd.Timestamp("2019-07-01T00:30"), "End": pd.Timestamp("2019-07-01T01:30")}, "row 1, column 'Start'"),
        ({"Start": None}, "row 1, column 'Start': expected timestamps"),
        ({"Unit": "ng.m-3"}, "row 1, column 'Unit': expected a unit of concentration, such as ug.m-3; found 'ng.m-3'"),
        ({"Unit": "ppb"}, "row 1, column 'Unit'"),
        ({"Unit": None}, "row 1, column 'Unit': expected text"),
        ({"Validity": 7}, "row 1, column 'Validity': expected one of 1, 2, 3, 4, -1, -99; found '7'"),
        ({"Validity": None}, "row 1, column 'Validity'"),
        ({"Verification": 9}, "row 1, column 'Verification'"),
        ({"Value": Decimal("9e17")}, "row 1, column 'Value': expected a finite concentration"),
        ({"Samplingpoint": None}, "row 1, column 'Samplingpoint'"),
        (
            {"Samplingpoint": "MT/SPO-MT00008_00007_100", "Pollutant": 7},
            "line 7: expected lon and lat of station SPO-MT",
        ),
    ],
)
def test_refusals_name_file_row_and_column(sites, change, message):
    with pytest.raises(InputError, match=message) as error:
        parse([row() | change], sites)
    assert "\n" not in str(error.value)


def test_the_row_in_an_error_is_that_of_the_file(sites):
    with pytest.raises(InputError, match=r"folder/a.parquet, row 3, column 'Unit'"):
        parse([row(0, Validity=-1), row(1), row(2, Unit="1")], sites)


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        ("Start", pa.timestamp("ns", "UTC"), "column 'Start': expected timestamps without a zone"),
        ("Unit", pa.string_view(), "column 'Unit': expected text; found string_view"),
        ("Value", pa.string(), "column 'Value': expected decimals; found string"),
        ("Value", pa.string_view(), "column 'Value': expected numbers or times; found string_view"),
        ("Pollutant", pa.string_view(), "column 'Pollutant': expected numbers or times; found string_view"),
        ("Pollutant", pa.string(), "column 'Pollutant': expected whole numbers; found string"),
    ],
)
def test_other_types(sites, column, kind, message):
    schema = SCHEMA.set(SCHEMA.get_field_index(column), pa.field(column, kind))
    text = {"Value": "7.5", "Pollutant": "6001"} if kind in (pa.string(), pa.string_view()) else {}
    with pytest.raises(InputError, match=message):
        parse(parquet([row() | {name: value for name, value in text.items() if name == column}], schema), sites)


def test_files_of_another_kind(sites):
    other = io.BytesIO()
    pq.write_table(pa.table({"time": [1], "pm2p5": [2.0]}), other)
    for data, message in (
        (b"date,hour\n", "expected an EEA Parquet file"),
        (other.getvalue(), "expected the EEA's columns"),
    ):
        with pytest.raises(InputError, match=message):
            parse(data, sites)


def test_the_metadata_must_be_there(tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet([row()]))
    with pytest.raises(InputError, match=r"expected a site list \(DataExtract.csv"):
        list(sources.read("eea", tmp_path, None, np.datetime64("2019-07-01"), np.datetime64("2019-07-02"), None))
    (tmp_path / "DataExtract.csv").write_text("Country,Longitude\n")
    with pytest.raises(InputError, match="with the column 'Sampling Point Id'"):
        eea.read_sites(tmp_path / "DataExtract.csv")


hours = st.lists(st.integers(0, 9000), min_size=1, max_size=30, unique=True)


@given(hours=hours, cents=st.integers(-100, 200_000), code=st.sampled_from(sorted(eea.POLLUTANT_CODES)))
def test_round_trip(hours, cents, code, tmp_path_factory):
    name = {p: notation for notation, p in eea.POLLUTANT_NAMES.items()}[pollutant := eea.POLLUTANT_CODES[code]]
    path = tmp_path_factory.mktemp("meta") / "DataExtract.csv"
    path.write_text(METADATA.splitlines()[0] + f"\nX,E1,P/1:a,{name},10,50,,active\n")
    unit = "mg.m-3" if pollutant == "co" else "ug.m-3"
    values = [Decimal(cents + i) / 100 for i in range(len(hours))]
    rows = [
        row(hour, value, Samplingpoint="XX/P/1:a", Pollutant=code, Unit=unit)
        for hour, value in zip(hours, values, strict=True)
        if value != -999
    ]
    table = parse(rows, eea.read_sites(path))
    start = np.datetime64("2019-06-30T23", "h")
    expected = {start + hour: (np.float32(v), i + 1) for i, (hour, v) in enumerate(zip(hours, values, strict=True))}
    found = zip(table["time"].to_numpy("M8[h]"), table[pollutant], table[f"line_{pollutant}"], strict=True)
    assert {time: (value, line) for time, value, line in found} == expected
    assert set(table["station"]) == {"eea:E1"}
    assert table[[p for p in POLLUTANTS if p != pollutant]].isna().all(axis=None)


def test_many_damaged_files_end_in_input_errors(sites):
    base, rng = parquet([row(hour, hour) for hour in range(50)]), np.random.default_rng(3)
    rows = []
    for _ in range(300):
        data = bytearray(base)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            data[at] ^= 1 << rng.integers(0, 8)
        with contextlib.suppress(InputError):
            rows.append(len(parse(bytes(data), sites)))
    assert max(rows) <= 50
    assert len(rows) < 300


def test_verified_files_come_before_up_to_date_ones():
    names = ["a.zip!Airbase/MT/SPO-a.parquet", "a.zip!E2a/SPO-a.parquet", "a.zip!E1a/SPO-a.parquet"]
    assert sorted(names, key=eea.SOURCE.rank) == names
    assert eea.SOURCE.rank("SPO-a.parquet") == 0
