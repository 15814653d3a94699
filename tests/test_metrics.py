"""Metrics: what runs leave for Prometheus, good ones and failed ones, and alerts that fire on it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from test_write import NEW_YEAR, run

from pipeline import cli, metrics, output
from pipeline.errors import ConfigError, InputError, ProductError
from pipeline.fetch.web import FetchError
from pipeline.twin.simulate import Simulation

ROOT = Path(__file__).resolve().parents[1]
ALERTS, PAGE = ROOT / "docs" / "reference" / "alerts.yml", ROOT / "docs" / "reference" / "metrics.md"
RUN = {"domain": "test", "stream": "interim"}


def told(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Samples by name and labels, of every family that has a help text."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        found |= {(sample.name, frozenset(sample.labels.items())): sample.value for sample in family.samples}
    return found


def value(out: Path, name: str, **labels: str) -> float:
    return told(metrics.exposition(out))[f"aqnet_{name}", frozenset(labels.items())]


def config(out: Path, **change: str) -> Any:
    return SimpleNamespace(**{**RUN, **change}, out=out)


def fail(given: Any, error: BaseException) -> None:
    with pytest.raises(type(error)), metrics.recorded(given):
        raise error


@pytest.fixture(autouse=True)
def no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics.ENVIRONMENT, raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left: a cube of two days, and a report."""
    out = tmp_path_factory.mktemp("metrics") / "out"
    run(out / output.CUBE, NEW_YEAR, NEW_YEAR + 40)
    report = {
        "stages": [
            {"name": "analyse", "seconds": 2.0, "peak_mib": 100.0},
            {"name": "analyse", "seconds": 3.0, "peak_mib": 300.0},
            {"name": "publish", "seconds": 1.0, "peak_mib": 200.0},
        ],
        "alarms": ["a clock"],
        "invalid": {"pm2p5": [200, 10], "co": [0, 0]},
        "withheld_stations": [
            {"method": "AQ-Net", "crps": 4.0, "mae_median": 5.0, "coverage_90": 0.9, "pairs": 30},
            {"method": "AQ-Net", "crps": 8.0, "mae_median": 9.0, "coverage_90": None, "pairs": 10},
            {"method": "log_kriging", "crps": 6.0, "mae_median": 7.0, "coverage_90": 0.8, "pairs": 40},
        ],
    }
    (out / metrics.REPORT).parent.mkdir()
    (out / metrics.REPORT).write_text(json.dumps(report))
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


# ---- runs ----


def test_a_run_leaves_what_its_report_and_cube_say(out: Path) -> None:
    with metrics.recorded(config(out)):
        pass
    end_of_the_last_hour = (NEW_YEAR + 40) * 3600
    assert value(out, "analysed_until_timestamp_seconds", domain="test") == end_of_the_last_hour
    assert value(out, "stations_reporting", domain="test") == 7
    assert value(out, "published_revision", domain="test") == 1
    assert value(out, "stage_seconds", **RUN, stage="analyse") == 5.0
    assert value(out, "stage_peak_memory_bytes", **RUN, stage="analyse") == 300 * 2**20
    assert value(out, "peak_memory_bytes", **RUN) == 300 * 2**20
    assert value(out, "quality_control_flagged_ratio", **RUN, pollutant="pm2p5") == 0.05
    assert value(out, "quality_control_alarms", **RUN) == 1
    assert value(out, "withheld_crps_ugm3", **RUN, method="AQ-Net") == 5.0
    assert value(out, "withheld_mae_ugm3", **RUN, method="log_kriging") == 7.0
    assert value(out, "withheld_coverage_ratio", **RUN, method="AQ-Net") == 0.9
    assert value(out, "run_failures_total", **RUN, reason="bug") == 0
    success = value(out, "run_last_success_timestamp_seconds", **RUN)
    assert value(out, "run_last_start_timestamp_seconds", **RUN) <= success


def test_lag_and_disk_are_of_the_moment_of_asking(out: Path) -> None:
    with metrics.recorded(config(out)):
        pass
    for hours in (1, 5):
        found = told(metrics.exposition(out, now=(NEW_YEAR + 40 + hours) * 3600))
        assert found["aqnet_analysis_lag_seconds", frozenset({("domain", "test")})] == hours * 3600
    assert 0 < value(out, "disk_free_bytes", domain="test") < value(out, "disk_size_bytes", domain="test")
    assert value(out, "held_candidates", domain="test") == 0
    (out / output.HELD / "odd").mkdir(parents=True)
    assert value(out, "held_candidates", domain="test") == 1


def test_failures_are_counted_and_the_last_good_figures_stay(out: Path) -> None:
    with metrics.recorded(config(out)):
        pass
    success = value(out, "run_last_success_timestamp_seconds", **RUN)
    for error in (InputError("bad"), InputError("bad"), ProductError("bad")):
        fail(config(out), error)
    assert value(out, "run_failures_total", **RUN, reason="input") == 2
    assert value(out, "run_failures_total", **RUN, reason="product") == 1
    assert value(out, "run_last_success_timestamp_seconds", **RUN) == success
    assert value(out, "run_last_end_timestamp_seconds", **RUN) > success
    assert value(out, "stage_seconds", **RUN, stage="publish") == 1.0


def test_streams_are_kept_apart_and_stages_that_are_no_more_go(out: Path) -> None:
    for stream in ("interim", "final"):
        with metrics.recorded(config(out, stream=stream)):
            pass
    report = json.loads((out / metrics.REPORT).read_text())
    report["stages"].pop()
    (out / metrics.REPORT).write_text(json.dumps(report))
    with metrics.recorded(config(out)):
        pass
    names = {
        (labels["stream"], labels["stage"])
        for (name, pairs) in told(metrics.exposition(out))
        if name == "aqnet_stage_seconds" and (labels := dict(pairs))
    }
    assert names == {("interim", "analyse"), ("final", "analyse"), ("final", "publish")}


def test_a_killed_run_shows_by_its_start(out: Path) -> None:
    watch = metrics.recorded(config(out))
    watch.__enter__()
    assert value(out, "run_last_start_timestamp_seconds", **RUN) > 0
    with pytest.raises(KeyError):
        value(out, "run_last_end_timestamp_seconds", **RUN)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ConfigError("x"), "configuration"),
        (InputError("x"), "input"),
        (FetchError("x"), "network"),
        (ProductError("x"), "product"),
        (OSError(errno.ENOSPC, "full"), "disk"),
        (PermissionError(errno.EACCES, "no"), "disk"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "network"),
        (httpx.ConnectTimeout("slow"), "network"),
        (MemoryError(), "memory"),
        (KeyboardInterrupt(), "interrupted"),
        (ZeroDivisionError(), "bug"),
    ],
)
def test_why_a_run_failed(error: BaseException, why: str) -> None:
    assert metrics.reason(error) == why
    assert why in metrics.REASONS


def test_a_full_disk_behind_an_error_is_the_reason() -> None:
    error = ProductError("cannot write")
    error.__cause__ = OSError(errno.ENOSPC, "full")
    assert metrics.reason(error) == "disk"


# ---- the file ----


def test_the_file_for_the_textfile_collector(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collected = tmp_path / "collector" / "aqnet.prom"
    collected.parent.mkdir()
    monkeypatch.setenv(metrics.ENVIRONMENT, str(collected))
    with metrics.recorded(config(out)):
        pass
    assert collected.read_bytes() == (out / metrics.NAME).read_bytes()
    assert [path.name for path in collected.parent.iterdir()] == ["aqnet.prom"]
    assert collected.stat().st_mode & 0o777 == 0o644


def test_a_file_that_cannot_be_written_stops_no_run(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(metrics.ENVIRONMENT, "/proc/aqnet.prom")
    with metrics.recorded(config(out)):
        pass
    assert "metrics: expected to write /proc/aqnet.prom; found" in caplog.text
    assert value(out, "run_last_success_timestamp_seconds", **RUN) > 0


def test_a_broken_file_is_begun_anew(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    (out / metrics.NAME).write_text('aqnet_run_seconds{domain="test" 1\n')
    with metrics.recorded(config(out)):
        pass
    assert "they begin anew" in caplog.text
    assert value(out, "stations_reporting", domain="test") == 7


def test_runs_at_once_lose_no_count(tmp_path: Path) -> None:
    def work() -> None:
        for _ in range(5):
            fail(config(tmp_path), InputError("bad"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(tmp_path, "run_failures_total", **RUN, reason="input") == 20


def test_before_any_run_only_the_version_is_told(tmp_path: Path) -> None:
    assert [name for name, _ in told(metrics.exposition(tmp_path))] == ["aqnet_build_info"]
    assert list(tmp_path.iterdir()) == []


def test_labels_with_quotes_survive(out: Path) -> None:
    with metrics.recorded(config(out, domain='a"b\\c')):
        pass
    assert value(out, "stations_reporting", domain='a"b\\c') == 7


def test_a_real_run_names_itself_in_every_line_and_leaves_every_figure(
    prefect_harness: None,
    small_simulation: Simulation,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collected, out = tmp_path / "aqnet.prom", tmp_path / "out"
    monkeypatch.setenv("A_SECRET_TOKEN", "shanxi-7")
    given = {"input": small_simulation.archive, "stations": small_simulation.stations, "weights": weights, "out": out}
    given |= {"start": "2019-11-30T12", "end": "2019-12-01", "resolution": 0.5, "domain": "shanxi-7"}
    words = [word for name, said in given.items() for word in (f"--{name}", str(said))]
    box = list(map(str, small_simulation.bbox))
    assert (
        cli.run_command(
            ["--log-format", "json", "run", "--json", "--metrics-file", str(collected), *words, "--bbox", *box]
        )
        == 0
    )
    said = capsys.readouterr()
    report, lines = json.loads(said.out), [json.loads(line) for line in said.err.splitlines()]
    assert {line["run_id"] for line in lines} == {report["run_id"]}
    assert {line["stage"] for line in lines} >= {"ingest", "quality control", "analyse", "validate", "publish"}
    assert "shanxi-7" not in said.err
    assert "pm25_***_aqnet" in said.err
    assert metrics.ENVIRONMENT not in os.environ
    found = told(collected.read_bytes())
    here = {**RUN, "domain": "shanxi-7"}
    missing = {metric.name for metric in metrics.METRICS} - {name for name, _ in found}
    assert missing == (set() if "invalid" in report else {"aqnet_quality_control_flagged_ratio"})
    seconds = sum(stage["seconds"] for stage in report["stages"] if stage["name"] == "analyse")
    assert value(out, "stage_seconds", **here, stage="analyse") == pytest.approx(seconds)
    assert 0 < value(out, "stations_reporting", domain="shanxi-7") <= 40
    assert value(out, "analysed_until_timestamp_seconds", domain="shanxi-7") == 1575158400  # 2019-12-01T00


# ---- the page and the alerts ----


def test_the_page_names_every_metric() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| (gauge|counter) \|", PAGE.read_text(), re.MULTILINE)
    said = {name: (set(re.findall(r"`(\w+)`", labels)), kind == "counter") for name, labels, kind in rows}
    assert said == {metric.name: (set(metric.labels), metric.counter) for metric in metrics.METRICS}
    for why in metrics.REASONS:
        assert f"`{why}`" in PAGE.read_text()


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_is_whole_and_asks_for_metrics_that_there_are(rule: dict[str, Any]) -> None:
    known = {metric.name: set(metric.labels) for metric in metrics.METRICS}
    used = re.findall(r"\b(aqnet_\w+)(?:\{([^}]*)\})?", rule["expr"])
    assert used
    for name, selector in used:
        assert name in known
        assert set(re.findall(r"(\w+)=", selector)) <= known[name]
    shared = set.intersection(*(known[name] for name, _ in used)) | {"reason", "pollutant"}
    assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= shared
    assert rule["labels"]["severity"] in ("warning", "critical")
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus), which is not here")
    return found


def test_prometheus_takes_the_alerts_and_the_metrics(promtool: str, out: Path) -> None:
    done = subprocess.run([promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with metrics.recorded(config(out)):
        pass
    text = metrics.exposition(out)
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


#: Series that make an alert fire, and its labels; time 0 is 1970-01-01, an hour is 60 steps.
FIRING = {
    "AqnetBehind": ({'aqnet_analysed_until_timestamp_seconds{domain="d"}': "0x2000"}, {"domain": "d"}),
    "AqnetNoSuccess": (
        {'aqnet_run_last_success_timestamp_seconds{domain="d",stream="interim"}': "0x2000"},
        {"domain": "d"},
    ),
    "AqnetNoMetrics": ({"up": "1x2000"}, {}),
    "AqnetRunFailed": (
        {'aqnet_run_failures_total{domain="d",stream="interim",reason="disk"}': "0x1790 1x200"},
        {"domain": "d", "stream": "interim", "reason": "disk"},
    ),
    "AqnetKilledOrHanging": (
        {
            'aqnet_run_last_start_timestamp_seconds{domain="d",stream="interim"}': "7200x2000",
            'aqnet_run_last_end_timestamp_seconds{domain="d",stream="interim"}': "3600x2000",
        },
        {"domain": "d", "stream": "interim"},
    ),
    "AqnetManyFlagged": (
        {'aqnet_quality_control_flagged_ratio{domain="d",stream="interim",pollutant="co"}': "0.2x2000"},
        {"domain": "d", "stream": "interim", "pollutant": "co"},
    ),
    "AqnetWorseThanKriging": (
        {
            'aqnet_withheld_crps_ugm3{domain="d",stream="interim",method="AQ-Net"}': "9x2000",
            'aqnet_withheld_crps_ugm3{domain="d",stream="interim",method="log_kriging"}': "6x2000",
        },
        {"domain": "d", "stream": "interim"},
    ),
    "AqnetHeld": ({'aqnet_held_candidates{domain="d"}': "1x2000"}, {"domain": "d"}),
    "AqnetFewStations": ({'aqnet_stations_reporting{domain="d"}': "100x1000 60x1000"}, {"domain": "d"}),
    "AqnetDiskNearlyFull": (
        {'aqnet_disk_free_bytes{domain="d"}': "9x2000", 'aqnet_disk_size_bytes{domain="d"}': "100x2000"},
        {"domain": "d"},
    ),
}


#: The same when all is well.
WELL = {
    'aqnet_analysed_until_timestamp_seconds{domain="d"}': "-3600+60x2000",
    'aqnet_run_last_start_timestamp_seconds{domain="d",stream="interim"}': "0+60x2000",
    'aqnet_run_last_end_timestamp_seconds{domain="d",stream="interim"}': "0+60x2000",
    'aqnet_run_last_success_timestamp_seconds{domain="d",stream="interim"}': "0+60x2000",
    'aqnet_run_failures_total{domain="d",stream="interim",reason="bug"}': "0x2000",
    'aqnet_held_candidates{domain="d"}': "0x2000",
    'aqnet_stations_reporting{domain="d"}': "100x2000",
    'aqnet_quality_control_flagged_ratio{domain="d",stream="interim",pollutant="pm2p5"}': "0.01x2000",
    'aqnet_withheld_crps_ugm3{domain="d",stream="interim",method="AQ-Net"}': "6x2000",
    'aqnet_withheld_crps_ugm3{domain="d",stream="interim",method="log_kriging"}': "6x2000",
    'aqnet_disk_free_bytes{domain="d"}': "50x2000",
    'aqnet_disk_size_bytes{domain="d"}': "100x2000",
}


def unit_test(promtool: str, folder: Path, series: dict[str, str], expected: dict[str, list[dict[str, str]]]) -> None:
    """Let Prometheus judge series after 30 hours, and compare the alerts that fire, by name."""
    bare_rules = [bare(rule) for rule in rules()]
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": bare_rules}]}))
    alerts = [
        {"eval_time": "30h", "alertname": name, "exp_alerts": [{"exp_labels": labels} for labels in found]}
        for name, found in expected.items()
    ]
    given = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": given, "alert_rule_test": alerts}
    asked = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
    (folder / "test.yml").write_text(yaml.safe_dump(asked))
    done = subprocess.run([promtool, "test", "rules", str(folder / "test.yml")], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


@pytest.mark.parametrize("alert", sorted(FIRING))
def test_an_alert_fires(alert: str, promtool: str, tmp_path: Path) -> None:
    series, labels = FIRING[alert]
    (severity,) = [rule["labels"] for rule in rules() if rule["alert"] == alert]
    unit_test(promtool, tmp_path, series, {alert: [labels | severity]})


def test_every_alert_has_a_case_and_none_fires_when_all_is_well(promtool: str, tmp_path: Path) -> None:
    assert {rule["alert"] for rule in rules()} == set(FIRING)
    unit_test(promtool, tmp_path, WELL, {alert: [] for alert in FIRING})


def bare(rule: dict[str, Any]) -> dict[str, Any]:
    """The rule without texts, which depend on the value."""
    return {name: part for name, part in rule.items() if name != "annotations"}
