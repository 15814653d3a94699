"""Credentials from a Prefect block: a run to a real S3 server has them, its workers too, and nobody is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from secret_search import leaks
from test_s3 import KEY, SECRET, bucket

from flows import credentials
from flows.credentials import Keys
from pipeline import redact
from pipeline.cube import reader
from pipeline.errors import ConfigError, ProductError
from pipeline.fetch import s3 as fetch_s3
from pipeline.fetch.web import FetchError, Limits
from pipeline.twin.simulate import Simulation

__all__ = ["bucket"]  # a fixture

PAIR = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET}
PLANTED = {"key": KEY, "secret": SECRET}
OTHERS = ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_SHARED_CREDENTIALS_FILE", "AWS_PROFILE")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment without credentials; what is told to `redact` is forgotten after the test."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION", *OTHERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    before = set(redact._known)
    yield monkeypatch
    redact._known.clear()
    redact._known.update(before)


@dataclass(frozen=True)
class Server:
    """Address of an S3 server that nothing in the environment tells of, and of a bucket of it."""

    endpoint: str
    bucket: str


@pytest.fixture
def server(bucket: str, request: pytest.FixtureRequest) -> Server:
    found = Server(os.environ["AWS_ENDPOINT_URL"], bucket)
    request.getfixturevalue("bare")
    return found


def keep(name: str, value: Any) -> None:
    """Save a block."""
    from prefect.blocks.system import Secret

    Secret(value=value).save(name, overwrite=True)


def database() -> Path:
    """Folder of Prefect's database in this session."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    return Path(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition("///")[2]).parent


@pytest.fixture
def settings(server: Server, small_simulation: Simulation, weights: Path, tmp_path: Path) -> Path:
    """Configuration of six hours whose cube lies in the bucket."""
    path = tmp_path / "backfill.toml"
    path.write_text(
        f"""
        input = "{small_simulation.archive}"
        stations = "{small_simulation.stations}"
        start = 2019-12-01
        end = 2019-12-01T06:00:00Z
        bbox = [110.0, 36.0, 113.0, 39.0]
        resolution = 0.5
        weights = "{weights}"
        out = "{tmp_path / "out"}"
        store = "{server.bucket}/block"
        """
    )
    return path


def test_a_backfill_and_its_worker_have_the_blocks_credentials_and_leave_none(
    prefect_harness: None,
    server: Server,
    bare: pytest.MonkeyPatch,
    settings: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from flows.backfill import backfill
    from flows.verify import verify

    keep("good", PAIR | {"endpoint_url": server.endpoint, "region": "us-east-1"})
    keep("wrong", PAIR | {"aws_secret_access_key": SECRET[::-1], "endpoint_url": server.endpoint})
    bare.setenv(credentials.VARIABLE, "good")
    assert backfill(settings, workers=1) == "r1"
    assert verify(tmp_path / "out") > 10
    assert os.environ[credentials.VARIABLE] == "good"
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3", "AWS_REGION"} & set(os.environ)
    with pytest.raises(ConfigError, match=r"expected .*credentials"):  # it was the block that told them
        reader.open_cube(f"{server.bucket}/block")
    bare.setenv(credentials.VARIABLE, "wrong")
    with pytest.raises(ConfigError, match="says SignatureDoesNotMatch") as refused:
        backfill(settings, workers=1)
    (tmp_path / "refused").write_bytes(cloudpickle.dumps((refused.value, vars(refused.value))))
    (tmp_path / "said").write_text("".join(capfd.readouterr()))
    planted = PLANTED | {"wrong": SECRET[::-1]}
    assert leaks(tmp_path, planted) == []
    assert leaks(database(), planted) == []
    assert redact.text(f"{KEY} {SECRET}") == "*** ***"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (SECRET, "no JSON object"),
        ([KEY, SECRET], "no JSON object"),
        ({"aws_access_key_id": KEY}, "aws_secret_access_key is missing"),
        (PAIR | {"aws_secret_access_key": ""}, "aws_secret_access_key is not as expected"),
        (PAIR | {SECRET: KEY}, "a key that is none of these"),
        (PAIR | {"endpoint_url": f"http://{KEY}:{SECRET}@host:8333"}, "endpoint_url is not as expected"),
    ],
)
def test_a_block_that_holds_something_else_is_named_with_what_it_should_hold(
    prefect_harness: None, bare: pytest.MonkeyPatch, value: Any, found: str
) -> None:
    keep("other", value)
    bare.setenv(credentials.VARIABLE, "other")
    with pytest.raises(ConfigError, match=rf"aws_access_key_id.*region; found block 'other': {found}$") as refused:
        credentials.lent().__enter__()
    assert not any(secret in repr(cloudpickle.dumps(refused.value)) for secret in (KEY, SECRET))
    assert "\n" not in str(refused.value)


def test_without_the_block_a_flow_stops_before_any_work(
    prefect_harness: None, bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flows.hourly import hourly

    bare.setenv(credentials.VARIABLE, "nowhere")
    with pytest.raises(ConfigError, match=r"AQNET_STORE_BLOCK: expected .* found no block 'nowhere'"):
        hourly(tmp_path / "schedule.toml")  # which is not there either
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def good(bare: pytest.MonkeyPatch) -> None:
    """A block without Prefect."""
    keys = Keys.model_validate(PAIR | {"endpoint_url": "http://host:8333"})
    bare.setattr(credentials, "load", lambda name: {"good": keys}[name])
    bare.setenv(credentials.VARIABLE, "good")


def test_what_the_environment_had_comes_back_even_after_an_error(good: None, bare: pytest.MonkeyPatch) -> None:
    bare.setenv("AWS_ACCESS_KEY_ID", "AKIAOFTHEENVIRONMENT")
    bare.setenv("AWS_SESSION_TOKEN", "of another pair")
    before = dict(os.environ)
    with pytest.raises(ProductError), credentials.lent(), credentials.lent():
        fail_unless_lent()
    assert os.environ == before


def fail_unless_lent() -> None:
    assert os.environ["AWS_ACCESS_KEY_ID"] == KEY
    assert "AWS_SESSION_TOKEN" not in os.environ
    assert credentials.VARIABLE not in os.environ  # a process that is started here looks for no block
    raise ProductError("any")


def test_a_dask_worker_elsewhere_loads_the_block_for_its_life(good: None) -> None:
    before = dict(os.environ)
    asyncio.run(credentials.dask_setup(None))
    assert os.environ["AWS_ENDPOINT_URL_S3"] == "http://host:8333"
    asyncio.run(credentials.dask_teardown(None))
    assert os.environ == before


def test_keys_do_not_show_in_their_own_text() -> None:
    keys = Keys.model_validate(PAIR)
    assert not any(secret in f"{keys} {keys!r} {keys.model_dump()}" for secret in (KEY, SECRET))


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_a_networks_open_bucket_is_not_looked_for_at_the_stores_endpoint(bare: pytest.MonkeyPatch, name: str) -> None:
    bare.setenv(name, "http://127.0.0.1:9")
    listing = fetch_s3.listed(fetch_s3.opened("open", "http://127.0.0.1:10", Limits(tries=1)), "a/", None)
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:10/"):
        next(listing)
