"""``python -m benchmarks.fuzz``: damaged files into every reader, and a report of what came out."""

from __future__ import annotations

import argparse
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.fuzz.attempt import ARCHIVE, SITES, make
from benchmarks.fuzz.drive import Tally, watched
from benchmarks.fuzz.layouts import LAYOUTS

COLUMNS = ("layout", "inputs", "CPU s", "ms an input", "refused", "read whole", "read in part", "messages", "worst ms")
HEAD = f"| {' | '.join((*COLUMNS, 'peak MiB', 'findings'))} |"


def main() -> int:
    """Run the fuzz and print its table; 1 where anything was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("networks", nargs="*", help=f"networks or layouts of {', '.join(LAYOUTS)}; default all")
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs a layout")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop a layout after so many minutes")
    parser.add_argument("--save", type=Path, help="folder for the first inputs of each kind of finding")
    options = parser.parse_args()
    known = {name: each.network for name, each in LAYOUTS.items()} | {ARCHIVE: ARCHIVE, SITES: SITES}
    wanted = [name for name, own in known.items() if not options.networks or {name, own} & set(options.networks)]
    if not wanted:
        parser.error(f"expected networks or layouts of {', '.join(known)}; found {' '.join(options.networks)}")
    print(HEAD + "\n" + "|---" * HEAD.count("| ") + "|", flush=True)
    with ThreadPoolExecutor(options.processes) as pool:
        tallies = pool.map(partial(_run, seed=options.seed, inputs=options.inputs, minutes=options.minutes), wanted)
        found = [_report(name, each, options.seed, options.save) for name, each in zip(wanted, tallies, strict=True)]
    return int(any(found))


def _run(name: str, seed: int, inputs: int, minutes: float) -> Tally:
    return watched(name, seed, inputs, minutes=minutes)


def _report(name: str, tally: Tally, seed: int, save: Path | None) -> int:
    share = {kind: f"{100 * n / tally.inputs:.1f} %" for kind, n in tally.outcomes.items()}
    cells = [
        name, f"{tally.inputs:,}", f"{tally.seconds:.0f}", f"{1e3 * tally.seconds / tally.inputs:.2f}",
        *(share.get(kind, "0") for kind in ("refused", "read", "read in part")),
        len(tally.shapes), f"{1e3 * tally.worst:.0f}", tally.peak >> 20, sum(tally.findings.values()),
    ]  # fmt: skip
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    for kind, n in tally.findings.most_common():
        print(f"  {kind}: {n}", file=sys.stderr)
        for index, what in tally.first[kind]:
            print(f"    input {index}: {what[:300]}", file=sys.stderr)
            if save is not None and name in LAYOUTS:
                save.mkdir(parents=True, exist_ok=True)
                (save / f"{name}-{kind.replace(' ', '-')}-{index}").write_bytes(make(name, seed, index))
    return sum(tally.findings.values())


if __name__ == "__main__":
    sys.exit(main())
