"""Secrets of the environment stand in nothing that a run leaves or says, be it a good run or a failed one."""

from __future__ import annotations

import gzip
import logging
import os
import sqlite3
import subprocess
import sys
import zipfile
from base64 import b64encode, encodebytes
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import cloudpickle
import httpx
import netCDF4
import pyarrow as pa
import pytest
import zarr
from PIL import Image, PngImagePlugin
from secret_search import leaks
from test_write import NEW_YEAR, run

from pipeline import logs, redact
from pipeline.config import from_sources
from pipeline.console import logging_to_console
from pipeline.cube import repository
from pipeline.errors import ConfigError
from pipeline.twin.simulate import Simulation

#: With what must be quoted in addresses, in JSON and in HTML.
PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEYID0001",
    "AWS_SECRET_ACCESS_KEY": "plantedSecret/with+slash&0002==",
    "AWS_SESSION_TOKEN": 'plantedToken"quoted"/0003',
    "OPENAQ_API_KEY": "planted-openaq-key-0004",
    "PREFECT_API_KEY": "pnu_plantedPrefectKey0005",
    "proxy": "plantedProxyPw0006",
    "database": "planted%2FDatabasePw0007",
    "block": "plantedBlockValue0008",
}
_NAMED = {name: value for name, value in PLANTED.items() if name.isupper()}

#: What a process does in one go, so that Prefect starts once: runs of every kind that end well, then, as on somebody's
#: worst day, stages that fail with every secret in their message. The log is at its most talkative.
DAY = """
import logging, os, sys
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote
from flows import environment
environment.prepare_command_line()
from prefect.blocks.system import Secret
from starlette.testclient import TestClient
from pipeline import cli, redact, stages
from pipeline.offer import serve

talkative = ["--debug", "--log-format", "json"]
names, place, schedule, *args = sys.argv[1:]
place, schedule = Path(place), Path(schedule)
given = dict(zip(args[::2], args[1::2]))
run = ["run", *(word for name, value in given.items() for word in (name, *value.split()))]
assert cli.run_command([*talkative, *run, "--out", str(place / "out"), "--json", "--workers", "1"]) == 0

logging.getLogger("aqnet").setLevel("DEBUG")
arrived = ["--input", given["--input"], "--stations", given["--stations"], "--store", str(place / "store")]
assert cli.run_command([*talkative, "ingest", "cnemc", *arrived]) == 0
from flows.daily import daily
from flows.hourly import hourly
assert hourly(schedule, now=datetime(2019, 12, 1, 2, tzinfo=UTC)) == ["r1"]
assert daily(schedule, now=datetime(2019, 12, 7, tzinfo=UTC)) == ["r2"]

with TestClient(serve.application(place / "out")) as reader:
    for path in ("", "products/", "products/run.json", "products/catalog.json", "metrics", "nowhere"):
        answer = reader.get(f"/{path}", headers={"Authorization": "Basic none"})
        print(answer.status_code, answer.headers, answer.text)

Secret(value=sys.stdin.readline().strip()).save("planted", overwrite=True)
block = Secret.load("planted").get()
redact.know(block)
told = [os.environ[name] for name in names.split(",")] + [block]
told += [quote(one, safe="") for one in told] + [b64encode(one.encode()).decode() for one in told]

def fail(*_):
    logging.getLogger("aqnet").debug("trying %s", told, extra={"headers": {"Authorization": told[0]}, "all": told})
    logging.getLogger("prefect.flow_runs").error("other library: %s", told)
    try:
        raise KeyError(told[0])
    except KeyError as cause:
        raise ValueError(f"no answer from {told}", told) from cause

for stage, form in (("ingest", "text"), ("validate", "json")):
    before = getattr(stages, stage)
    setattr(stages, stage, fail)
    assert cli.run_command(["--debug", "--log-format", form, *run, "--out", str(place / "out"), "--json"]) == 70
    setattr(stages, stage, before)
cli.run_command(["doctor", "--timeout", "0.1", "--json"])
"""


def environment(home: Path) -> dict[str, str]:
    """Environment with secrets, where Prefect keeps its log in its database."""
    planted = _NAMED | {
        "HTTPS_PROXY": f"http://me:{PLANTED['proxy']}@127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
        "METADATA_DATABASE": f"postgresql+asyncpg://aqnet:{PLANTED['database']}@127.0.0.1:9/prefect",
    }
    prefect = {"PREFECT_HOME": str(home), "PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_LOGGING_TO_API_ENABLED": "true"}
    prefect["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] = "600"  # a busy machine
    dropped = {"PREFECT_API_URL", "PREFECT_API_DATABASE_CONNECTION_URL"}
    return {name: value for name, value in os.environ.items() if name not in dropped} | planted | prefect


#: Configuration of the scheduled runs.
SCHEDULE = """
source = "store"
input = "{place}/store"
start = 2019-12-01
bbox = [110.0, 36.0, 113.0, 39.0]
resolution = 0.5
weights = "{weights}"
out = "{place}/scheduled"
"""


def test_no_run_good_or_failed_leaves_or_says_a_secret(
    small_simulation: Simulation, weights: Path, tmp_path: Path
) -> None:
    place, said = tmp_path / "left", tmp_path / "left" / "said"
    said.mkdir(parents=True)
    (tmp_path / "schedule.toml").write_text(SCHEDULE.format(place=place, weights=weights))
    given = ["--input", small_simulation.archive, "--stations", small_simulation.stations, "--weights", weights]
    given += ["--start", "2019-12-01", "--end", "2019-12-01T03", "--bbox", "110 36 113 39", "--resolution", "0.5"]
    told = ",".join([*_NAMED, "HTTPS_PROXY", "METADATA_DATABASE"])
    with (said / "out").open("w") as out, (said / "err").open("w") as err:
        done = subprocess.run(
            [sys.executable, "-c", DAY, told, place, tmp_path / "schedule.toml", *given],
            cwd=tmp_path,
            env=environment(place / "prefect"),
            input=PLANTED["block"] + "\n",
            stdout=out,
            stderr=err,
            text=True,
            timeout=1200,
            check=False,
        )
    heard = (said / "err").read_text()
    assert done.returncode == 0, heard[-5000:]
    assert heard.count("no answer from") >= 2, heard
    assert "months side by side: 1 processes here" in heard
    for folder in ("out", "scheduled"):
        assert (place / folder / "metrics.prom").is_file()
        assert (place / folder / "products" / "SHA256SUMS").is_file()
    assert "200 Headers" in (said / "out").read_text()
    with closing(sqlite3.connect(place / "prefect" / "prefect.db")) as database:
        states = [row[0] for row in database.execute("select message from flow_run_state where type = 'FAILED'")]
        flows = {row[0] for row in database.execute("select name from flow")}
        logged = database.execute("select count(*) from log").fetchone()[0]
    assert any("no answer from" in message for message in states)
    assert flows == {"reanalysis", "hourly", "daily"}
    assert logged > 0
    assert leaks(place, PLANTED) == []


# ---- the search finds what is there ----


def plant(folder: Path, secret: str) -> None:
    """Leak a secret in every way that a file may hold it."""
    folder.mkdir()
    raw = f"before {secret} after".encode()
    (folder / "plain.log").write_bytes(raw)
    (folder / "quoted.log").write_text(f"?key={quote(secret, safe='')}&x=1")
    for shift in range(3):
        (folder / f"base64-{shift}.log").write_bytes(b64encode(b"x" * shift + raw[7:]))
    (folder / "lines.log").write_bytes(encodebytes(60 * b"x" + raw))
    (folder / "text.gz").write_bytes(gzip.compress(raw))
    (folder / "frame").write_bytes(b"ICE" + pa.compress(raw, "zstd", asbytes=True) + b"behind")
    with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", raw)
    with netCDF4.Dataset(folder / "field.nc", "w") as data:
        data.history = raw.decode()
    described = PngImagePlugin.PngInfo()
    described.add_text("source", raw.decode(), zip=True)
    Image.new("RGB", (2, 2)).save(folder / "map.png", pnginfo=described)
    with closing(sqlite3.connect(folder / "prefect.db")) as database:
        database.execute("create table log (message text)")
        database.execute("insert into log values (?)", (5000 * "x" + raw.decode(),))
        database.commit()


@pytest.mark.parametrize("name", PLANTED)
def test_a_leak_is_found_wherever_it_is(tmp_path: Path, name: str) -> None:
    plant(tmp_path / "leaky", PLANTED[name])
    files = sorted(path.name for path in (tmp_path / "leaky").iterdir())
    found = leaks(tmp_path / "leaky", {name: PLANTED[name]})
    assert sorted(Path(line.removesuffix(f": {name}")).name for line in found) == files
    assert leaks(tmp_path / "leaky", {"other": "a secret that nobody told"}) == []


def test_a_leak_in_a_commit_of_the_cube_is_found(tmp_path: Path) -> None:
    cube = tmp_path / "cube.icechunk"
    run(cube, NEW_YEAR, NEW_YEAR + 2)
    assert leaks(cube, PLANTED) == []
    session = repository.open_existing(cube).writable_session("main")
    zarr.open_group(session.store, mode="r+").attrs["note"] = PLANTED["block"]
    session.commit("a note", {"said": PLANTED["AWS_SECRET_ACCESS_KEY"]})
    assert {line.rpartition(": ")[2] for line in leaks(cube, PLANTED)} == {"block", "AWS_SECRET_ACCESS_KEY"}


# ---- files of secrets ----


def test_what_a_credentials_file_holds_is_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.environment import discreet

    monkeypatch.setattr(redact, "_known", set())
    credentials, password = tmp_path / "s3_client", tmp_path / "password"
    credentials.write_text(
        "[default]\naws_access_key_id = AKIAOFAFILE\naws_secret_access_key=of/a=file\nregion = here\n"
    )
    password.write_text("of a line\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("POSTGRES_PASSWORD_FILE", str(password))
    monkeypatch.setenv("OTHER_TOKEN_FILE", str(tmp_path / "that is not there"))
    with pytest.raises(ValueError, match=r"^\*\*\* \*\*\* \*\*\* here$"), discreet():
        raise ValueError("AKIAOFAFILE of/a=file of a line here")


# ---- errors ----


def test_an_error_stays_the_one_it_is_without_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAQ_API_KEY", PLANTED["OPENAQ_API_KEY"])
    path = f"/store/{PLANTED['OPENAQ_API_KEY']}/a.nc"
    with pytest.raises(FileNotFoundError) as raised, redact.errors():
        raise FileNotFoundError(2, "No such file", path)
    assert str(raised.value) == "[Errno 2] No such file: '/store/***/a.nc'"


def test_an_error_whose_text_cannot_be_mended_is_named_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn(Exception):
        def __str__(self) -> str:
            return f"refused {PLANTED['OPENAQ_API_KEY']}"

    monkeypatch.setenv("OPENAQ_API_KEY", PLANTED["OPENAQ_API_KEY"])
    with pytest.raises(RuntimeError, match=r"^Stubborn: refused \*\*\*$"), redact.errors():
        raise Stubborn


def refuse(key: str) -> None:
    request = httpx.Request("GET", "https://host/a", headers={"X-API-Key": key})
    try:
        raise httpx.ConnectError(f"no {key}", request=request)
    except httpx.ConnectError as cause:
        raise ValueError(f"with {key}", [key]) from cause


def test_what_an_error_came_from_is_mended_and_carries_no_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAQ_API_KEY", PLANTED["OPENAQ_API_KEY"])
    with pytest.raises(ValueError, match=r"with \*\*\*") as raised, redact.errors():
        refuse(PLANTED["OPENAQ_API_KEY"])
    cause = raised.value.__cause__
    assert isinstance(cause, httpx.ConnectError)
    assert str(cause) == "no ***"
    assert PLANTED["OPENAQ_API_KEY"].encode() not in cloudpickle.dumps((raised.value, vars(cause)))


@pytest.mark.parametrize("form", logs.FORMATS)
def test_a_line_whose_arguments_do_not_fit_is_said_without_them_leaking(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAQ_API_KEY", PLANTED["OPENAQ_API_KEY"])
    with logging_to_console(False, form):
        logging.getLogger("aqnet").warning("two %d words", PLANTED["OPENAQ_API_KEY"])
    said = capsys.readouterr().err
    assert "two %d words" in said
    assert "***" in said
    assert PLANTED["OPENAQ_API_KEY"] not in said


def test_what_stands_hidden_behind_an_error_is_taken_away() -> None:
    """An address with a password, in the configuration's own error, which is not shown but would be pickled."""
    with pytest.raises(ConfigError) as raised, redact.errors():
        from_sources(None, {"store": f"s3://me:{PLANTED['proxy']}@aqnet/cube"})
    assert raised.value.__context__ is None
    assert PLANTED["proxy"] not in f"{raised.value}"


def test_a_cause_whose_text_cannot_be_mended_is_named_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn(Exception):
        def __str__(self) -> str:
            return f"refused {PLANTED['OPENAQ_API_KEY']}"

    def raise_behind() -> None:
        try:
            raise Stubborn
        except Stubborn as cause:
            raise ValueError("no answer") from cause

    monkeypatch.setenv("OPENAQ_API_KEY", PLANTED["OPENAQ_API_KEY"])
    with pytest.raises(ValueError, match=r"^no answer$") as raised, redact.errors():
        raise_behind()
    assert repr(raised.value.__cause__) == "RuntimeError('Stubborn: refused ***')"
    assert raised.value.__context__ is None or "***" in str(raised.value.__context__)
