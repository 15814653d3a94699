"""One damaged file through one reader: made, read under an alarm, and judged."""

from __future__ import annotations

import logging
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from random import Random
from types import FrameType

import pandas as pd

from benchmarks.fuzz import mutate, netcdf, parquet
from benchmarks.fuzz.judge import Finding, judge_error, judge_means, judge_tables
from benchmarks.fuzz.layouts import LAYOUTS, Layout, site_list, source
from benchmarks.fuzz.mutate import Text
from benchmarks.fuzz.netcdf import Cube
from benchmarks.fuzz.parquet import Parquet
from benchmarks.fuzz.plain import Claim, by_name, lines_of
from pipeline.errors import InputError
from pipeline.sources.archive import RawFile
from pipeline.sources.sites import SiteList

Parse = Callable[[RawFile, SiteList | None, str], Iterator[pd.DataFrame]]


class Hang(BaseException):
    """Raised by the alarm; no reader's ``except Exception`` catches it."""


@dataclass
class Outcome:
    """What came of one input."""

    kind: str
    seconds: float
    shape: str = ""
    findings: list[Finding] = field(default_factory=list)


class Records(logging.Handler):
    """Counts what readers log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text of one record."""
        self.texts.append(record.getMessage())


RECORDS = Records()

#: Tracebacks that Python could only print, from callbacks of C++ and destructors.
PRINTED: list[str] = []


def prepare() -> None:
    """Set this process up: the alarm, warnings as errors, the log caught."""
    signal.signal(signal.SIGALRM, _rung)
    sys.unraisablehook = lambda what: PRINTED.append(f"{type(what.exc_value).__name__}: {what.exc_value}")
    warnings.simplefilter("error")
    log = logging.getLogger("aqnet")
    log.propagate = False
    if RECORDS not in log.handlers:
        log.addHandler(RECORDS)


def _rung(_signal: int, _frame: FrameType | None) -> None:
    raise Hang


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise Hang in the block after so many seconds."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def make(name: str, seed: int, index: int) -> bytes:
    """The input of a layout, seed and index; the same on every machine."""
    layout, rng = LAYOUTS[name], Random(f"{seed}/{name}/{index}")
    start = rng.choice(layout.seeds)
    if isinstance(start, Parquet):
        return parquet.mutated(start, rng)
    if isinstance(start, Cube):
        return netcdf.mutated(start, rng)
    own = [text.data for text in layout.seeds]
    return mutate.mutated(start, own if rng.random() < 0.7 else _texts(), rng)


@cache
def _texts() -> list[bytes]:
    return [seed.data for each in LAYOUTS.values() for seed in each.seeds if isinstance(seed, Text)]


def attempt(name: str, data: bytes, parse: Parse | None = None) -> Outcome:
    """Read one input and judge what came of it."""
    PRINTED.clear()
    outcome = _attempt(name, data, parse)
    outcome.findings += [Finding("traceback", f"printed: {text[:200]}") for text in PRINTED[:1]]
    return outcome


def _attempt(name: str, data: bytes, parse: Parse | None) -> Outcome:
    layout, sites = LAYOUTS[name], site_list(name)
    if sites is not None:
        sites.unknown.clear()
    RECORDS.texts.clear()
    raw = RawFile(f"folder/{layout.file}", layout.file, data)
    start = time.perf_counter()
    try:
        with alarm(layout.seconds):
            tables = list((parse or source(layout.network).parse)(raw, sites, "error"))
    except InputError as error:
        return Outcome("refused", time.perf_counter() - start, shape(str(error)), _judge_error(error, layout))
    except Hang:
        return Outcome(
            "hang", time.perf_counter() - start, findings=[Finding("hang", f"more than {layout.seconds:g} s")]
        )
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)
        own = next(
            (f for f in reversed(last) if "pipeline" in f.filename and "site-packages" not in f.filename), last[-1]
        )
        what = f"{type(error).__name__} in {own.name}, line {own.lineno}: {str(error)[:200]}"
        return Outcome("traceback", time.perf_counter() - start, findings=[Finding("traceback", what)])
    seconds = time.perf_counter() - start
    warned = bool(RECORDS.texts or (sites is not None and sites.unknown))
    if layout.means is not None:
        found = judge_means(tables, _claims(layout, data), warned, layout.label, layout.means)
    else:
        found = judge_tables(tables, _claims(layout, data), warned, layout.twice)
    return Outcome("read" if not warned else "read in part", seconds, findings=found)


def _judge_error(error: InputError, layout: Layout) -> list[Finding]:
    names = [f"folder/{layout.file}", *([layout.sites[0]] if layout.sites else [])]
    return min((judge_error(error, name) for name in names), key=len)


def _claims(layout: Layout, data: bytes) -> dict[int, list[Claim]]:
    first = layout.seeds[0]
    if isinstance(first, Cube) or layout.claims is None:
        return netcdf.claims(data)
    if isinstance(first, Parquet):
        return {line: list(layout.claims(row)) for line, row in enumerate(parquet.rows_of(data), start=1)}
    header, lines = lines_of(data, first.delimiter, layout.names)
    return {line: _of_row(layout, header, cells) for line, cells in lines.items()}


def _of_row(layout: Layout, header: list[str], cells: list[str]) -> list[Claim]:
    if len(header) != len(cells):  # a broken row: nothing of it may be used
        return []
    assert layout.claims is not None
    found = list(layout.claims(by_name(header, cells)))
    if layout.known is not None:
        return [claim if claim.station in layout.known else claim._replace(clean=False) for claim in found]
    return found


def shape(message: str) -> str:
    """An error without what was found in this very file: figures masked, cut at ``found``."""
    return re.sub(r"\d+", "#", re.sub(r"\bfound\b.*", "found", message, count=1, flags=re.DOTALL))[:160]
