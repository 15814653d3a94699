"""The log: lines for people and for programs, whose run and stage they name, and secrets that none of them tells."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import math
import os
import string
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import environment
from pipeline import cli, logs, redact
from pipeline.console import logging_to_console
from pipeline.errors import InputError

logger = logging.getLogger("aqnet")

Said = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no other test had named a file for metrics."""
    monkeypatch.delenv("AQNET_METRICS_FILE", raising=False)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Log as `aqnet --log-format json` does; call it for what was said."""
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    with logging_to_console(False, "json"):
        yield lambda: [json.loads(line) for line in said.getvalue().splitlines()]


# ---- lines ----


def test_a_json_line_has_every_field(lines: Said) -> None:
    with logs.about(run_id="r-1", stage="analyse", period="2019-12"):
        logger.info("analysed %d of %d hours", 12, 24, extra={"done": 12, "total": 24})
    (line,) = lines()
    said = datetime.fromisoformat(line.pop("time"))
    assert said.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - said) < timedelta(seconds=60)
    assert line == {
        "level": "INFO",
        "logger": "aqnet",
        "run_id": "r-1",
        "stage": "analyse",
        "period": "2019-12",
        "message": "analysed 12 of 24 hours",
        "done": 12,
        "total": 24,
    }


def test_lines_of_a_block_name_its_run_and_those_outside_none(lines: Said) -> None:
    logger.info("before")
    with logs.about(run_id="r-1"):
        logger.info("begun")
        with logs.about(stage="ingest"):
            logger.info("in it")
        logger.info("after it")
    logger.info("done")
    found = [(line["message"], line["run_id"], line["stage"]) for line in lines()]
    assert found == [
        ("before", None, None),
        ("begun", "r-1", None),
        ("in it", "r-1", "ingest"),
        ("after it", "r-1", None),
        ("done", None, None),
    ]


def test_worker_threads_belong_to_the_run(lines: Said) -> None:
    with logs.about(run_id="r-1"), logs.about(stage="ingest"), ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda k: logger.info("file %d", k), range(20)))
    assert {(line["run_id"], line["stage"]) for line in lines()} == {("r-1", "ingest")}


def test_threads_of_two_runs_at_once_are_told_apart_or_name_none(lines: Said) -> None:
    def work(run_id: str) -> None:
        with logs.about(run_id=run_id, stage="ingest"):
            own = contextvars.copy_context()
            started = Thread(target=lambda: own.run(logger.info, "%s of its own", run_id))
            alone = Thread(target=lambda: logger.info("nobody's"))
            for one in (started, alone):
                one.start()
                one.join()

    with logs.about(run_id="other"):
        thread = Thread(target=work, args=("r-1",))
        thread.start()
        thread.join()
    found = {line["message"]: line["run_id"] for line in lines()}
    assert found == {"r-1 of its own": "r-1", "nobody's": None}


def test_an_exception_is_a_field_and_knows_its_stage(lines: Said) -> None:
    try:
        with logs.about(run_id="r-1"), logs.about(stage="ingest"):
            raise InputError("a.csv: line 3")
    except InputError:
        logger.exception("failed")
    (line,) = lines()
    assert line["exception"]["type"] == "InputError"
    assert line["exception"]["message"] == "a.csv: line 3"
    assert "test_console.py" in line["exception"]["traceback"]
    assert (line["run_id"], line["stage"]) == ("r-1", "ingest")


def test_whatever_is_logged_is_strict_json(lines: Said) -> None:
    extra = {"path": Path("a"), "mean": np.float32(1.5), "hole": math.nan, "hours": np.arange(2), "who": object}
    logger.info("two\nlines and \N{SNOWMAN}", extra=extra | {"time": "mine", "of": {1: {"a", "b"}}})
    (line,) = lines()
    assert line["message"] == "two\nlines and \N{SNOWMAN}"
    assert (line["path"], line["mean"], line["hole"], line["hours"]) == ("a", 1.5, "nan", "[0 1]")
    assert line["time"] != "mine"
    assert sorted(line["of"]["1"]) == ["a", "b"]


def test_lines_for_people_stay_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_console(False), logs.about(run_id="r-1"):
        logger.info("ingest: %d", 3)
        logger.debug("not this")
    assert capsys.readouterr().err[19:] == " INFO ingest: 3\n"


def test_logging_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [(one.level, one.propagate, list(one.handlers)) for one in (logger, logging.getLogger("py.warnings"))]
    with logging_to_console(True, "json"):
        pass
    assert before == [(o.level, o.propagate, list(o.handlers)) for o in (logger, logging.getLogger("py.warnings"))]


def test_warnings_of_python_are_lines_too_when_debugging(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(), logging_to_console(True, "json"):
        warnings.simplefilter("always")
        warnings.warn("odd", UserWarning, stacklevel=1)
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["level"], line["logger"]) == ("WARNING", "py.warnings")
    assert "UserWarning: odd" in line["message"]


def test_a_worker_process_speaks_as_the_command_does() -> None:
    code = (
        "import logging; from pipeline import logs\n"
        "with logs.in_worker(run_id='r-1'): logging.getLogger('aqnet').info('month made')"
    )
    with logging_to_console(False, "json"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    line = json.loads(done.stderr)
    assert (line["run_id"], line["message"]) == ("r-1", "month made")
    assert logs.ENVIRONMENT not in os.environ


# ---- the command ----


@pytest.mark.parametrize("how", ["option", "environment"])
def test_the_command_speaks_json_to_its_last_line(
    how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "environment":
        monkeypatch.setenv("AQNET_LOG_FORMAT", "json")
    option = ["--log-format", "json"] if how == "option" else []
    asked = ["run", "--source", "table", "--input", "/not/here", "--start", "2019-01-01", "--end", "2019-01-02"]
    assert cli.run_command([*option, *asked, "--bbox", "1", "2", "3", "4", "--out", "/tmp"]) == 1
    line = [json.loads(line) for line in capsys.readouterr().err.splitlines()][-1]
    assert (line["level"], line["exception"]["type"]) == ("ERROR", "ConfigError")
    assert "/not/here" in line["message"]
    assert cli.run_command([*option, "run", "--no-such-option"]) == 2
    if how == "environment":
        assert "--no-such-option" in json.loads(capsys.readouterr().err)["message"]


def test_an_unknown_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(["--log-format", "xml", "run"]) == 2


# ---- secrets ----

SECRETS = {
    "OPENAQ_API_KEY": "0123456789abcdef",
    "DB_PASSWORD": 'p"w\\d/with @signs',
    "MY_TOKEN": "s\N{LATIN SMALL LETTER U WITH DIAERESIS}per geheim",
    "aws_secret_access_key": "AKIA+abc/def==",
    "GOOGLE_CREDENTIALS": '{"private": "xyz-123456"}',
}


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return SECRETS


@pytest.mark.parametrize("form", logs.FORMATS)
@pytest.mark.parametrize("name", sorted(SECRETS))
def test_no_line_tells_a_secret(
    form: str, name: str, secrets: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    value = secrets[name]
    with logging_to_console(True, form), logs.about(run_id=f"run-{value}"):
        logger.info("it is %s", value)
        logger.info("quoted %r, in %s", value, {"a": [value]})
        logger.info("as JSON %s", json.dumps(value))
        logger.info("extra", extra={"deep": {"er": [(value, {value: 1})]}, "path": Path(value)})
        try:
            raise InputError(f"cannot log in with {value}")
        except InputError:
            logger.exception("failed")
    said = capsys.readouterr().err
    assert said.count("\n") >= 5
    spoken = said + "".join(map(str, map(json.loads, said.splitlines()))) if form == "json" else said
    for text in (value, repr(value)[1:-1], json.dumps(value)[1:-1]):
        assert text not in spoken


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_an_error_of_the_command_tells_no_secret(
    debug: list[str], secrets: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError(f"at https://me:{secrets['MY_TOKEN']}@example.org/ with {secrets['OPENAQ_API_KEY']}")

    monkeypatch.setattr("pipeline.twin.example.wanted", broken)
    assert cli.run_command([*debug, "run"]) == 70
    said = capsys.readouterr().err
    assert "ZeroDivisionError: at https://***@example.org/ with ***" in said
    assert ("Traceback" in said) == bool(debug)
    assert not any(value in said for value in secrets.values())


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("get https://user:pass@host/a?b=1", "get https://***@host/a?b=1"),
        ("s3://key:se@cret@bucket/x", "s3://***@bucket/x"),
        ("postgresql+asyncpg://aqnet:pw@db:5432/prefect failed", "postgresql+asyncpg://***@db:5432/prefect failed"),
        ("https://host/a?api_key=abc&x=1", "https://host/a?api_key=***&x=1"),
        ("https://host/a?X-Amz-Signature=abc", "https://host/a?X-Amz-Signature=***"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': 'Bearer ***'}"),
        ("mail a@b.org, 2019-12-01T00:00@x, https://host/a@b", "mail a@b.org, 2019-12-01T00:00@x, https://host/a@b"),
    ],
)
def test_addresses_and_headers_lose_what_is_secret(said: str, told: str) -> None:
    assert redact.text(said) == told


def test_short_values_and_plain_words_stay() -> None:
    assert redact.secrets({"MONKEY": "abc", "TOKENIZERS_PARALLELISM": "false", "HOME": "/root"}) == []


@given(
    st.text(alphabet=string.printable + "\N{GREEK SMALL LETTER ALPHA}", min_size=4, max_size=40), st.text(max_size=9)
)
def test_any_secret_is_hidden_wherever_it_stands(secret: str, around: str) -> None:
    known = redact.secrets({"A_TOKEN": secret})
    if secret.lower() in ("true", "false", "none", "null") or secret in redact.HIDDEN * 20:
        return
    told = redact.value({"message": f"{around}{secret}{around}", secret: [secret]}, known)
    assert secret not in json.dumps(told, ensure_ascii=False)
    assert secret not in redact.text(f"{around}{secret}{around}", known)


# ---- in flows ----


def test_prefects_lines_are_ours_in_form_and_without_secrets(
    monkeypatch: pytest.MonkeyPatch, secrets: dict[str, str]
) -> None:
    from prefect.logging.handlers import PrefectConsoleHandler

    monkeypatch.setenv("AQNET_LOG_FORMAT", "json")
    stream = io.StringIO()
    speaker = logging.getLogger("prefect.flow_runs")
    before, level = list(speaker.handlers), speaker.level
    monkeypatch.setattr(speaker, "disabled", False)
    speaker.addHandler(PrefectConsoleHandler(stream=stream))
    speaker.setLevel(logging.INFO)  # flows that ran before have made it silent
    try:
        with environment.discreet(), environment._logged("r-1"), logs.about(run_id="r-1"):
            speaker.error("failed with %s :warning: [bold]", secrets["MY_TOKEN"])
    finally:
        speaker.handlers[:] = before
        speaker.setLevel(level)
    line = json.loads(stream.getvalue())
    assert (line["message"], line["run_id"]) == ("failed with *** :warning: [bold]", "r-1")


def test_other_libraries_speak_json_and_tell_no_secret_when_the_command_runs_a_flow(
    lines: Said, secrets: dict[str, str]
) -> None:
    from prefect.logging.handlers import PrefectConsoleHandler

    stream, other = io.StringIO(), logging.getLogger("a_library_of_others")
    other.addHandler(PrefectConsoleHandler(stream=stream))
    other.setLevel(logging.INFO)
    with environment.discreet(), environment._logged("r-1"), logs.about(run_id="r-1"):
        other.info("at tcp://me:%s@host", secrets["MY_TOKEN"])
    other.handlers.clear()
    line = json.loads(stream.getvalue())
    assert (line["message"], line["logger"], line["run_id"]) == ("at tcp://***@host", "a_library_of_others", "r-1")


def test_a_flow_sends_our_lines_to_prefect(monkeypatch: pytest.MonkeyPatch, secrets: dict[str, str]) -> None:
    from prefect.logging.handlers import APILogHandler

    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(APILogHandler, "emit", lambda self, r: sent.append((r.flow_run_id, self.format(r))))
    with environment._logged("00000000-0000-0000-0000-000000000001"):
        logger.info("key %s", secrets["OPENAQ_API_KEY"])
    logger.info("after the run")
    assert sent == [("00000000-0000-0000-0000-000000000001", "key ***")]
    with logging_to_console(False), environment._logged("x"):
        logger.info("the command line speaks for itself")
    assert len(sent) == 1


def test_a_watched_run_names_itself_and_leaves_metrics(tmp_path: Path, lines: Said) -> None:
    def run() -> None:
        config = SimpleNamespace(domain="test", stream="interim", out=tmp_path)
        with environment.watched(config, "r-9"):  # type: ignore[arg-type]
            logger.info("in it")
            raise InputError("bad")

    with pytest.raises(InputError, match="bad"):
        run()
    assert [line["run_id"] for line in lines()] == ["r-9"]
    assert 'reason="input",stream="interim"} 1.0' in (tmp_path / "metrics.prom").read_text()
