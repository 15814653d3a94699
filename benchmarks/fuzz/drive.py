"""Runs of many inputs in a child process that a parent watches: a crash or hang of C++ costs one input, not the run."""

from __future__ import annotations

import math
import multiprocessing
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from typing import NamedTuple

from benchmarks.fuzz.attempt import prepared, run

#: Inputs between two reports of the child, the address space it may have, and what one input may add to its peak.
BATCH, ADDRESS_SPACE, BOMB = 500, 12 << 30, 512 << 20

#: Seconds without a new input after which the child is taken for hung in C++.
SILENCE = 60.0

#: Seconds that a child may take to start.
START = 120.0


@dataclass
class Tally:
    """What came of a run of inputs."""

    inputs: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    worst: float = 0.0
    worst_at: int = -1
    peak: int = 0

    def add(self, other: Tally) -> None:
        """Add the tally of more inputs."""
        self.inputs += other.inputs
        self.seconds += other.seconds
        self.outcomes += other.outcomes
        self.shapes += other.shapes
        self.findings += other.findings
        for kind, found in other.first.items():
            self.first[kind] = (self.first.get(kind, []) + found)[:3]
        if other.worst > self.worst:
            self.worst, self.worst_at = other.worst, other.worst_at
        self.peak = max(self.peak, other.peak)

    def note(self, kind: str, index: int, what: str) -> None:
        """Note a finding."""
        self.findings[kind] += 1
        if len(self.first.setdefault(kind, [])) < 3:
            self.first[kind].append((index, what))


def tally(name: str, seed: int, indices: range | list[int], at: Synchronized[int] | None = None) -> Tally:
    """Make, read and judge the inputs of these indices in this process."""
    found, start = Tally(), time.process_time()
    for index in indices:
        if at is not None:
            at.value = index
        before = peak_bytes()
        outcome = run(name, seed, index)
        found.inputs += 1
        found.outcomes[outcome.kind] += 1
        if outcome.shape:
            found.shapes[outcome.shape] += 1
        for kind, what in {finding.kind: finding.what for finding in reversed(outcome.findings)}.items():
            found.note(kind, index, what)
        if (more := peak_bytes() - before) > BOMB:
            found.note("memory", index, f"{more >> 20} MiB more")
        if outcome.seconds > found.worst:
            found.worst, found.worst_at = outcome.seconds, index
    found.seconds, found.peak = time.process_time() - start, peak_bytes()
    return found


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


#: What a child does: layout, seed, indices, where to send tallies (None ends them), and where to say which input is on.
Work = Callable[[str, int, list[int], Connection, "Synchronized[int]"], None]


class Death(NamedTuple):
    """The end of a child before its time: a crash, or a hang that only a kill ends."""

    index: int
    kind: str
    what: str


def watched(name: str, seed: int, inputs: int, work: Work | None = None, minutes: float = math.inf) -> Tally:
    """Tally `inputs` inputs of a layout, or as many as `minutes` allow, in children started anew after a crash."""
    total, start = Tally(), time.monotonic()
    left = list(range(inputs))
    while left:
        for part in _child(name, seed, left, work or _work):
            if isinstance(part, Death):
                total.add(Tally(inputs=1, outcomes=Counter([part.kind])))
                total.note(part.kind, part.index, part.what)
                left.remove(part.index)
                continue
            total.add(part)
            left = left[part.inputs :]
            if time.monotonic() - start > 60 * minutes:
                return total
    return total


def _child(name: str, seed: int, indices: list[int], work: Work) -> Iterator[Tally | Death]:
    """Tallies of one child, in the order of the indices, and its death where it did not get through."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    at = context.Value("q", -1, lock=False)  # until the first input is on
    child = context.Process(target=work, args=(name, seed, indices, there, at), daemon=False)
    child.start()
    there.close()
    last, since, through = -1, time.monotonic(), False
    try:
        while True:
            if here.poll(1.0):
                if through := (part := here.recv()) is None:
                    return
                yield part
            elif at.value != last:
                last, since = at.value, time.monotonic()
            elif time.monotonic() - since > SILENCE + START * (last == -1):
                yield Death(max(at.value, indices[0]), "hang", f"no answer in {SILENCE:g} s, killed")
                return
    except EOFError:
        child.join()
        yield Death(max(at.value, indices[0]), "crash", f"the process died with exit code {child.exitcode}")
    finally:
        _end(child, through)
        here.close()


def _end(child: BaseProcess, through: bool) -> None:
    """Let a child that is through end by itself, and kill another."""
    if through:
        child.join(SILENCE)
    child.kill()
    child.join()


def _work(name: str, seed: int, indices: list[int], there: Connection, at: Synchronized[int]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    with prepared():
        for first in range(0, len(indices), BATCH):
            there.send(tally(name, seed, indices[first : first + BATCH], at))
    there.send(None)
