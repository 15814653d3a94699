"""Commands on a disk that is full or read-only, a real one: one line that names the place and what to do, exit 1."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from test_revisions import said
from test_write import GRID, make_block

from pipeline import cli
from pipeline.cube import reader, write
from pipeline.offer import publication
from pipeline.twin import simulate
from tests.offer import FIRST, TITLE, add_run, lineage

HELD = "held-by-the-gate"


def hold_a_candidate(out: Path) -> None:
    first = FIRST + 24
    hours = (np.datetime64(hour, "h") for hour in (first, first + 24))
    with write.begin(out / "cube.icechunk", GRID, *hours, lineage(HELD) | {"title": TITLE}) as candidate:
        write.write_block(candidate, make_block(first, 24, 7))
        write.hold(candidate, said(HELD))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products and a cube, in which a candidate is held."""
    out = tmp_path_factory.mktemp("refused") / "out"
    add_run(out, "run-1", 0)
    publication.publish(out)
    hold_a_candidate(out)
    return out


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; needs root."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system, which we have not here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", 0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(bytes(4096) for _ in range(10_000))


def lock(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


COMMANDS = {
    "publish": "publish --out {out}",
    "accept": f"accept {HELD} --out {{out}} --reason looked-at",
    "netcdf": "export --cube {cube} --format netcdf --out {out}/cut",
    "zarr": "export --cube {cube} --format zarr --out {out}/cut",
    "csv": "export --cube {cube} --format csv --out {out}/cut",
    "geotiff": "export --cube {cube} --format geotiff --out {out}/cut",
    "ingest": "ingest table --input {table} --store {out}/store",
    "simulate": "simulate --out {out}/twin --days 1 --bbox 110 36 111 37 --n-stations 5",
}


@pytest.mark.parametrize(("refuse", "said"), [(fill, "No space left on device; make room"), (lock, "Read-only file")])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_refusing_disk_is_told_in_one_line(
    published: Path,
    disk: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    refuse: Callable[[Path], None],
    said: str,
) -> None:
    out, table = Path(shutil.copytree(published, disk / "out")), tmp_path / "observed.csv"
    table.write_text("time,station,lon,lat,pm2p5\n2019-12-10T03,x:1,10,50,7\n")
    refuse(disk)
    before = reader.open_cube(out / "cube.icechunk").load()
    words = COMMANDS[name].format(out=out, cube=published / "cube.icechunk", table=table)
    assert cli.run_command(words.split()) == 1
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("aqnet: "))
    assert line.startswith("aqnet: error: ")
    assert f"{disk}/out" in line
    assert said in line
    assert reader.open_cube(out / "cube.icechunk").load().identical(before)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_no_small_disk_says_is_told_as_well(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The place is that of the option where the system names no file."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(simulate, "simulate", refuse)
    assert cli.run_command(["simulate", "--out", str(tmp_path)]) == 1
    assert capfd.readouterr().err.startswith(f"aqnet: error: {tmp_path}: {os.strerror(code)}; ")


def test_other_errors_of_the_system_stay_bugs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EDOM, os.strerror(errno.EDOM))

    monkeypatch.setattr(simulate, "simulate", refuse)
    assert cli.run_command(["simulate", "--out", str(tmp_path)]) == 70
    assert "this is a bug: OSError" in capfd.readouterr().err
