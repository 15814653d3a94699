"""A real year of CNEMC files into the observation store, beside the plain pandas way: `python -m benchmarks.ingest`.

The pandas way reads each file with ``read_csv``, melts it and concatenates all; it neither converts times, nor joins
coordinates, merges, traces or writes anything. Each runs in a fresh process, one after the other, on the same files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pandas as pd

from pipeline import memory


def ours(raw: Path, store: Path) -> int:
    """Rows of station and hour put into the store."""
    from pipeline.store.ingest import ingest

    return ingest(store, "cnemc", raw, truncated="keep").rows


def plain_pandas(raw: Path, _store: Path) -> int:
    """Rows of station, hour and quantity in one long table."""
    parts = []
    for path in sorted(raw.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                with archive.open(name) as file:
                    wide = pd.read_csv(file, on_bad_lines="skip")
                parts.append(wide.melt(id_vars=["date", "hour", "type"], var_name="code", value_name="value"))
    return len(pd.concat(parts, ignore_index=True))


WAYS = {"observation store": ours, "pandas: read_csv + melt + concat": plain_pandas}


def measure(way: str, raw: Path) -> tuple[int, float, float]:
    """Rows, seconds and peak memory (MiB) of one way in a process of its own, imports left out."""
    command = [sys.executable, "-m", "benchmarks.ingest", "--input", str(raw), "--way", way]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(found[-3]), float(found[-2]), float(found[-1])


def run_here(way: str, raw: Path) -> str:
    """Run one way in this process; rows, seconds, MiB."""
    with tempfile.TemporaryDirectory(prefix="aqnet-bench-") as folder:
        began = time.perf_counter()
        rows = WAYS[way](raw, Path(folder) / "store")
        return f"{rows} {time.perf_counter() - began:.2f} {memory.peak_mib():.0f}"


def main() -> None:
    """Print a Markdown table of both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=Path("../shared/data/cnemc"), help="folder of monthly zips")
    parser.add_argument("--way", choices=WAYS, help="run this one only, and print rows, seconds and peak MiB")
    options = parser.parse_args()
    if options.way:
        print(run_here(options.way, options.input))
        return
    found = {way: measure(way, options.input) for way in WAYS}
    first = next(iter(found.values()))[1]
    print("| way | rows | seconds | peak MiB | the store is faster by |\n|---|---|---|---|---|")
    for way, (rows, seconds, peak) in found.items():
        print(f"| {way} | {rows:,} | {seconds:.1f} | {peak:,.0f} | {seconds / first:.1f} |")


if __name__ == "__main__":
    main()
