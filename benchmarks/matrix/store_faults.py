"""Faults of an S3 store: the cube lies in a bucket of a real server, and the run's line to it is disturbed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from numpy.random import Generator

from benchmarks.matrix import bucket, child, wire
from benchmarks.matrix.faults import Fault
from benchmarks.matrix.scene import Place, Reference
from pipeline import atomic, output

#: Seconds after which trouble passes, at least and at most: within the tries of a request.
PASSES = (1.0, 4.0)

#: Troubles after which Icechunk's client tries a request again; not after an answer that stopped half-way.
RETRIED = (wire.FAILS, wire.SLOW_DOWN, wire.DEAF, wire.LOST)


@dataclass(frozen=True)
class InBucket(Place):
    """A place whose cube lies in a bucket; runs reach it by a line, readers and judges go to the server."""

    line: wire.Line

    @property
    def prefix(self) -> str:
        """Prefix of the cube."""
        return self.folder.name

    @property
    def environment(self) -> dict[str, str]:
        """The line as the endpoint."""
        return bucket.environment(self.line.address)

    @property
    def beside(self) -> dict[str, str]:
        """The server as the endpoint."""
        return bucket.environment(os.environ[bucket.SERVER])

    @property
    def words(self) -> list[str]:
        """As elsewhere, with the store."""
        return [*super().words, "--store", f"s3://{bucket.BUCKET}/{self.prefix}"]

    def fill(self) -> None:
        """Put the first day's cube into the bucket and the rest into the output folder."""
        super().fill()
        bucket.clear(self.prefix)
        bucket.upload(self.out / output.CUBE, self.prefix)
        atomic.remove(self.out / output.CUBE)
        (self.out / output.STORE).write_text(f"s3://{bucket.BUCKET}/{self.prefix}\n")


class BadLine(Fault):
    """The line to the bucket fails: for seconds, which tries again bridge, or until the run has ended."""

    states: tuple[str, ...] = ()

    @contextmanager
    def shared(self, folder: Path) -> Iterator[None]:
        """One server for all cells."""
        with bucket.serving(folder / "s3"):
            yield

    def place(self, folder: Path, reference: Reference) -> Place:
        """With its cube in the bucket."""
        self.line = wire.Line(os.environ[bucket.SERVER])
        return InBucket(folder, reference, self.line)

    def inject(self, place: Place, rng: Generator) -> None:
        """Disturb the line from here on."""
        self.line.trouble(self.states[int(rng.integers(len(self.states)))])

    def disturb(self, run: child.Run, rng: Generator) -> None:
        """Let the trouble pass, in half of the cells; the run then goes on by itself where Icechunk tries again."""
        self.passes = rng.random() < 0.5
        self.ends = (0,) if self.passes and self.line.state in RETRIED else (0, 1)
        if self.passes:
            time.sleep(rng.uniform(*PASSES))
            self.line.heal()

    def lift(self, place: Place) -> None:
        """Mend the line."""
        self.line.heal()

    def tear_down(self, place: Place) -> None:
        """Take the line away, and the cube."""
        self.line.close()
        bucket.clear(place.prefix) if isinstance(place, InBucket) else None

    def said(self) -> str:
        """What was done."""
        state, passed = self.line.last, "for seconds" if self.passes else "to the end"
        return f"{state}, {passed}, {self.line.disturbed} requests"


class Errors(BadLine):
    """The store answers 500 InternalError, or 503 SlowDown."""

    states = (wire.FAILS, wire.SLOW_DOWN)


class TimeOuts(BadLine):
    """The store never answers, stops in the middle of an answer, or does as asked but its answer is lost."""

    states = (wire.DEAF, wire.HALF, wire.LOST)
