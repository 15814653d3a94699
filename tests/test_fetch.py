"""Networks: their real layouts, served locally from genuine samples; what is asked for, kept, passed over and said."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cli, fetch, sources
from pipeline.commands import observe
from pipeline.errors import ConfigError
from pipeline.fetch import FetchError, Limits, Query, eea, networks, openaq, read_manifest
from pipeline.fetch.web import Web
from pipeline.twin.simulate import Simulation
from tests import servers
from tests.servers import Archive

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)

HOURLY = "07/24/25|{hour:02}:00|000030113|JOHNSTON BUILDING|-4|PM2.5|UG/M3|4.2|Canada-Nova Scotia1\n"
SITE = (
    "000030113|PM2.5|0113|JOHNSTON BUILDING|Active|NS1|Canada-Nova Scotia1|CA|44.647175|-63.573689|29.000|-4.00|CA|||||"
    "00|CC|003|NOVA SCOTIA||\n"
)
OPENAQ = (
    "location_id,sensors_id,location,datetime,lat,lon,parameter,units,value\n"
    "7727,22558,Tung Chung-7727,{day}T01:00:00+08:00,22.2889,113.9436,pm25,µg/m³,{value}\n"
)


def hours(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def query(network: str, start: str, end: str, **more: Any) -> Query:
    return Query(network, hours(start), hours(end), **more)


def run(asked: Query, folder: Path, now: datetime = NOW, tries: int = 2) -> fetch.Fetched:
    return fetch.fetch(asked, folder, web=quick(now, tries))


def quick(now: datetime = NOW, tries: int = 2) -> Web:
    """A client that never pauses."""
    return Web(Limits(rate=1e9, tries=tries, timeout=5), sleep=lambda _: None, now=lambda: now)


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"manifest.jsonl"}


def as_noted(folder: Path) -> None:
    """Every file is in the manifest with its digest, and no other is there."""
    entries = {name: found for name, found in read_manifest(folder).items() if found.status != "absent"}
    assert set(entries) == visible(folder)
    for name, found in entries.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == found.sha256


@pytest.fixture
def archive() -> Iterator[Archive]:
    with servers.serving(Archive()) as served:
        yield served


# ---- layouts ----


def test_the_command_line_knows_the_networks() -> None:
    assert tuple(networks.NETWORKS) == observe.NETWORKS
    options = {option.name: option.type for option in observe.fetch.params}
    assert options["product"].choices == networks.AIRNOW_PRODUCTS
    assert list(options["dataset"].choices) == list(eea.DATASETS)


def test_airnow_layout() -> None:
    assert fetch.plan(query("airnow", "2025-07-24T23", "2025-07-25T01")) == [
        "https://files.airnowtech.org/airnow/2025/20250725/monitoring_site_locations.dat",
        "https://files.airnowtech.org/airnow/2025/20250724/HourlyData_2025072423.dat",
        "https://files.airnowtech.org/airnow/2025/20250725/HourlyData_2025072500.dat",
    ]
    (_, file) = fetch.plan(query("airnow", "2026-09-27T15", "2026-09-27T16", product="HourlyAQObs"))
    assert file == "https://files.airnowtech.org/airnow/2026/20260927/HourlyAQObs_2026092715.dat"


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        ("2019-12-01T15", "2019-12-02T15", "20191202", "20191202"),  # labels 00 to 23 of one Beijing day
        ("2019-12-01T14", "2019-12-02T16", "20191201", "20191203"),
        ("2019-12-01", "2019-12-02", "20191201", "20191202"),
    ],
)
def test_cnemc_layout(start: str, end: str, first: str, last: str) -> None:
    found = fetch.plan(query("cnemc", start, end))
    assert found[0] == f"https://quotsoft.net/air/data/china_sites_{first}.csv"
    assert found[-1] == f"https://quotsoft.net/air/data/china_sites_{last}.csv"


def test_prsa_layout() -> None:
    address = "https://archive.ics.uci.edu/static/public/501/beijing+multi+site+air+quality+data.zip"
    assert fetch.plan(query("prsa", "2016-01-01", "2016-02-01")) == [address]
    with pytest.raises(ConfigError, match="prsa: expected hours of 2013-03-01 to 2017-02-28"):
        fetch.plan(query("prsa", "2018-01-01", "2018-02-01"))


@given(
    start=st.datetimes(datetime(2016, 1, 1), datetime(2030, 1, 1)),
    length=st.integers(1, 100),
    zone=st.integers(-12, 14),
)
def test_openaq_days_hold_every_local_hour(start: datetime, length: int, zone: int) -> None:
    first = start.replace(minute=0, second=0, microsecond=0, tzinfo=UTC)
    asked = Query("openaq", first, first + length * networks.timedelta(hours=1))
    days = set(asked.days(openaq.EARLIEST, openaq.LATEST))
    for hour in asked.hours():
        label = hour + networks.timedelta(hours=1 + zone)
        assert label.date() in days
    assert len(days) <= length // 24 + 4


@pytest.mark.parametrize(
    ("bbox", "boxes"),
    [
        ((100, 20, 110, 30), [(100, 20, 110, 30)]),
        ((170, -50, 190, -30), [(170, -50, 180, -30), (-180, -50, -170, -30)]),
        ((280, 30, 290, 40), [(-80, 30, -70, 40)]),
        ((-180, -90, 180, 90), [(-180, -90, 180, 90)]),
    ],
)
def test_a_box_across_the_date_line_is_two(bbox: Any, boxes: Any) -> None:
    assert openaq._boxes(bbox) == boxes


# ---- AirNow ----


@pytest.fixture
def airnow(archive: Archive) -> Archive:
    """Two days without the hour 02, the site list of the first day only."""
    for day in (24, 25):
        for hour in (0, 1, 3):
            path = f"/airnow/2025/202507{day}/HourlyData_202507{day}{hour:02}.dat"
            archive.files[path] = HOURLY.format(hour=hour).encode()
    archive.files["/airnow/2025/20250724/monitoring_site_locations.dat"] = SITE.encode()
    return archive


def test_airnow(airnow: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "aqnet")
    found = run(query("airnow", "2025-07-25", "2025-07-25T04", base_url=airnow.url), tmp_path)
    assert found.absent == ["monitoring_site_locations.dat", "HourlyData_2025072502.dat"]
    asked = query("airnow", "2025-07-24T00", "2025-07-25T04", base_url=airnow.url, bbox=(-64, 44, -63, 45))
    found = run(asked, tmp_path)
    assert "a file holds all of North America; the box is applied when the files are read" in caplog.text
    # The site list of the day before was found; of the 28 hours six are there, three of them since the first run.
    assert (len(found.fetched), len(found.unchanged), len(found.absent)) == (4, 3, 22)
    assert "22 files are not in the archive, the first HourlyData_2025072402.dat" in caplog.text
    as_noted(tmp_path)
    entries = read_manifest(tmp_path)
    assert entries["HourlyData_2025072402.dat"].status == "absent"
    assert entries["monitoring_site_locations.dat"].url.endswith("/20250724/monitoring_site_locations.dat")


def test_old_files_are_left_alone_and_recent_ones_are_asked_for(airnow: Archive, tmp_path: Path) -> None:
    asked = query("airnow", "2025-07-24", "2025-07-25T02", base_url=airnow.url)
    run(asked, tmp_path, now=hours("2025-07-30T01"))
    airnow.seen.clear()
    path = "/airnow/2025/20250725/HourlyData_2025072501.dat"
    airnow.files[path] = airnow.files[path].replace(b"4.2", b"5.3")
    airnow.modified[path] = servers.MODIFIED + 60
    found = run(asked, tmp_path, now=hours("2025-07-30T01"))
    assert found.fetched == ["HourlyData_2025072501.dat"]
    assert {r.path[-14:-4]: r.code for r in airnow.seen if "20250725" in r.path and r.code != 404} == {
        "2025072500": 304,
        "2025072501": 200,
    }
    assert not any("2025072401" in request.path for request in airnow.seen)
    as_noted(tmp_path)
    airnow.seen.clear()
    run(asked, tmp_path, now=hours("2025-07-31T01"))
    assert all(r.code == 404 or "locations" in r.path for r in airnow.seen)


def test_the_newest_site_list_stays(airnow: Archive, tmp_path: Path) -> None:
    airnow.files["/airnow/2025/20250725/monitoring_site_locations.dat"] = SITE.encode() * 2
    run(query("airnow", "2025-07-25", "2025-07-25T02", base_url=airnow.url), tmp_path)
    run(query("airnow", "2025-07-24", "2025-07-24T02", base_url=airnow.url), tmp_path)
    assert (tmp_path / "monitoring_site_locations.dat").read_text() == SITE * 2


def test_a_file_that_is_there_no_more_stays(airnow: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = query("airnow", "2025-07-25", "2025-07-25T02", base_url=airnow.url)
    run(asked, tmp_path)
    del airnow.files["/airnow/2025/20250725/HourlyData_2025072501.dat"]
    found = run(asked, tmp_path, now=hours("2025-07-26"))
    assert "HourlyData_2025072501.dat" in found.unchanged
    assert "HourlyData_2025072501.dat is in the archive no more; the one we have stays" in caplog.text
    as_noted(tmp_path)


def test_genuine_airnow_samples_arrive_byte_for_byte(archive: Archive, shared_data: Path, tmp_path: Path) -> None:
    samples = shared_data / "samples" / "airnow"
    for name, day in (("HourlyData_2025072409.dat", "20250724"), ("monitoring_site_locations.dat", "20250724")):
        archive.files[f"/airnow/2025/{day}/{name}"] = (samples / name).read_bytes()
    archive.files["/airnow/2026/20260927/HourlyAQObs_2026092715.dat"] = (
        samples / "HourlyAQObs_2026092715.dat"
    ).read_bytes()
    run(query("airnow", "2025-07-24T09", "2025-07-24T10", base_url=archive.url), tmp_path)
    run(query("airnow", "2026-09-27T15", "2026-09-27T16", base_url=archive.url, product="HourlyAQObs"), tmp_path)
    as_noted(tmp_path)
    for sample in samples.iterdir():
        assert (tmp_path / sample.name).read_bytes() == sample.read_bytes()


def test_a_fetched_airnow_folder_is_read(airnow: Archive, tmp_path: Path) -> None:
    run(query("airnow", "2025-07-24", "2025-07-24T04", base_url=airnow.url), tmp_path)
    period = hours("2025-07-24"), hours("2025-07-24T04")
    found = pd.concat(sources.read("airnow", tmp_path, None, *period, bbox=(-64, 44, -63, 45)))
    assert found["time"].dt.hour.tolist() == [0, 1, 3]
    assert found["pm2p5"].tolist() == pytest.approx([4.2] * 3)


# ---- failures of a run ----


def test_one_file_that_fails_does_not_stop_the_others_but_the_run_fails(airnow: Archive, tmp_path: Path) -> None:
    bad = "/airnow/2025/20250724/HourlyData_2025072401.dat"
    airnow.faults[bad] += [servers.status(500)] * 2
    asked = query("airnow", "2025-07-24", "2025-07-24T04", base_url=airnow.url)
    with pytest.raises(
        FetchError, match=rf"{bad}: expected a whole file; .*\(1 of 5 files failed; the others are kept\)"
    ):
        run(asked, tmp_path)
    assert visible(tmp_path) == {
        "HourlyData_2025072400.dat", "HourlyData_2025072403.dat", "monitoring_site_locations.dat",
    }  # fmt: skip
    assert run(asked, tmp_path).fetched == ["HourlyData_2025072401.dat"]
    as_noted(tmp_path)


def test_a_server_that_is_gone_is_left_alone(airnow: Archive, tmp_path: Path) -> None:
    for path in airnow.files:
        airnow.faults[path] += [servers.status(503)] * 99
    with pytest.raises(FetchError, match=r"3 of 26 files failed; stopped after 3 in a row"):
        run(query("airnow", "2025-07-24T00", "2025-07-25T01", base_url=airnow.url), tmp_path)
    assert len(airnow.seen) < 12


def test_a_run_that_finds_nothing_is_an_error(airnow: Archive, tmp_path: Path) -> None:
    with pytest.raises(
        FetchError, match=r"airnow: expected files for 2024-01-01T00 to 2024-01-01T02 UTC; found none of 2"
    ):
        run(query("airnow", "2024-01-01", "2024-01-01T02", base_url=airnow.url), tmp_path)
    assert {found.status for found in read_manifest(tmp_path).values()} == {"absent"}


def test_a_folder_of_another_archive_is_refused(airnow: Archive, tmp_path: Path) -> None:
    asked = query("airnow", "2025-07-24", "2025-07-24T02", base_url=airnow.url)
    run(asked, tmp_path)
    text = (tmp_path / "manifest.jsonl").read_text()
    (tmp_path / "manifest.jsonl").write_text(text.replace("2025/20250724/Hourly", "2025/other/Hourly"))
    with pytest.raises(ConfigError, match=r"HourlyData_2025072400.dat: expected it to be from .*; take another folder"):
        run(asked, tmp_path)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (query("airnow", "2025-07-24", "2025-07-25", locations=(1,)), "--locations: means nothing for airnow"),
        (query("cnemc", "2025-07-24", "2025-07-25", api_url="http://a"), "--api-url: means nothing for cnemc"),
        (query("cnemc", "2025-07-24", "2025-07-25", bbox=(2, 1, 1, 2)), "--bbox: expected west <= east"),
        (query("openaq", "2025-07-24", "2025-07-25"), "openaq: expected --locations, or --bbox with OPENAQ_API_KEY"),
        (query("eea", "2025-07-24", "2025-07-25"), "eea: expected --bbox"),
        (query("eea", "2012-12-01", "2013-02-01", bbox=(1, 1, 2, 2)), "expected a period before or after 2013-01-01"),
        (query("nowhere", "2025-07-24", "2025-07-25"), "expected one of the networks airnow, cnemc"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_request(
    asked: Query, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAQ_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=found):
        run(asked, tmp_path)


# ---- CNEMC and PRSA ----


def test_cnemc_is_read_by_its_reader(archive: Archive, small_simulation: Simulation, tmp_path: Path) -> None:
    for file in small_simulation.archive.glob("*.zip"):
        with zipfile.ZipFile(file) as opened:
            archive.files |= {f"/air/data/{name}": opened.read(name) for name in opened.namelist()}
    found = run(query("cnemc", "2019-12-01", "2019-12-02", base_url=archive.url), tmp_path)
    assert found.fetched == ["china_sites_20191201.csv", "china_sites_20191202.csv"]
    as_noted(tmp_path)
    period = hours("2019-12-01"), hours("2019-12-02")
    fetched, direct = (
        pd.concat(sources.read("cnemc", path, small_simulation.stations, *period, bbox=None)).drop(
            columns="source_file"
        )
        for path in (tmp_path, small_simulation.archive)
    )
    pd.testing.assert_frame_equal(fetched, direct)
    assert set(fetched["time"].dt.hour) == set(range(24))


PRSA = "No,year,month,day,hour,PM2.5,PM10,SO2,NO2,CO,O3,station\n1,2016,1,1,{hour},81,99,5,60,900,20,Tiantan\n"


def serve_prsa(archive: Archive, inner: bytes) -> None:
    """UCI's zip: the data in a zip of their own, beside examples that have nothing to do with them."""
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as opened:
        opened.writestr("PRSA2017_Data_20130301-20170228.zip", inner)
        opened.writestr("data.csv", "a,b\n1,2\n")
        opened.writestr("test.csv", "a,b\n1,2\n")
    archive.files["/static/public/501/beijing+multi+site+air+quality+data.zip"] = outer.getvalue()


def test_prsa_is_taken_out_of_the_zip_around_it_and_read(archive: Archive, tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as opened:
        opened.writestr("PRSA_Data_20130301-20170228/PRSA_Data_Tiantan_20130301-20170228.csv", PRSA.format(hour=12))
    serve_prsa(archive, inner.getvalue())
    asked = query("prsa", "2016-01-01", "2016-02-01", base_url=archive.url)
    run(asked, tmp_path)
    assert (tmp_path / networks.PRSA_NAME).read_bytes() == inner.getvalue()
    as_noted(tmp_path)
    assert run(asked, tmp_path).unchanged == [networks.PRSA_NAME]
    assert len(archive.seen) == 1
    (tmp_path / "stations.csv").write_text("station,lon,lat\nTiantan,116.407,39.886\n")
    (table,) = sources.read("prsa", tmp_path, None, hours("2016-01-01"), hours("2016-01-02"), bbox=None)
    assert table["pm2p5"].tolist() == [81]


@pytest.mark.parametrize("inner", [b"none", None])
def test_prsa_without_its_data(archive: Archive, tmp_path: Path, inner: bytes | None) -> None:
    serve_prsa(archive, inner or b"")
    if inner is None:
        archive.files["/static/public/501/beijing+multi+site+air+quality+data.zip"] = zipped()
    with pytest.raises(
        FetchError, match=r"no whole zip archive .* in the zip; 2 tries|expected one member like .*found 0"
    ):
        run(query("prsa", "2016-01-01", "2016-02-01", base_url=archive.url), tmp_path)
    assert visible(tmp_path) == set()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("data.csv", "a,b\n1,2\n")
    return file.getvalue()


# ---- EEA ----

POINTS = ("SPO-MT00003_06001_100", "SPO-MT00005_06001_100", "SPO-IT0001_06001_100")
METADATA = (
    "Country,B-G Namespace,Sampling Point Id,Air Pollutant,Longitude,Latitude\n"
    '"Malta","MT.ERA.AQ","SPO-MT00003_06001_100","PM2.5","14.5111","35.8804"\n'
    '"Malta","MT.ERA.AQ","SPO-MT00005_06001_100","PM2.5","14.4895","35.8958"\n'
    '"Malta","MT.ERA.AQ","SPO-MT00005_00020_100","benzene","14.4895","35.8958"\n'
    '"Malta","MT.ERA.AQ","SPO-MT00009_00007_100","O3","",""\n'
    '"Italy","IT.ISPRA.AQ","SPO-IT0001_06001_100","PM2.5","14.6","36.7"\n'
)


def parquet(country: str, point: str, value: float) -> bytes:
    """A day of hours of PM2.5 as the service has them, in UTC+1."""
    start, file, count = pd.date_range("2010-01-01", periods=24, freq="h"), io.BytesIO(), 24
    columns = {
        "Samplingpoint": [f"{country}/{point}"] * count,
        "Pollutant": pa.array([6001] * count, pa.int32()),
        "Start": pa.array(start, pa.timestamp("ns")),
        "End": pa.array(start + pd.Timedelta(hours=1), pa.timestamp("ns")),
        "Value": pa.array([value] * count, pa.float64()).cast(pa.decimal128(38, 18)),
        "Unit": ["ug.m-3"] * count,
        "AggType": ["hour"] * count,
        "Validity": pa.array([1] * count, pa.int32()),
        "Verification": pa.array([1] * count, pa.int32()),
    }
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


@pytest.fixture
def europe(archive: Archive) -> Archive:
    serve_europe(archive, METADATA.encode(), {"MT": POINTS[:2], "IT": POINTS[2:]})
    return archive


def serve_europe(archive: Archive, metadata: bytes, points: dict[str, tuple[str, ...]]) -> None:
    """The download service: metadata, lists of addresses by country and dataset, files in containers."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("DataExtract.csv", metadata)
    containers = {1: "airquality-p-e2a", 2: "airquality-p-e1a", 3: "airquality-p-airbase"}
    archive.files["/App/AQViewer/download"] = file.getvalue()
    for number, container in containers.items():
        for country, names in points.items():
            files = {name: parquet(country, name, number) for name in names}
            archive.files |= {f"/{container}/{country}/{name}.parquet": data for name, data in files.items()}

    def addresses(request: servers.Request) -> bytes:
        asked = json.loads(request.body)
        (country,) = asked["countries"]
        listed = [f"{archive.url}/{containers[asked['dataset']]}/{country}/{n}.parquet" for n in points[country]]
        return "\r\n".join(["ParquetFileUrl", *listed, ""]).encode()

    archive.answers["/ParquetFile/urls"] = addresses


def test_eea(europe: Archive, tmp_path: Path) -> None:
    box = (14, 35.5, 15, 36)
    asked = query("eea", "2023-01-01", "2023-02-01", bbox=box, base_url=europe.url, api_url=europe.url)
    found = run(asked, tmp_path)
    assert found.fetched == ["DataExtract.csv", *(f"{point}.parquet" for point in POINTS[:2])]
    assert (tmp_path / "DataExtract.csv").read_bytes() == METADATA.encode()
    as_noted(tmp_path)
    (post,) = europe.asked("/ParquetFile/urls")
    assert json.loads(post.body) == {
        "countries": ["MT"],
        "cities": [],
        "pollutants": ["PM2.5", "PM10", "SO2", "NO2", "O3", "CO"],
        "dataset": 2,
        "source": "API",
        "dateTimeStart": "2023-01-01T00:00:00Z",
        "dateTimeEnd": "2023-02-01T00:00:00Z",
        "aggregationType": "hour",
    }
    assert all("/airquality-p-e1a/MT/" in entry.url for name, entry in read_manifest(tmp_path).items() if "SPO" in name)
    assert sorted(run(asked, tmp_path).unchanged) == sorted(found.fetched)
    europe.seen.clear()
    with pytest.raises(ConfigError, match=r"SPO-MT00003_06001_100.parquet: expected it to be from .*-e2a/MT/"):
        run(query("eea", "2026-10-01", "2026-11-01", bbox=box, base_url=europe.url, api_url=europe.url), tmp_path)


def test_eea_in_two_countries_or_none(europe: Archive, tmp_path: Path) -> None:
    more = {"base_url": europe.url, "api_url": europe.url}
    assert len(run(query("eea", "2023-01-01", "2023-02-01", bbox=(14, 35, 15, 37), **more), tmp_path).fetched) == 4
    assert len(europe.asked("/ParquetFile/urls")) == 2
    with pytest.raises(FetchError, match=r"expected sampling points inside bbox \(1, 1, 2, 2\); found none"):
        run(query("eea", "2023-01-01", "2023-02-01", bbox=(1, 1, 2, 2), **more), tmp_path)


@pytest.mark.parametrize(
    ("start", "end", "dataset"),
    [
        ("2010-01-01", "2013-01-01", "historical"),
        ("2013-01-01", "2026-01-01", "verified"),
        ("2025-12-01", "2026-01-02", "recent"),
    ],
)
def test_eea_dataset_of_a_period(start: str, end: str, dataset: str) -> None:
    assert eea._dataset(query("eea", start, end), NOW) == dataset
    assert eea._dataset(query("eea", "2025-01-01", "2025-02-01"), hours("2026-09-30")) == "recent"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a,b\n1,2\n", "line 1: expected the columns"),
        (METADATA.replace('"14.5111"', '"east"'), "line 2: expected Longitude and Latitude in degrees"),
    ],
)
def test_eea_metadata_that_is_none(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "DataExtract.csv").write_text(text)
    with pytest.raises(FetchError, match=found):
        eea.sampling_points(tmp_path / "DataExtract.csv", (14, 35, 15, 36))


def test_eea_service_that_answers_something_else(europe: Archive, tmp_path: Path) -> None:
    europe.answers["/ParquetFile/urls"] = lambda _: b"No results"
    box = (14, 35.5, 15, 36)
    with pytest.raises(FetchError, match="expected a CSV with the column ParquetFileUrl; found 'No results'"):
        run(query("eea", "2023-01-01", "2023-02-01", bbox=box, base_url=europe.url, api_url=europe.url), tmp_path)


def test_eea_with_the_genuine_list_and_metadata(archive: Archive, shared_data: Path, tmp_path: Path) -> None:
    samples = shared_data / "samples" / "eea"
    with zipfile.ZipFile(samples / "MT_metadata.csv.zip") as opened:
        metadata = opened.read("DataExtract.csv")
    names = [line.rsplit("/", 1)[-1] for line in (samples / "MT_Historical_Valletta.csv").read_text().split()[1:]]
    serve_europe(archive, metadata, {"MT": tuple(name.removesuffix(".parquet") for name in names)})
    more = {"bbox": (14, 35.5, 15, 36.2), "base_url": archive.url, "api_url": archive.url}
    found = run(query("eea", "2010-01-01", "2010-02-01", **more), tmp_path)
    # Of 22 files, those of benzene, lead, cadmium ... are none of our pollutants.
    kept = {name for name in found.fetched if name.endswith(".parquet")}
    assert len(kept) == 11
    assert kept < set(names)
    assert {name.split("_")[1] for name in kept} == {"00001", "00005", "00007", "00008", "00010", "06001"}
    as_noted(tmp_path)
    for name in kept - {name for name in kept if "_06001_" in name}:
        (tmp_path / name).unlink()  # what the files above hold is PM2.5, so that the others' names are wrong
    read = pd.concat(sources.read("eea", tmp_path, None, hours("2009-12-31T23"), hours("2010-01-01T02"), bbox=None))
    assert read["time"].drop_duplicates().tolist() == list(pd.date_range("2009-12-31T23", periods=3, freq="h"))
    assert (read["pm2p5"] == 3).all()


# ---- OpenAQ ----


def day_file(day: str, value: float = 12.5) -> bytes:
    return gzip.compress(OPENAQ.format(day=day, value=value).encode(), mtime=0)


def key_of(location: int, day: str) -> str:
    year, month, _ = day.split("-")
    folder = f"records/csv.gz/locationid={location}/year={year}/month={month}"
    return f"{folder}/location-{location}-{day.replace('-', '')}.csv.gz"


DAYS = ("2022-10-30", "2022-10-31", "2022-11-01", "2022-11-03")
OBJECTS = {key_of(location, day): day_file(day, location) for location in (7727, 7728) for day in DAYS}


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[str, Any]]:
    with servers.s3(openaq.BUCKET, OBJECTS) as served:
        yield served


def test_openaq_addresses() -> None:
    key = key_of(2178, "2022-05-03")
    assert key == "records/csv.gz/locationid=2178/year=2022/month=05/location-2178-20220503.csv.gz"
    assert openaq._folder(2178, date(2022, 5, 3)) + "location-2178-20220503.csv.gz" == key
    assert openaq.s3.url_of(openaq.BUCKET, key, None) == f"https://openaq-data-archive.s3.amazonaws.com/{key}"


def test_openaq_by_location(bucket: tuple[str, Any], tmp_path: Path) -> None:
    url, client = bucket
    asked = query("openaq", "2022-11-01", "2022-11-03", locations=(7727,), base_url=url)
    found = run(asked, tmp_path)
    # A day either side, as far as there are any; the second day of the period is a gap.
    names = [f"location-7727-{day}.csv.gz" for day in ("20221031", "20221101", "20221103")]
    assert (found.fetched, found.absent) == (names, ["location-7727-20221102.csv.gz"])
    as_noted(tmp_path)
    entry = read_manifest(tmp_path)[names[0]]
    assert entry.url == f"{url}/openaq-data-archive/{key_of(7727, '2022-10-31')}"
    assert entry.etag == f'"{hashlib.md5(OBJECTS[key_of(7727, "2022-10-31")]).hexdigest()}"'
    assert entry.last_modified is not None
    assert run(asked, tmp_path).unchanged == names
    read = pd.concat(sources.read("openaq", tmp_path, None, hours("2022-10-31"), hours("2022-11-03"), bbox=None))
    assert read["time"].dt.day.tolist() == [31, 2]  # 01:00 at +08:00 is the hour from 16:00 UTC of the day before
    # However old a file is: when the bucket lists another one, that one is fetched.
    client.put_object(Bucket=openaq.BUCKET, Key=key_of(7727, "2022-11-01"), Body=day_file("2022-11-01", 99))
    try:
        assert run(asked, tmp_path).fetched == [names[1]]
        assert (tmp_path / names[1]).read_bytes() == day_file("2022-11-01", 99)
        as_noted(tmp_path)
    finally:
        client.put_object(
            Bucket=openaq.BUCKET, Key=key_of(7727, "2022-11-01"), Body=OBJECTS[key_of(7727, "2022-11-01")]
        )


def place(number: int, lon: float, lat: float = 22.3, first: str = "2016", last: str = "2023", **more: Any) -> Any:
    times = {"datetimeFirst": {"utc": f"{first}-01-01T00:00:00Z"}, "datetimeLast": {"utc": f"{last}-01-01T00:00:00Z"}}
    return {"id": number, "coordinates": {"latitude": lat, "longitude": lon}, "isMobile": False} | times | more


def test_openaq_in_a_box(
    bucket: tuple[str, Any],
    archive: Archive,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    places = [
        place(7727, 113.94), place(7728, 113.95), place(3, 113.96, isMobile=True), place(4, 113.97, last="2020"),
        place(5, 113.98, datetimeFirst=None), place(6, 120.0), place(7, 113.99, first="2024", last="2025"),
    ]  # fmt: skip
    archive.answers["/v3/locations"] = servers.locations(places, "secret-key")
    archive.faults["/v3/locations"] += [servers.status(429, Retry_After="5")]
    monkeypatch.setattr(openaq, "PAGE", 2)
    monkeypatch.setenv("OPENAQ_API_KEY", "secret-key")
    more = {"bbox": (113, 22, 115, 23), "base_url": bucket[0], "api_url": archive.url}
    found = run(query("openaq", "2022-11-01", "2022-11-02", **more), tmp_path)
    assert {name.split("-")[1] for name in found.fetched} == {"7727", "7728"}
    asked = archive.asked("/v3/locations")
    assert [request.query["page"] for request in asked] == ["1", "1", "2", "3", "4"]
    assert asked[-1].query == {"bbox": "113,22,115,23", "parameters_id": "2", "limit": "2", "page": "4"}
    assert "2 of 6 locations in the box stay in place and report in the period" in caplog.text
    kept = "".join(path.read_text("latin-1") for path in tmp_path.iterdir())
    assert "secret-key" not in kept + caplog.text


def test_openaq_key_is_not_carried_to_another_host(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAQ_API_KEY", "secret-key")
    archive.faults["/v3/locations"] += [lambda handler, _: handler.reply(302, b"", {"Location": "/elsewhere"})]
    more = {"bbox": (113, 22, 115, 23), "base_url": archive.url, "api_url": archive.url}
    with pytest.raises(FetchError, match="expected HTTP 200; found HTTP 302") as error:
        run(query("openaq", "2022-11-01", "2022-11-02", **more), tmp_path)
    assert "secret-key" not in str(error.value)
    assert [request.path.split("?")[0] for request in archive.seen] == ["/v3/locations"]
    archive.answers["/v3/locations"] = lambda _: b"<html>"
    with pytest.raises(FetchError, match="expected JSON with results that have an id; found b'<html>'"):
        run(query("openaq", "2022-11-01", "2022-11-02", **more), tmp_path)


def test_a_bucket_that_cannot_be_listed(archive: Archive, tmp_path: Path) -> None:
    asked = query("openaq", "2022-11-01", "2022-11-02", locations=(1,), base_url=archive.url)
    with pytest.raises(FetchError, match=r"expected a list of records/csv.gz/locationid=1/"):
        run(asked, tmp_path)


def test_the_genuine_openaq_excerpt_arrives_byte_for_byte(
    bucket: tuple[str, Any], shared_data: Path, tmp_path: Path
) -> None:
    url, client = bucket
    sample = gzip.compress((shared_data / "samples/openaq/archive_location-7727-20221101_excerpt.csv").read_bytes())
    client.put_object(Bucket=openaq.BUCKET, Key=key_of(9999, "2022-11-01"), Body=sample)
    run(query("openaq", "2022-11-01", "2022-11-02", locations=(9999,), base_url=url), tmp_path)
    assert (tmp_path / "location-9999-20221101.csv.gz").read_bytes() == sample


# ---- the command ----


def command(*words: object) -> int:
    return cli.run_command(["fetch", *map(str, words)])


def test_command(airnow: Archive, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    period = ("--start", "2025-07-24", "--end", "2025-07-24T04", "--base-url", airnow.url, "--rate", 1000)
    assert command("airnow", *period, "--out", tmp_path / "a", "--dry-run") == 0
    out, _ = capfd.readouterr()
    assert out.splitlines()[1] == f"{airnow.url}/airnow/2025/20250724/HourlyData_2025072400.dat"
    assert airnow.seen == []
    assert not (tmp_path / "a").exists()
    assert command("airnow", *period, "--out", tmp_path / "a", "--json") == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["fetched"][0] == "monitoring_site_locations.dat"
    assert found["absent"] == ["HourlyData_2025072402.dat"]
    assert "INFO fetched 5 of 5 files" in err
    assert command("airnow", *period, "--out", tmp_path / "a") == 0
    out, _ = capfd.readouterr()
    assert out == (
        f"{tmp_path}/a: 0 fetched (0.0 MB), 4 unchanged, 1 not in the archive\n"
        f"Read it with: aqnet run --source airnow --input {tmp_path}/a\n"
    )


def test_command_says_what_is_wrong(airnow: Archive, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    period = ("--start", "2025-07-24", "--end", "2025-07-24T04", "--out", tmp_path / "a")
    for words, code, found in (
        (("nowhere", *period), 2, "'nowhere' is not one of 'airnow', 'cnemc', 'eea', 'openaq', 'prsa'"),
        (("openaq", *period, "--locations", "7727,x"), 1, "--locations: expected whole numbers; found 'x'"),
        (("airnow", *period, "--locations", "7727"), 1, "--locations: means nothing for airnow; leave it out"),
        (("airnow", *period[:3], "2025-07-23", *period[4:]), 1, "--end: expected an hour after --start"),
        (("airnow", *period[:5], "/proc/none"), 1, "expected a folder that can be written; found /proc/none"),
    ):
        assert command(*words) == code
        assert found in capfd.readouterr().err


def test_locations_of_the_command() -> None:
    options = {"network": "openaq", "locations": ("1,2", "3 4"), "bbox": None}
    assert observe._query("2022-11-01", "2022-11-02", options).locations == (1, 2, 3, 4)
