"""The machine: processors and threads, memory, clock."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline import output
from pipeline.doctor.check import Check, Subject, failure, ok, warning

#: Memory that a run needs where none has run here yet, MiB: a month of a national grid (docs/reference/benchmarks.md).
NEEDED_MIB = 2048
#: A file may be as much newer than the clock says it can be; more, and one of the two clocks is wrong.
AHEAD = timedelta(minutes=5)
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def threads(_subject: Subject) -> Iterator[Check]:
    """Compare the threads that libraries are told to use with the processors that this process may use."""
    allowed = _processors()
    told = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS") if os.environ.get(name)}
    many = [f"{name}={value}" for name, value in told.items() if value.isdecimal() and int(value) > max(allowed, 1)]
    found = f"{allowed:g} processors" + "".join(f", {name}={value}" for name, value in told.items())
    if many:
        yield warning("threads", found, f"more threads than processors slow each other down: unset {many[0]}")
    elif allowed < (os.cpu_count() or 1) and not told:
        advice = f"libraries start one thread for each of the machine's: set OMP_NUM_THREADS={max(int(allowed), 1)}"
        yield warning("threads", f"{found} of {os.cpu_count()} are ours", advice)
    else:
        yield ok("threads", found)


def _processors() -> float:
    """Processors of this process, by its affinity and its group's quota."""
    allowed = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else min(allowed, int(quota) / int(period))


def memory(subject: Subject) -> Iterator[Check]:
    """Compare the free memory with the peak of the last run here."""
    free, (needed, why) = _free_mib(), _needed_mib(subject)
    found = f"{free:,.0f} MiB free; {why} {needed:,.0f} MiB"
    advice = "stop something else, give more memory, or take a coarser grid"
    if free < needed:
        yield failure("memory", found, advice)
    elif free < 1.5 * needed:
        yield warning("memory", found, advice)
    else:
        yield ok("memory", found)


def _free_mib() -> float:
    """Memory that may still be taken: by the machine, and by the limit of this process's group."""
    lines = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) / 1024
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except OSError:
        return free
    return free if limit == "max" else min(free, (int(limit) - used) / 2**20)


def _needed_mib(subject: Subject) -> tuple[float, str]:
    try:
        stages = json.loads((subject.out / output.PRODUCTS / output.REPORT).read_text())["stages"]
        return max(stage["peak_mib"] for stage in stages), "the last run took"
    except (OSError, ValueError, KeyError):
        return NEEDED_MIB, "a run of a national grid takes"


def clock(subject: Subject) -> Iterator[Check]:
    """Ask whether the clock can be right: after the newest file, running evenly, on a known zone."""
    now, name = datetime.now(UTC), "clock"
    zone = f"{time.tzname[0]} (UTC{datetime.now().astimezone():%z})"
    found = f"{now:%Y-%m-%dT%H:%M:%SZ}, local zone {zone}; all times of runs are UTC"
    advice = "set the clock (timedatectl set-ntp true): the hours to fetch and to make are counted from it"
    newest = _newest(subject)
    if newest is not None and newest[1] > now + AHEAD:
        yield failure(
            name, f"{now:%Y-%m-%dT%H:%M:%SZ}, but {newest[0]} was written at {newest[1]:%Y-%m-%dT%H:%M:%SZ}", advice
        )
    elif (jump := _uneven()) > 0.5:
        yield failure(name, f"{found}; it jumped by {jump:.1f} s while we looked", advice)
    else:
        yield ok(name, found)


def _newest(subject: Subject) -> tuple[Path, datetime] | None:
    """Return the newest of the package's, the input's and the products' files, and its time."""
    folders = [Path(__file__).parents[1], subject.out, subject.out / output.PRODUCTS]
    if subject.config is not None:
        folders.append(subject.config.input)
    found = [(path.stat().st_mtime, path) for folder in folders for path in _some(folder)]
    if not found:
        return None
    when, path = max(found)
    return path, datetime.fromtimestamp(when, UTC)


def _some(folder: Path) -> list[Path]:
    """Files right in a folder, or the file itself."""
    return (
        [path for path in folder.iterdir() if path.is_file()]
        if folder.is_dir()
        else [p for p in [folder] if p.exists()]
    )


def _uneven() -> float:
    """Seconds by which wall clock and monotonic clock differ over a moment."""
    wall, steady = time.time(), time.monotonic()
    time.sleep(0.02)
    return abs((time.time() - wall) - (time.monotonic() - steady))
