"""Figures of the runs for Prometheus: what the last ones left in ``OUT/metrics.prom``, and how to say it.

`recorded` watches a run and leaves its figures when it ends, well or not; a run that fails leaves the figures of the
last good one and counts its failure. The same text goes to the file that ``AQNET_METRICS_FILE`` names (for the textfile
collector of node_exporter) and to whoever asks the download server. Names and labels: docs/reference/metrics.md.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from pipeline import atomic, output
from pipeline.errors import ConfigError, InputError, ProductError
from pipeline.location import Location

if TYPE_CHECKING:
    from pipeline.config import RunConfig

logger = logging.getLogger("aqnet")

ENVIRONMENT = "AQNET_METRICS_FILE"
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
#: Names in the output folder.
NAME, REPORT = "metrics.prom", Path(output.PRODUCTS, output.REPORT)

#: Why a run failed; the only values of the label.
REASONS = ("configuration", "input", "product", "disk", "network", "memory", "interrupted", "bug")

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG}
_EVERY, _RUN = ("domain",), ("domain", "stream")


@dataclass(frozen=True)
class Metric:
    """A metric: what it says, by which labels, and whether it only ever grows."""

    name: str
    help: str
    labels: tuple[str, ...] = _EVERY
    counter: bool = False


METRICS = (
    Metric("aqnet_build_info", "1, with the version of the package.", ("version",)),
    Metric("aqnet_run_last_start_timestamp_seconds", "When the last run began.", _RUN),
    Metric("aqnet_run_last_end_timestamp_seconds", "When the last run that was not killed ended.", _RUN),
    Metric("aqnet_run_last_success_timestamp_seconds", "When the last run ended that did not fail.", _RUN),
    Metric("aqnet_run_failures_total", "Runs that failed, by reason.", (*_RUN, "reason"), counter=True),
    Metric("aqnet_run_seconds", "Duration of the last successful run.", _RUN),
    Metric("aqnet_stage_seconds", "Duration of each stage of the last successful run.", (*_RUN, "stage")),
    Metric("aqnet_stage_peak_memory_bytes", "Peak memory of the process in each stage.", (*_RUN, "stage")),
    Metric("aqnet_peak_memory_bytes", "Peak memory of the last successful run.", _RUN),
    Metric("aqnet_quality_control_flagged_ratio", "Share of reported values found invalid.", (*_RUN, "pollutant")),
    Metric("aqnet_quality_control_alarms", "Alarms of quality control in the last successful run.", _RUN),
    Metric("aqnet_withheld_crps_ugm3", "CRPS at withheld stations, ug m-3.", (*_RUN, "method")),
    Metric("aqnet_withheld_mae_ugm3", "MAE of the median at withheld stations, ug m-3.", (*_RUN, "method")),
    Metric("aqnet_withheld_coverage_ratio", "Share of observations in the 90 % interval.", (*_RUN, "method")),
    Metric("aqnet_analysed_until_timestamp_seconds", "End of the last analysed hour that readers see."),
    Metric("aqnet_analysis_lag_seconds", "From the end of the last analysed hour to now."),
    Metric("aqnet_stations_reporting", "Stations with a valid PM2.5 in the last analysed hour."),
    Metric("aqnet_published_revision", "Number of the revision that readers see."),
    Metric("aqnet_held_candidates", "Candidates that the release gate stopped and that wait for a person."),
    Metric("aqnet_disk_free_bytes", "Free space of the output folder."),
    Metric("aqnet_disk_size_bytes", "Size of the output folder's file system."),
)
_KNOWN = {metric.name: metric for metric in METRICS}

Labels = tuple[tuple[str, str], ...]
#: By name and labels (in the order of `METRICS`), values.
Samples = dict[tuple[str, Labels], float]


# ---- a run ----


@contextmanager
def recorded(config: RunConfig) -> Iterator[None]:
    """Leave the figures of a run when it ends; what goes wrong in that is said and stops nothing."""
    began, out = time.time(), config.out
    run = {"domain": config.domain, "stream": config.stream}
    _leave(out, lambda kept: _began(kept, run, began))
    try:
        yield
    except BaseException as error:
        why = reason(error)
        _leave(out, lambda kept: _failed(kept, run, why))
        raise
    _leave(out, lambda kept: _succeeded(kept, run, began, out))


def _began(kept: Samples, run: Mapping[str, str], now: float) -> None:
    _put(kept, "aqnet_run_last_start_timestamp_seconds", now, **run)
    for why in REASONS:  # a counter that is not there cannot be seen to rise
        kept.setdefault(_key("aqnet_run_failures_total", {**run, "reason": why}), 0.0)


def _failed(kept: Samples, run: Mapping[str, str], why: str) -> None:
    _put(kept, "aqnet_run_last_end_timestamp_seconds", time.time(), **run)
    key = _key("aqnet_run_failures_total", {**run, "reason": why})
    kept[key] = kept.get(key, 0.0) + 1


def _succeeded(kept: Samples, run: Mapping[str, str], began: float, out: Path) -> None:
    now = time.time()
    for name in ("aqnet_run_last_end_timestamp_seconds", "aqnet_run_last_success_timestamp_seconds"):
        _put(kept, name, now, **run)
    _drop(kept, run, {"stage", "pollutant", "method"})
    _put(kept, "aqnet_run_seconds", now - began, **run)
    for name, value, labels in [*_of_report(out / REPORT), *_of_cube(output.cube(out))]:
        given = run if "stream" in _KNOWN[name].labels else {"domain": run["domain"]}
        _put(kept, name, value, **given, **labels)


def reason(error: BaseException) -> str:
    """Why a run failed, one of `REASONS`."""
    import httpx

    from pipeline.fetch.web import FetchError

    chain = list(_chain(error))
    for kinds, said in (
        ((KeyboardInterrupt, SystemExit), "interrupted"),
        ((MemoryError,), "memory"),
        ((FetchError, httpx.HTTPError, ConnectionError, TimeoutError), "network"),
    ):
        if any(isinstance(one, kinds) for one in chain):
            return said
    if any(isinstance(one, OSError) and one.errno in _DISK for one in chain):
        return "disk"
    known = {ConfigError: "configuration", InputError: "input", ProductError: "product"}
    return next((said for kind, said in known.items() if isinstance(error, kind)), "bug")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


# ---- where the figures come from ----

Found = tuple[str, float, dict[str, str]]


def _of_report(path: Path) -> Iterator[Found]:
    """Figures of ``run.json``, the report of the last successful run."""
    said = json.loads(path.read_text())
    peaks: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for stage in said["stages"]:
        name = stage["name"]
        seconds[name] = seconds.get(name, 0.0) + stage["seconds"]
        peaks[name] = max(peaks.get(name, 0.0), stage["peak_mib"] * 2**20)
    yield from (("aqnet_stage_seconds", value, {"stage": name}) for name, value in seconds.items())
    yield from (("aqnet_stage_peak_memory_bytes", value, {"stage": name}) for name, value in peaks.items())
    yield "aqnet_peak_memory_bytes", max(peaks.values()), {}
    yield "aqnet_quality_control_alarms", len(said.get("alarms", [])), {}
    for pollutant, (reported, invalid) in said.get("invalid", {}).items():
        if reported:
            yield "aqnet_quality_control_flagged_ratio", invalid / reported, {"pollutant": pollutant}
    yield from _of_scores(said.get("withheld_stations", []))


def _of_scores(rows: list[dict[str, Any]]) -> Iterator[Found]:
    """Scores at withheld stations, means over the months by their pairs."""
    columns = {"crps": "crps_ugm3", "mae_median": "mae_ugm3", "coverage_90": "coverage_ratio"}
    for method in sorted({row["method"] for row in rows}):
        own = [row for row in rows if row["method"] == method]
        for column, name in columns.items():
            known = [row for row in own if isinstance(row.get(column), int | float)]
            if pairs := sum(row["pairs"] for row in known):
                mean = sum(row[column] * row["pairs"] for row in known) / pairs
                yield f"aqnet_withheld_{name}", mean, {"method": method}


def _of_cube(path: Location) -> Iterator[Found]:
    """Figures of what readers see."""
    import numpy as np

    from pipeline.contract import STREAMS
    from pipeline.cube import repository

    repo = repository.open_existing(path)
    group, last = repository.root(repo), repository.last(repo)
    if group is None or last is None:
        return
    yield "aqnet_published_revision", float(last.name.removeprefix("r")), {}
    analysed = np.flatnonzero(np.isin(group["stream"][:], [STREAMS["interim"], STREAMS["final"]]))
    if len(analysed):
        until = (int(group["time"][int(analysed[-1])]) + 1) * 3600
        yield "aqnet_analysed_until_timestamp_seconds", float(until), {}
        yield "aqnet_stations_reporting", float(group["observation_count"][int(analysed[-1])]), {}


# ---- keeping and telling ----


def exposition(out: Path, now: float | None = None) -> bytes:
    """Return what the last runs of an output folder left, as Prometheus reads it, with what time and disk say now.

    Parameters
    ----------
    out : output folder of `aqnet run`; where no run left anything, only the version is told.
    now : seconds since 1970-01-01; None is the clock.
    """
    kept = _read(out / NAME)
    _refresh(kept, out, time.time() if now is None else now)
    return _text(kept)


def _leave(out: Path, change: Callable[[Samples], None]) -> None:
    """Change what is kept, one process at a time, and write it where it is wanted."""
    extra = os.environ.get(ENVIRONMENT)
    try:
        with _turn(out):
            kept = _read(out / NAME)
            change(kept)
            _refresh(kept, out, time.time())
            for path in (out / NAME, *([Path(extra)] if extra else [])):
                with atomic.replacing(path) as part:
                    part.write_bytes(_text(kept))
                    part.chmod(0o644)
    except Exception as error:  # figures of a run are never worth the run
        logger.warning("metrics: expected to write %s; found %s: %s", extra or out / NAME, type(error).__name__, error)


@contextmanager
def _turn(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    with (out / f".{NAME}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _refresh(kept: Samples, out: Path, now: float) -> None:
    """Say what clock and disk say."""
    _drop(kept, {}, {"version"})
    _put(kept, "aqnet_build_info", 1, version=version("aqnet-reanalysis"))
    domains = {value for _, labels in kept for name, value in labels if name == "domain"}
    for domain in sorted(domains):
        until = kept.get(_key("aqnet_analysed_until_timestamp_seconds", {"domain": domain}))
        if until is not None:
            _put(kept, "aqnet_analysis_lag_seconds", now - until, domain=domain)
        disk = shutil.disk_usage(out)
        _put(kept, "aqnet_disk_free_bytes", disk.free, domain=domain)
        _put(kept, "aqnet_disk_size_bytes", disk.total, domain=domain)
        held = [one for one in (out / output.HELD).glob("*") if not one.name.startswith(".")]
        _put(kept, "aqnet_held_candidates", len(held), domain=domain)


def _read(path: Path) -> Samples:
    """Read samples that we know; none where there is no file, or one that is broken."""
    try:
        families = list(text_string_to_metric_families(path.read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s: expected metrics; found %s; they begin anew", path, error)
        return {}
    samples = [sample for family in families for sample in family.samples if sample.name in _KNOWN]
    return {_key(sample.name, sample.labels): sample.value for sample in samples}


def _text(samples: Samples) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Collected(samples))
    return generate_latest(registry)


class _Collected(Collector):
    """Samples as families of metrics."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def collect(self) -> Iterable[Family]:
        """Families in the order of `METRICS`."""
        for metric in METRICS:
            own = sorted((labels, value) for (name, labels), value in self.samples.items() if name == metric.name)
            kind = CounterMetricFamily if metric.counter else GaugeMetricFamily
            family: Family = kind(metric.name.removesuffix("_total"), metric.help, labels=metric.labels)
            for labels, value in own:
                family.add_sample(metric.name, dict(labels), value)
            if own:
                yield family


def _key(name: str, labels: Mapping[str, str]) -> tuple[str, Labels]:
    return name, tuple((label, labels[label]) for label in _KNOWN[name].labels)


def _put(kept: Samples, name: str, value: float, **labels: str) -> None:
    kept[_key(name, labels)] = float(value)


def _drop(kept: Samples, run: Mapping[str, str], having: set[str]) -> None:
    """Forget samples of a run that have one of some labels: the next run may have others."""
    for key in [one for one in kept if dict(one[1]).items() >= run.items() and having & dict(one[1]).keys()]:
        del kept[key]
