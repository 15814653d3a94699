"""Kills: `aqnet run` is stopped with SIGKILL in every stage; readers see whole revisions, and the next run completes.

`make test` kills in two stages; `make faults` in all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import xarray as xr

from pipeline import output
from pipeline.cube import reader
from pipeline.errors import ProductError
from pipeline.twin.simulate import Simulation

#: Text of the log line that says where a run is; the kill follows it at once.
IN_STAGE = {
    "before any work": None,
    "quality control": " INFO ingest ",
    "analyse": " INFO quality control ",
    "analyse, second day": "analysed 24 of",
    "score": " INFO analyse ",
    "validate": " INFO score ",
    "publish": " INFO validate ",
    "downloads": " hours in r",
    "maps": " INFO wrote ",
}

SHARE = ("analyse, second day", "downloads")

KILLED = tuple(IN_STAGE) if os.environ.get("AQNET_TEST_ALL_FAULTS") else SHARE


def start(simulation: Simulation, weights: Path, out: Path, home: Path) -> subprocess.Popen[str]:
    """A run of two days as a user starts it, in a process group of its own."""
    west, south, east, north = map(str, simulation.bbox)
    options = {"--input": simulation.archive, "--stations": simulation.stations, "--weights": weights, "--out": out}
    options |= {"--start": "2019-11-30", "--end": "2019-12-02", "--resolution": "0.25", "--domain": "faults"}
    words = [str(word) for pair in options.items() for word in pair]
    command = [
        sys.executable,
        "-c",
        "from pipeline.cli import main; main()",
        "run",
        *words,
        "--bbox",
        west,
        south,
        east,
        north,
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_API")} | {"PREFECT_HOME": str(home)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def kill_after(process: subprocess.Popen[str], text: str | None) -> bool:
    """Kill the run alone once `text` was logged (at once for None), as the kernel does; False if it ended before."""
    with process:
        assert process.stderr is not None
        found = text is None or any(text in line for line in process.stderr)
        if found:
            process.kill()
    return found


def servers(home: Path) -> list[int]:
    """Prefect's servers that are left of runs."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            said = process.environ()
            if said.get("PREFECT__SERVER_EPHEMERAL") == "1" and said.get("PREFECT_HOME") == str(home):
                found.append(process.pid)
    return found


def published(out: Path) -> xr.Dataset | None:
    """What a reader sees: all of the last revision, or None where nothing was published."""
    try:
        return reader.open_cube(out / output.CUBE).load()
    except ProductError:
        return None


def same_values(a: xr.Dataset, b: xr.Dataset) -> bool:
    return a.drop_attrs().identical(b.drop_attrs())


def test_a_killed_run_leaves_no_half_and_the_next_one_completes(
    small_simulation: Simulation, weights: Path, tmp_path: Path
) -> None:
    home = tmp_path / "prefect"
    for name in ("undisturbed", "again"):  # the second run over the same cube changes nothing
        text, log = start(small_simulation, weights, tmp_path / "whole", home).communicate()
        assert "Published: " + ("r1" if name == "undisturbed" else "nothing changed") in text, log
    whole = published(tmp_path / "whole")
    assert whole is not None
    out = tmp_path / "killed"
    for stage in KILLED:
        assert kill_after(start(small_simulation, weights, out, home), IN_STAGE[stage]), stage
        seen = published(out)
        assert seen is None or same_values(seen, whole), stage
        visible = list((out / output.PRODUCTS).glob("[!.]*.nc"))
        for file in visible:
            with xr.open_dataset(file) as product:
                assert product.sizes["time"] == 24, stage  # a file a month: 30 November, 1 December
    assert len(servers(home)) == 1  # the last run's: Prefect leaves it, and the run after ended those before
    text, log = start(small_simulation, weights, out, home).communicate()
    assert "Published: " in text, log
    assert servers(home) == []
    assert same_values(published(out), whole)
    for product in ("lineage.json", "run.json", "SHA256SUMS"):
        assert (out / output.PRODUCTS / product).is_file()
    leftovers = [file.name for file in (out / output.PRODUCTS).iterdir() if file.name.startswith(".")]
    assert leftovers == []
