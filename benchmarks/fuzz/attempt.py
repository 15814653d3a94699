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
from typing import TypeVar

import pandas as pd

from benchmarks.fuzz import lists, mutate, netcdf, parquet, wrapped
from benchmarks.fuzz.judge import Finding, judge_error, judge_means, judge_tables
from benchmarks.fuzz.layouts import LAYOUTS, Layout, site_list, source, told
from benchmarks.fuzz.mutate import Text
from benchmarks.fuzz.netcdf import Cube
from benchmarks.fuzz.parquet import Parquet
from benchmarks.fuzz.plain import Claim, by_name, lines_of
from pipeline.errors import InputError
from pipeline.sources.archive import RawFile
from pipeline.sources.csvfile import Truncated
from pipeline.sources.sites import SiteList

Parse = Callable[[RawFile, SiteList | None, Truncated], Iterator[pd.DataFrame]]
Result = TypeVar("Result")

#: What is fuzzed besides the layouts: files in gzip and zip, and lists of sites.
ARCHIVE, SITES = "archive", "sites"


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


@contextmanager
def prepared() -> Iterator[None]:
    """Set the process up: the alarm, warnings as errors, what readers log and what Python can only print caught."""
    log = logging.getLogger("aqnet")
    before = signal.getsignal(signal.SIGALRM), sys.unraisablehook, log.propagate
    signal.signal(signal.SIGALRM, _rung)
    sys.unraisablehook = lambda what: PRINTED.append(f"{type(what.exc_value).__name__}: {what.exc_value}")
    log.propagate = False
    log.addHandler(RECORDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        log.removeHandler(RECORDS)
        signal.signal(signal.SIGALRM, before[0])
        sys.unraisablehook, log.propagate = before[1:]


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


def run(name: str, seed: int, index: int) -> Outcome:
    """Make the input of a layout, seed and index, read it and judge what came of it."""
    rng = Random(f"{seed}/{name}/{index}")
    if name == ARCHIVE:
        file, data = wrapped.make(rng)
        return _outcome(lambda: list(wrapped.read(file, data)), lambda found: wrapped.judge(data, found), [file], 5.0)
    if name == SITES:
        listing, data = lists.make(rng)
        read = lambda: list(lists.read(listing, data))  # noqa: E731
        return _outcome(read, lambda found: lists.judge(listing, data, found), [listing.file], 5.0)
    return attempt(name, make(name, seed, index), truncated="error" if index % 4 else "keep")


def attempt(name: str, data: bytes, parse: Parse | None = None, truncated: Truncated = "error") -> Outcome:
    """Read one input and judge what came of it; `parse` takes the place of the layout's own reader."""
    layout, sites = LAYOUTS[name], site_list(name)
    if sites is not None:
        sites.unknown.clear()
    raw = RawFile(f"folder/{layout.file}", layout.file, data)
    reader = parse or source(layout.network).parse

    def judged(tables: list[pd.DataFrame]) -> list[Finding]:
        warned = bool(RECORDS.texts or (sites is not None and sites.unknown))
        if layout.means is not None:
            return judge_means(tables, _claims(layout, data), warned, layout.label, layout.means)
        return judge_tables(tables, _claims(LAYOUTS[told(name, data)], data), warned, layout.twice)

    names = [raw.where, *([layout.sites[0]] if layout.sites else [])]
    outcome = _outcome(lambda: list(reader(raw, sites, truncated)), judged, names, layout.seconds)
    if outcome.kind == "read" and sites is not None and sites.unknown:
        outcome.kind = "read in part"
    return outcome


def _outcome(
    read: Callable[[], list[Result]], judge: Callable[[list[Result]], list[Finding]], names: list[str], seconds: float
) -> Outcome:
    """Read under an alarm of so many seconds; an error must name one of the files `names`."""
    PRINTED.clear()
    RECORDS.texts.clear()
    start = time.perf_counter()
    try:
        with alarm(seconds):
            found = read()
    except InputError as error:
        judged = min((judge_error(error, name) for name in names), key=len)
        outcome = Outcome("refused", time.perf_counter() - start, shape(str(error)), judged)
    except Hang:
        outcome = Outcome("hang", seconds, findings=[Finding("hang", f"more than {seconds:g} s")])
    except Exception as error:
        outcome = Outcome("traceback", time.perf_counter() - start, findings=[_traceback(error)])
    else:
        outcome = Outcome("read in part" if RECORDS.texts else "read", time.perf_counter() - start)
        outcome.findings = judge(found)
    outcome.findings += [Finding("traceback", f"printed: {text[:200]}") for text in PRINTED[:1]]
    return outcome


def _traceback(error: Exception) -> Finding:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/pipeline/" in frame.filename and "site-packages" not in frame.filename]
    last = (own or list(frames))[-1]
    return Finding("traceback", f"{type(error).__name__} in {last.name}, line {last.lineno}: {str(error)[:200]}")


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
