"""One cell of the matrix: a run is disturbed at a stage beside a reader; one command recovers; all is compared."""

from __future__ import annotations

import re
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.matrix import child, points
from benchmarks.matrix.every import FAULTS
from benchmarks.matrix.faults import Fault
from benchmarks.matrix.reader import Reader, digest
from benchmarks.matrix.scene import Place, Reference, compare
from pipeline import atomic


@dataclass(frozen=True)
class Cell:
    """A fault at a stage, drawn with a seed."""

    fault: str
    stage: str
    seed: int

    @property
    def rng(self) -> np.random.Generator:
        """Its own random numbers."""
        return np.random.default_rng([self.seed, zlib.crc32(f"{self.fault} {self.stage}".encode())])


@dataclass
class Outcome:
    """What a cell did: exit status and last words of the disturbed run, what the fault was, readings, hours, problems.

    ``recovered`` is ``by itself`` where the disturbed run ended with 0, else ``next run``.
    """

    cell: Cell
    status: int = 0
    said: str = ""
    fault: str = ""
    readings: int = 0
    recovered: str = ""
    lost: int = 0
    wrong: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def play(cell: Cell, reference: Reference, scratch: Path) -> Outcome:
    """Play a cell in a folder of its own, which goes unless something was wrong."""
    began, outcome, fault = time.monotonic(), Outcome(cell), FAULTS[cell.fault]
    place = fault.place(scratch / re.sub(r"[^\w.-]+", "-", f"{cell.fault} {cell.stage} {cell.seed}"), reference)
    atomic.remove(place.folder)
    place.folder.mkdir(parents=True)
    fault.prepare(place)
    try:
        place.fill()
        _disturb(cell, fault, place, outcome)
        _recover(place, outcome, fault)
    except Exception as error:  # one cell must not end the matrix: it is told as a problem
        outcome.problems.append(f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
    finally:
        fault.tear_down(place)
    if not outcome.problems:
        atomic.remove(place.folder)
    outcome.seconds = time.monotonic() - began
    return outcome


def _disturb(cell: Cell, fault: Fault, place: Place, outcome: Outcome) -> None:
    rng, revisions = cell.rng, {digest(cube) for cube in place.reference.cubes()}
    points.plan(place.folder, cell.stage)
    reader = Reader(place.out, revisions, place.beside)
    run = fault.start(place, "disturbed")
    try:
        points.wait(lambda: points.reached(place.folder) or run.status is not None, f"{cell.stage} to begin")
        if points.reached(place.folder) is None:
            raise RuntimeError(f"the run ended before {cell.stage}: {_last_words(run)}")
        fault.inject(place, rng)
        points.go(place.folder)
        fault.disturb(run, rng)
        outcome.status, outcome.said = run.end(), _last_words(run)
    finally:
        run.kill()
        run.sweep()
        seen = reader.stop()
        fault.lift(place)
    outcome.readings, outcome.fault = seen.count, fault.said()
    outcome.problems += [f"reader: {problem}" for problem in dict.fromkeys(seen.wrong)]
    outcome.problems += fault.problems(place) + _unlike_promised(fault, run, outcome)


def _unlike_promised(fault: Fault, run: child.Run, outcome: Outcome) -> list[str]:
    """Exit statuses that the fault does not make, and failures that are not told in one line."""
    problems = []
    if outcome.status not in fault.ends:
        problems.append(f"exit status {outcome.status}: {outcome.said}")
    elif outcome.status > 0 and fault.told and not outcome.said.startswith("aqnet: error: "):
        problems.append(f"the last line is no error: {outcome.said}")
    if "Traceback" in run.said():
        problems.append("a traceback in the log")
    return problems


def _last_words(run: child.Run) -> str:
    lines = run.said().strip().splitlines()
    return lines[-1] if lines else "(nothing)"


def _recover(place: Place, outcome: Outcome, fault: Fault) -> None:
    outcome.recovered = "by itself"
    if outcome.status != 0:
        outcome.recovered = "next run"
        run = fault.start(place, "recovery")
        if status := run.end():
            outcome.problems.append(f"the next run ended with {status}: {_last_words(run)}")
    left = compare(place, place.reference.cubes()[1])
    outcome.lost, outcome.wrong = left.lost, left.wrong
    outcome.problems += left.problems
    if left.lost or left.wrong:
        outcome.problems.append(f"{left.lost} hours lost, {left.wrong} wrong")
