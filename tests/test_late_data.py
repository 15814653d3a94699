"""From store to cube, a correction, and back: the ledger names the late hour until the run is made again."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline import cli, output, stages
from pipeline.config import RunConfig
from pipeline.cube import reader
from pipeline.errors import ProductError
from pipeline.store import layout, ledger
from pipeline.twin.simulate import Simulation


def call(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that succeeds; what it printed."""
    capfd.readouterr()
    code = cli.run_command([str(word) for word in words])
    out, err = capfd.readouterr()
    assert code == 0, err
    return out


def corrected(simulation: Simulation, folder: Path) -> tuple[Path, str]:
    """A later version of the file of 2019-12-01 with one value changed, and the UTC hour that concerns."""
    folder.mkdir()
    with zipfile.ZipFile(simulation.archive / "china_sites_201912.zip") as archive:
        lines = archive.read("china_sites_20191201.csv").decode().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("20191201,10,PM2.5,"))
    cells = lines[at].split(",")
    cells[3] = "77" if cells[3] != "77" else "78"
    lines[at] = ",".join(cells)
    path = folder / "china_sites_20191201.csv"
    path.write_text("\n".join(lines) + "\n")
    stamp = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    os.utime(path, (stamp, stamp))
    return path, "2019-12-01T01:00:00Z"  # label 10 Beijing is the hour from 01 UTC


def test_a_correction_is_late_until_the_run_is_made_again(
    small_simulation: Simulation,
    weights: Path,
    prefect_harness: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    sites = ("--stations", small_simulation.stations, "--store", store)
    run = ("run", "--source", "store", "--input", store, "--start", "2019-12-01", "--end", "2019-12-01T06")
    run += ("--bbox", 110, 36, 113, 39, "--resolution", 0.5, "--weights", weights, "--out", out)
    late = ("ledger", "--store", store, "--cube", out / output.CUBE, "--json")
    call(capfd, "ingest", "cnemc", "--input", small_simulation.archive, *sites)
    assert "Published: r1" in call(capfd, *run)
    attrs = reader.open_cube(out / output.CUBE).attrs
    assert attrs[ledger.DIGEST_ATTR] == layout.load(store).digest
    inputs = json.loads((out / output.PRODUCTS / output.LINEAGE).read_text())["inputs"]
    assert {name.rsplit("-", 1)[0] for name in inputs} == {"cnemc-2019-11", "cnemc-2019-12"}
    assert json.loads(call(capfd, *late)) == []
    path, hour = corrected(small_simulation, tmp_path / "later")
    call(capfd, "ingest", "cnemc", "--input", path, *sites)
    assert [row["time"] for row in json.loads(call(capfd, *late))] == [hour]
    assert "Published: r2" in call(capfd, *run)
    assert json.loads(call(capfd, *late)) == []
    assert [row["time"] for row in json.loads(call(capfd, *late, "--revision", "r1"))] == [hour]


def test_inputs_that_change_under_a_run_are_not_published(
    small_simulation: Simulation, weights: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(small_simulation.archive, raw)
    config = RunConfig(
        input=raw,
        stations=small_simulation.stations,
        start="2019-12-01",
        end="2019-12-01T02",
        bbox=(110, 36, 113, 39),
        resolution=0.5,
        weights=weights,
        out=tmp_path / "out",
    )
    with stages.begin(config, "changing") as run:
        (month,) = config.months()
        stages.analyse_month(run, stages.quality_control(run, stages.ingest(run, month), month), month)
        day = corrected(small_simulation, tmp_path / "later")[0]
        shutil.copy(day, raw / "china_sites_20191201.csv")  # comes after the zip, and so counts
        with pytest.raises(
            ProductError, match=r"expected inputs that stay as they are .* found 2 changed, such as china"
        ):
            stages.validate(run)
