"""Kills of Dask workers: a run of two months makes them side by side, and a worker dies in the middle of its month."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from numpy.random import Generator

from benchmarks.matrix import child, points, scene
from benchmarks.matrix.faults import Fault
from benchmarks.matrix.scene import Place, Reference

#: A day, then a run of two: the last of a month and the first of the next.
DAYS = ("2019-11-29", "2019-11-30", "2019-12-02")

#: Deaths after which one of two months died four times, one more than Dask allows (``allowed-failures``).
GIVEN_UP = 7


class Months(Place):
    """A place whose runs have workers."""

    @property
    def words(self) -> list[str]:
        """As elsewhere, with two workers."""
        return [*super().words, "--workers", "2"]


class KillDask(Fault):
    """SIGKILL to a Dask worker, up to 0.3 s after its stage began; in a third of the cells again and again."""

    stages = ("ingest", "quality control", "analyse", "score")

    @contextmanager
    def shared(self, folder: Path) -> Iterator[None]:
        """A record of two months, and what undisturbed runs make of it."""
        scene.prepare(folder / "months", DAYS)
        yield

    def place(self, folder: Path, reference: Reference) -> Place:
        """With the record of two months."""
        return Months(folder, replace(reference, folder=reference.folder / "months", days=DAYS))

    def disturb(self, run: child.Run, rng: Generator) -> None:
        """Kill the worker that reached the stage; or each that comes to it, as one does that lacks memory."""
        self.killed, again = 0, rng.random() < 1 / 3
        self.ends = (1,) if again else (0,)
        folder = run.log.parent
        while worker := points.reached(folder):
            _kill(worker, rng.uniform(0, 0.3))
            self.killed += 1
            if not again or self.killed == GIVEN_UP:
                return
            self._next(folder, run)

    @staticmethod
    def _next(folder: Path, run: child.Run) -> None:
        """Stop the next worker that comes to the same stage, and let it go on."""
        points.plan(folder, points.planned(folder))
        points.wait(lambda: points.reached(folder) or run.status is not None, "another worker")
        points.go(folder)

    def lift(self, place: Place) -> None:
        """Stop no worker of the next run."""
        (place.folder / "plan").unlink(missing_ok=True)
        points.go(place.folder)

    def said(self) -> str:
        """How many died."""
        return f"{self.killed} killed"


def _kill(process: int, after: float) -> None:
    time.sleep(after)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
