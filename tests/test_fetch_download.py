"""One download: every fault of a server is met by the right behaviour, told by files, digests and requests seen."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import random
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, InputError
from pipeline.fetch import content, manifest
from pipeline.fetch.download import download, tidy
from pipeline.fetch.manifest import Entry, Manifest, read_manifest
from pipeline.fetch.query import Wanted
from pipeline.fetch.web import USER_AGENT, FetchError, Limits, Web
from tests import servers
from tests.servers import MODIFIED, Archive

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def gz(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


def noise(size: int) -> str:
    return "".join(random.Random(size).choices("0123456789,\n", k=size))


DATA, NEW = gz(noise(40_000)), gz(noise(39_000))
NAME = "location-1-20260101.csv.gz"
ROWS = b"09/27/26|15:00|010030010|FAIRHOPE|-6|PM2.5|UG/M3|10.6|Alabama\n" * 30


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.at, self.slept = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.at += seconds
        self.slept += [seconds] if seconds > 1e-6 else []  # the rate's pauses, where it is without limit

    def clock(self) -> float:
        return self.at


@pytest.fixture
def archive() -> Iterator[Archive]:
    with servers.serving(Archive({f"/{NAME}": DATA, "/hours.dat": ROWS})) as served:
        yield served


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def get(archive: Archive, time: Time, tmp_path: Path) -> Iterator[Callable[..., Entry | None]]:
    """Download one file as one run of the program does, with its own reading of the manifest."""
    limits = Limits(rate=1e9, tries=4, timeout=0.4)
    with Web(limits, time.sleep, time.clock, lambda: NOW) as web:

        def run(name: str = NAME, **wanted: object) -> Entry | None:
            with manifest.opened(tmp_path) as opened:
                found = download(web, Wanted(f"{archive.url}/{name}", name, **wanted), opened)  # type: ignore[arg-type]
            tidy(tmp_path)
            return found

        yield run


Get = Callable[..., Entry | None]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def whole(folder: Path, data: bytes = DATA, name: str = NAME) -> bool:
    """The file, and nothing else but the manifest, whose digest is the file's."""
    entry = read_manifest(folder)[name]
    assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    return (folder / name).read_bytes() == data and files(folder) == {name, manifest.NAME}


# ---- without faults ----


def test_a_file_and_what_the_manifest_says_of_it(archive: Archive, get: Get, tmp_path: Path) -> None:
    entry = get()
    assert whole(tmp_path)
    assert entry == Entry(
        NAME,
        f"{archive.url}/{NAME}",
        "2026-11-25T12:00:00Z",
        len(DATA),
        hashlib.sha256(DATA).hexdigest(),
        f'"{hashlib.md5(DATA).hexdigest()}"',
        "2025-11-24T16:00:00Z",
    )
    (asked,) = archive.seen
    assert asked.headers["user-agent"] == USER_AGENT
    assert "aqnet-reanalysis" in USER_AGENT
    assert asked.headers["accept-encoding"] == "identity"
    assert "range" not in asked.headers


def test_a_file_that_has_not_changed_is_asked_for_by_its_etag_and_not_sent(archive: Archive, get: Get) -> None:
    assert get() == get()
    assert [request.code for request in archive.seen] == [200, 304]
    assert archive.seen[1].headers["if-none-match"] == f'"{hashlib.md5(DATA).hexdigest()}"'
    assert "if-modified-since" not in archive.seen[1].headers


def test_without_etags_a_file_is_asked_for_by_its_time(archive: Archive, get: Get) -> None:
    archive.etags = False
    assert get() == get()
    assert [request.code for request in archive.seen] == [200, 304]
    assert archive.seen[1].headers["if-modified-since"] == "Mon, 24 Nov 2025 16:00:00 GMT"


def test_a_correction_replaces_the_file_and_its_entry(archive: Archive, get: Get, tmp_path: Path) -> None:
    first = get()
    archive.files[f"/{NAME}"], archive.modified[f"/{NAME}"] = NEW, MODIFIED + 3600
    second = get()
    assert whole(tmp_path, NEW)
    assert first is not None
    assert second is not None
    assert (first.last_modified, second.last_modified) == ("2025-11-24T16:00:00Z", "2025-11-24T17:00:00Z")


def test_the_same_bytes_under_a_new_time_keep_the_first_time_of_publication(archive: Archive, get: Get) -> None:
    archive.etags = False
    first = get()
    archive.modified[f"/{NAME}"] = MODIFIED + 3600
    assert get() == first
    assert [request.code for request in archive.seen] == [200, 200]


def test_a_file_damaged_on_disk_is_fetched_whole(archive: Archive, get: Get, tmp_path: Path) -> None:
    get()
    (tmp_path / NAME).write_bytes(DATA[:-1] + b"x")
    get()
    assert whole(tmp_path)
    assert "if-none-match" not in archive.seen[1].headers


def test_what_is_not_there_is_none_and_an_older_address_may_have_it(archive: Archive, get: Get, tmp_path: Path) -> None:
    assert get("none.csv") is None
    assert files(tmp_path) <= {manifest.NAME}
    entry = get("none.csv", older=(f"{archive.url}/nor.csv", f"{archive.url}/hours.dat"))
    assert entry is not None
    assert entry.url == f"{archive.url}/hours.dat"
    assert (tmp_path / "none.csv").read_bytes() == ROWS
    assert len(archive.seen) == 4  # a file that is not there is not asked for twice


# ---- faults that pass ----


@pytest.mark.parametrize(
    "fault",
    [
        servers.status(500),
        servers.status(503),
        servers.garbage,
        servers.page,
        servers.wrong_length(-100),
        servers.wrong_length(100),
        servers.reset(0),
    ],
)
def test_trouble_that_passes_costs_a_try(archive: Archive, get: Get, tmp_path: Path, fault: servers.Fault) -> None:
    archive.faults[f"/{NAME}"] += [fault, fault]
    get()
    assert whole(tmp_path)
    assert len(archive.seen) >= 3


@pytest.mark.parametrize("fault", [servers.truncated, servers.stalled, servers.reset])
def test_a_break_is_resumed_where_it_was(
    archive: Archive, get: Get, tmp_path: Path, fault: Callable[[int], servers.Fault]
) -> None:
    archive.faults[f"/{NAME}"] += [fault(10_000)]
    get()
    assert whole(tmp_path)
    first, second = archive.seen
    assert second.code == 206
    assert second.headers["if-range"] == f'"{hashlib.md5(DATA).hexdigest()}"'
    start = int(second.headers["range"].removeprefix("bytes=").rstrip("-"))
    assert 0 < start <= 10_000 if fault is servers.reset else start == 10_000
    assert "range" not in first.headers


def test_without_etags_a_break_is_resumed_by_the_time(archive: Archive, get: Get, tmp_path: Path) -> None:
    archive.etags = False
    archive.faults[f"/{NAME}"] += [servers.truncated(10_000)]
    get()
    assert whole(tmp_path)
    assert archive.seen[1].headers["if-range"] == "Mon, 24 Nov 2025 16:00:00 GMT"


@pytest.mark.parametrize("new", [NEW, gz(noise(12_000))], ids=["longer", "shorter than what was received"])
def test_a_file_changed_during_a_resume_starts_anew(archive: Archive, get: Get, tmp_path: Path, new: bytes) -> None:
    archive.faults[f"/{NAME}"] += [servers.replaced_after(10_000, new)]
    get()
    assert whole(tmp_path, new)
    assert [found.code for found in archive.seen] == [200, 200]


def test_a_server_that_ignores_if_range_cannot_mix_two_files(archive: Archive, get: Get, tmp_path: Path) -> None:
    def ignorant(handler: servers.Handler, data: bytes) -> None:
        says = handler.whole() | {"Content-Range": f"bytes 10000-{len(data) - 1}/{len(data)}"}
        handler.reply(206, data[10_000:], says)

    archive.faults[f"/{NAME}"] += [servers.replaced_after(10_000, NEW), ignorant]
    get()
    assert whole(tmp_path, NEW)
    assert "range" not in archive.seen[2].headers


def test_a_try_that_takes_too_long_is_resumed(archive: Archive, tmp_path: Path) -> None:
    ticks = iter(range(10_000))
    limits = Limits(rate=1e9, tries=60, try_seconds=2.5)
    archive.pause = 0.001
    with (
        Web(limits, lambda _: None, lambda: float(next(ticks)), lambda: NOW) as web,
        manifest.opened(tmp_path) as opened,
    ):
        download(web, Wanted(f"{archive.url}/{NAME}", NAME), opened)
    assert whole(tmp_path)
    assert {request.code for request in archive.seen[1:]} == {206}


def test_a_part_that_a_kill_left_is_resumed(archive: Archive, get: Get, tmp_path: Path) -> None:
    archive.faults[f"/{NAME}"] += [servers.truncated(1000)] + [servers.status(500)] * 3
    with pytest.raises(FetchError):
        get()
    assert files(tmp_path) == {f".{NAME}.part", f".{NAME}.part.json"}  # hidden
    get()
    assert archive.seen[-1].headers["range"] == "bytes=1000-"
    assert whole(tmp_path)


def test_a_part_of_another_address_or_without_a_note_is_not_used(archive: Archive, get: Get, tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.part").write_bytes(b"what else")
    get()
    assert whole(tmp_path)
    assert "range" not in archive.seen[0].headers


# ---- pauses ----


def test_pauses_grow_and_a_servers_wish_is_honoured(archive: Archive, get: Get, time: Time) -> None:
    archive.faults[f"/{NAME}"] += [servers.status(500)] * 3
    get()
    assert [1 <= time.slept[0] <= 2, 2 <= time.slept[1] <= 3, 4 <= time.slept[2] <= 5] == [True] * 3
    time.slept.clear()
    archive.files["/b.dat"] = ROWS
    archive.faults["/b.dat"] += [
        servers.status(429, Retry_After="17"),
        servers.status(503, Retry_After="Wed, 25 Nov 2026 12:01:40 GMT"),
        servers.status(429, Retry_After="soon"),
    ]
    get("b.dat")
    assert time.slept[:2] == [17, 100]
    assert time.slept[2] < 6


def test_a_server_that_asks_for_hours_is_left_alone(archive: Archive, get: Get, time: Time, tmp_path: Path) -> None:
    archive.faults[f"/{NAME}"] += [servers.status(429, Retry_After="7200")]
    with pytest.raises(FetchError, match="HTTP 429 Too Many Requests, which asks to wait 7200 s; 1 tries made"):
        get()
    assert (len(archive.seen), time.slept) == (1, [])


def test_requests_to_a_host_are_apart(archive: Archive, time: Time, tmp_path: Path) -> None:
    with Web(Limits(rate=2), time.sleep, time.clock) as web:
        for _ in range(4):
            web.body("GET", f"{archive.url}/hours.dat", "rows")
    assert time.slept == [0.5] * 3


# ---- faults that do not pass ----


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (servers.status(500), "HTTP 500 Internal Server Error; 4 tries"),
        (servers.garbage, "no whole gzip file .*; 4 tries"),
        (servers.wrong_length(-100), "no whole gzip file .*; 4 tries"),
        (servers.page, "no whole gzip file .*; 4 tries"),
        (servers.reset(0), "a broken connection .*; 4 tries"),
        (servers.stalled(0), "no byte for 0.4 s; 4 tries"),
        (servers.status(401), "HTTP 200; found HTTP 401 Unauthorized"),
        (servers.status(403), "HTTP 200; found HTTP 403 Forbidden"),
    ],
)
def test_trouble_that_stays_leaves_nothing_and_is_named(
    archive: Archive, get: Get, tmp_path: Path, fault: servers.Fault, found: str
) -> None:
    archive.faults[f"/{NAME}"] += [fault] * 99
    with pytest.raises(FetchError, match=f"^{archive.url}/{NAME}: expected .*{found}"):
        get()
    assert NAME not in files(tmp_path)
    assert read_manifest(tmp_path) == {}
    assert len(archive.seen) == (4 if "4 tries" in found else 1)


def test_trouble_that_stays_leaves_the_former_file(archive: Archive, get: Get, tmp_path: Path) -> None:
    get()
    archive.files[f"/{NAME}"] = NEW
    archive.faults[f"/{NAME}"] += [servers.garbage] * 4
    with pytest.raises(FetchError):
        get()
    assert whole(tmp_path)


def test_a_redirect_loop_ends(archive: Archive, get: Get) -> None:
    archive.faults[f"/{NAME}"] += [servers.redirect_to_itself]
    with pytest.raises(FetchError, match="found more than 5 redirects"):
        get()
    assert len(archive.seen) == 6


def test_a_redirect_that_ends_is_followed(archive: Archive, get: Get, tmp_path: Path) -> None:
    archive.files["/a.dat"] = b""
    archive.faults["/a.dat"] += [lambda handler, _: handler.reply(302, b"", {"Location": "/hours.dat"})]
    get("a.dat")
    assert whole(tmp_path, ROWS, "a.dat")


def test_no_server_and_no_address(time: Time) -> None:
    with Web(Limits(tries=2), time.sleep, time.clock) as web:
        with pytest.raises(FetchError, match=r"found a broken connection .*; 2 tries made"):
            web.body("GET", "http://127.0.0.1:9/x", "rows")
        with pytest.raises(FetchError, match="expected an address with http or https"):
            web.body("GET", "ftp://127.0.0.1/x", "rows")


@pytest.mark.parametrize("header", ["Content-MD5", "x-ms-blob-content-md5"])
def test_a_digest_that_does_not_fit_is_refused(archive: Archive, get: Get, header: str) -> None:
    archive.headers = {header: "1B2M2Y8AsgTpgAmY7PhCfg=="}
    with pytest.raises(FetchError, match=r"MD5 [0-9a-f]{32} instead of d41d8cd98f00b204e9800998ecf8427e; 4 tries"):
        get()


def test_an_s3_etag_is_the_md5_unless_it_says_otherwise(archive: Archive, get: Get, tmp_path: Path) -> None:
    def lying(**more: str) -> servers.Fault:
        etag = {"ETag": '"d41d8cd98f00b204e9800998ecf8427e"', "x-amz-request-id": "1"}
        return lambda handler, data: handler.reply(200, data, etag | {k.replace("_", "-"): v for k, v in more.items()})

    archive.faults[f"/{NAME}"] += [lying()] * 4
    with pytest.raises(FetchError, match="instead of d41d8cd98f00b204e9800998ecf8427e"):
        get()
    archive.faults[f"/{NAME}"] += [lying(x_amz_server_side_encryption="aws:kms")]
    get()
    assert (tmp_path / NAME).read_bytes() == DATA


def test_user_and_password_of_an_address_are_kept_nowhere(
    archive: Archive, time: Time, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive.faults[f"/{NAME}"] += [servers.status(500), *[servers.truncated(100)], *[servers.status(500)] * 2]
    caplog.set_level(logging.DEBUG, "aqnet")
    wanted = Wanted(f"{archive.url.replace('//', '//me:secret@')}/{NAME}", NAME)
    with Web(Limits(tries=4), time.sleep, time.clock) as web, manifest.opened(tmp_path) as opened:
        with pytest.raises(FetchError) as error:
            download(web, wanted, opened)
        download(web, wanted, opened)
    kept = "".join(path.read_text("latin-1") for path in tmp_path.iterdir())
    assert "secret" not in kept + caplog.text + str(error.value)
    assert archive.seen[0].headers["authorization"].startswith("Basic ")


# ---- text that is cut ----


def test_a_text_cut_on_the_way_is_fetched_again(archive: Archive, get: Get, tmp_path: Path) -> None:
    archive.faults["/hours.dat"] += [servers.wrong_length(-20)]
    entry = get("hours.dat")
    assert whole(tmp_path, ROWS, "hours.dat")
    assert entry is not None
    assert entry.status == "fetched"


def test_a_text_cut_in_the_archive_is_kept_and_said(
    archive: Archive, get: Get, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive.files["/hours.dat"] = ROWS[:-20]
    entry = get("hours.dat")
    assert entry is not None
    assert entry.status == "cut"
    assert whole(tmp_path, ROWS[:-20], "hours.dat")
    assert "hours.dat ends in the middle of a line, twice the same" in caplog.text
    assert get("hours.dat") == entry


# ---- content ----


def zipped(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"Value": [float(value) for value in range(5000)]}), file)
    return file.getvalue()


GOOD = {"a.csv.gz": DATA, "a.zip": zipped(("a.csv", ROWS)), "a.parquet": parquet(), "a.dat": ROWS}


@pytest.mark.parametrize("name", GOOD)
def test_good_content_has_no_problem(tmp_path: Path, name: str) -> None:
    (tmp_path / "part").write_bytes(GOOD[name])
    assert content.problem(tmp_path / "part", name) is None
    assert not content.is_cut(tmp_path / "part", name)


@pytest.mark.parametrize("name", [name for name in GOOD if name != "a.dat"])
@given(data=st.data())
def test_no_compressed_file_passes_when_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, len(GOOD[name]) - 1))
    path = tmp_path_factory.getbasetemp() / "cut"
    path.write_bytes(GOOD[name][:size])
    assert content.problem(path, name)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", b""),
        ("a.csv", b"<html><body>gone</body></html>"),
        ("a.csv", b"a,b\n1,\0\n"),
        ("a.csv", DATA),
        ("a.zip", zipped()),
        ("a.zip", GOOD["a.zip"][:40] + b"xxxx" + GOOD["a.zip"][44:]),
        ("a.parquet", b"PAR1" + GOOD["a.parquet"][200:]),
        ("a.parquet", ROWS),
        ("a.csv.gz", ROWS),
    ],
)
def test_bad_content_has_a_problem(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / "part").write_bytes(data)
    assert content.problem(tmp_path / "part", name)


def test_a_cut_line_is_seen_in_each_layout(tmp_path: Path) -> None:
    quoted = b'"AQSID","SiteName","ReportingArea_PipeDelimited"\n"01","A, B","Mobile|Other"\n'
    wide = b"date,hour,type,1001A\n20190105,0,AQI,2.4"
    for text in (ROWS, quoted, wide):
        (tmp_path / "part").write_bytes(text)
        assert not content.is_cut(tmp_path / "part", "a.csv")
        for cut in range(2, len(text.rstrip(b"\n").rsplit(b"\n", 1)[-1]) - 16):
            (tmp_path / "part").write_bytes(text.rstrip(b"\n")[: -cut - 14])
            assert content.is_cut(tmp_path / "part", "a.csv"), text[: -cut - 14]


# ---- manifest ----


def entry(name: str, **values: object) -> Entry:
    return Entry(name, f"http://a/{name}", "2026-11-25T12:00:00Z", 1, "0" * 64, **values)  # type: ignore[arg-type]


@given(cut=st.integers(0, 5000), names=st.lists(st.sampled_from("abc"), min_size=1, max_size=6))
def test_a_manifest_cut_anywhere_holds_a_state_that_was(
    tmp_path_factory: pytest.TempPathFactory, cut: int, names: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("manifest")
    log = Manifest(folder)
    states = [read_manifest(folder)]
    for name in names:
        log.forget(name)
        states.append(read_manifest(folder))
        log.put(entry(name, etag=str(len(states))))
        states.append(read_manifest(folder))
    path = folder / manifest.NAME
    path.write_bytes(path.read_bytes()[:cut])
    found = read_manifest(folder)
    assert found in states
    Manifest(folder).put(entry("d"))
    assert read_manifest(folder) == found | {"d": entry("d")}


def test_a_manifest_that_is_none(tmp_path: Path) -> None:
    for text, found in (
        ("x\n", "line 1: expected an entry"),
        ('{"path": "a", "status": "fetched"}\n', "line 1: expected the fields of an entry"),
    ):
        (tmp_path / manifest.NAME).write_text(text)
        with pytest.raises(InputError, match=found):
            read_manifest(tmp_path)


def test_two_fetches_at_once_into_one_folder(tmp_path: Path) -> None:
    with manifest.opened(tmp_path), pytest.raises(ConfigError, match="another fetch is at work"):  # noqa: SIM117
        with manifest.opened(tmp_path):
            pass
