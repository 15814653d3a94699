"""Play the fault matrix and print it: ``python -m benchmarks.matrix --runs 200 --seed 1``."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp

from benchmarks.matrix import table
from benchmarks.matrix.cell import Cell, Outcome, play
from benchmarks.matrix.faults import CLOCK, FAULTS, set_clock
from benchmarks.matrix.scene import Reference, prepare

#: libfaketime, as Debian's package has it.
_FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


def cells(runs: int, seed: int, faults: list[str], stages: list[str]) -> list[Cell]:
    """Every fault at every stage, then again with the next seed, until there are enough."""
    every = _endless(seed, faults, stages)
    return list(itertools.islice(every, runs))


def _endless(seed: int, faults: list[str], stages: list[str]) -> Iterator[Cell]:
    for one in itertools.count(seed):
        for fault in faults:
            yield from (Cell(fault, stage, one) for stage in FAULTS[fault].stages if not stages or stage in stages)


def _under_false_clock(folder: Path) -> None:
    """Start processes under libfaketime from here on."""
    if not Path(_FAKETIME).exists():
        raise SystemExit(f"expected libfaketime at {_FAKETIME} for clock jumps (Debian: apt-get install faketime)")
    os.environ |= {CLOCK: str(folder / "clock"), "LD_PRELOAD": _FAKETIME}
    os.environ |= {"FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
    set_clock(0)


def _play_all(wanted: list[Cell], reference: Reference, folder: Path, jobs: int) -> Iterator[Outcome]:
    """Cells side by side, but those with another clock, which come after the others and one at a time."""
    clocks = [cell for cell in wanted if cell.fault == "clock jump"]
    for some, workers in ((sorted(set(wanted) - set(clocks), key=wanted.index), jobs), (clocks, 1)):
        if some and some is clocks:
            _under_false_clock(folder)
        with ProcessPoolExecutor(workers, get_context("spawn"), max_tasks_per_child=None) as pool:
            futures = [pool.submit(play, cell, reference, folder / "cells") for cell in some]
            for done in as_completed(futures):
                yield done.result()


def main() -> None:
    """Play, print each cell as it ends, and the table; exit 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matrix", description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--fault", action="append", choices=FAULTS, default=[])
    parser.add_argument("--stage", action="append", default=[])
    parser.add_argument("--folder", type=Path, help="where to work; it is kept (temporary)")
    parser.add_argument("--json", type=Path, help="file to add each outcome to, a line each")
    asked = parser.parse_args()
    folder = asked.folder or Path(mkdtemp(prefix="matrix-"))
    folder.mkdir(parents=True, exist_ok=True)
    reference = prepare(folder)
    outcomes = []
    for outcome in _play_all(
        cells(asked.runs, asked.seed, asked.fault or list(FAULTS), asked.stage), reference, folder, asked.jobs
    ):
        outcomes.append(outcome)
        print(table.line(outcome), flush=True)
        if asked.json:
            with asked.json.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
    print("\n" + table.markdown(outcomes))
    wrong = any(outcome.problems for outcome in outcomes)
    if not wrong and asked.folder is None:
        shutil.rmtree(folder)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
