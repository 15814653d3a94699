"""Kills: an ingest is stopped with SIGKILL at random moments; no row is lost or there twice, and none is half.

`make test` kills 4 times; `make faults` 50 times.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline import sources
from pipeline.errors import InputError
from pipeline.store import layout

KILLS = 50 if os.environ.get("AQNET_TEST_ALL_FAULTS") else 4

#: Puts in a year's turn, a correction of part of it, and more days; says when the work begins and when it ends.
SCRIPT = """
import sys
from pathlib import Path
from pipeline.store.ingest import ingest
print("ready", flush=True)
for part in ("first", "corrected", "more"):
    ingest(Path(sys.argv[1]) / "store", "cnemc", Path(sys.argv[2]) / part)
print("done", flush=True)
"""

CODES = [f"{i}A" for i in range(1001, 1301)]


def write_days(folder: Path, first: str, days: int, published: str, seed: int) -> None:
    """Day files of 300 stations, 24 hours and two pollutants, with a station list."""
    folder.mkdir(parents=True)
    (folder / "stations.csv").write_text("code,lon,lat\n" + "".join(f"{code},116,40\n" for code in CODES))
    rng, stamp = np.random.default_rng(seed), datetime.fromisoformat(published).replace(tzinfo=UTC).timestamp()
    for day in pd.date_range(first, periods=days, freq="D"):
        name = f"{day:%Y%m%d}"
        values = rng.integers(1, 500, (24, 2, len(CODES))).astype(str)
        rows = [
            f"{name},{h},{kind},{','.join(values[h, i])}\n" for h in range(24) for i, kind in enumerate(("PM2.5", "O3"))
        ]
        path = folder / f"china_sites_{name}.csv"
        path.write_text(f"date,hour,type,{','.join(CODES)}\n" + "".join(rows))
        os.utime(path, (stamp, stamp))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_days(folder / "first", "2019-11-25", 12, "2020-01-01", 1)
    write_days(folder / "corrected", "2019-11-29", 4, "2020-02-01", 2)
    write_days(folder / "more", "2019-12-07", 6, "2020-02-01", 3)
    return folder


def start(out: Path, raw: Path) -> subprocess.Popen[str]:
    """An ingest that has begun its work."""
    command = [sys.executable, "-c", SCRIPT, str(out), str(raw)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def finish(process: subprocess.Popen[str]) -> float:
    """Seconds that it took to its end."""
    began = time.perf_counter()
    text, log = process.communicate()
    assert text == "done\n", log
    return time.perf_counter() - began


def seen(store: Path) -> tuple[int, str]:
    """Ingest and digest that a reader sees, after a look at every row and every file that the manifest names."""
    manifest = layout.load(store)
    for part in manifest.partitions:
        for path in filter(None, (part.observations, part.contested)):
            digest = hashlib.sha256((store / path).read_bytes()).hexdigest()
            assert path.endswith(f"-{digest[:16]}.parquet")
    try:
        tables = list(
            sources.read("store", store, None, np.datetime64("2019-01-01"), np.datetime64("2021-01-01"), None)
        )
    except InputError:
        assert manifest.ingest == 0
    else:
        assert not pd.concat(tables).duplicated(["time", "station"]).any()
        assert sum(map(len, tables)) == sum(part.rows for part in manifest.partitions)
    return manifest.ingest, manifest.digest


def test_a_killed_ingest_loses_and_doubles_nothing(raw: Path, tmp_path: Path) -> None:
    from pipeline.store.ingest import ingest

    states = [(0, layout.Manifest().digest)]
    for part in ("first", "corrected", "more"):
        done = ingest(tmp_path / "states" / "store", "cnemc", raw / part)
        states.append((done.ingest, done.digest))
    seconds = finish(start(tmp_path / "whole", raw))
    assert seen(tmp_path / "whole" / "store") == states[-1]
    moments = random.Random(1)
    killed = number = 0
    while killed < KILLS:
        out, number = tmp_path / f"out{number}", number + 1
        for _ in range(2):
            process = start(out, raw)
            time.sleep(moments.uniform(0, seconds))
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            process.communicate()
            assert seen(out / "store") in states
        finish(start(out, raw))
        assert seen(out / "store") == states[-1]
    leavings = [path for path in (out / "store").rglob("*.part")]
    assert leavings == []
