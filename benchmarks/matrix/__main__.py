"""Play the fault matrix and print it: ``python -m benchmarks.matrix --runs 200 --seed 1``."""

from __future__ import annotations

import argparse
import itertools
import json
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
from benchmarks.matrix.every import FAULTS
from benchmarks.matrix.scene import Reference, prepare


def cells(runs: int, seed: int, faults: list[str], stages: list[str]) -> list[Cell]:
    """Every fault at every stage, then again with the next seed, until there are enough."""
    every = _endless(seed, faults, stages)
    return list(itertools.islice(every, runs))


def _endless(seed: int, faults: list[str], stages: list[str]) -> Iterator[Cell]:
    for one in itertools.count(seed):
        for fault in faults:
            yield from (Cell(fault, stage, one) for stage in FAULTS[fault].stages if not stages or stage in stages)


def _play_all(wanted: list[Cell], reference: Reference, folder: Path, jobs: int) -> Iterator[Outcome]:
    """Cells side by side, fault by fault where these share a server; those that must be alone come last."""
    for kinds in _together(sorted({cell.fault for cell in wanted}, key=list(FAULTS).index)):
        some = [cell for cell in wanted if cell.fault in kinds]
        fault = FAULTS[kinds[0]]
        with fault.shared(folder), ProcessPoolExecutor(1 if fault.alone else jobs, get_context("spawn")) as pool:
            if fault.here:
                yield from (play(cell, reference, folder / "cells") for cell in some)
                continue
            futures = [pool.submit(play, cell, reference, folder / "cells") for cell in some]
            for done in as_completed(futures):
                yield done.result()


def _together(kinds: list[str]) -> list[list[str]]:
    """Faults that are played at the same time: those that share what they need."""
    groups: dict[tuple[bool, object], list[str]] = {}
    for kind in kinds:
        groups.setdefault((FAULTS[kind].alone, type(FAULTS[kind]).shared), []).append(kind)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]


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
    folder = (asked.folder or Path(mkdtemp(prefix="matrix-"))).resolve()
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
