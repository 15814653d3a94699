"""Published things that were damaged since, each for real, and a clean folder that is found clean."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import netCDF4
import pytest

from pipeline import cli, stages, verify
from pipeline.config import RunConfig
from pipeline.cube import reader
from pipeline.errors import ProductError
from pipeline.twin.simulate import Simulation


@pytest.fixture(scope="module")
def published(small_simulation: Simulation, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two revisions."""
    out = tmp_path_factory.mktemp("verify")
    for end in ("2019-12-01T06", "2019-12-02"):
        config = RunConfig(
            input=small_simulation.archive,
            stations=small_simulation.stations,
            start="2019-12-01",
            end=end,
            bbox=small_simulation.bbox,
            resolution=0.5,
            weights=weights,
            out=out,
        )
        stages.make(config, f"to-{end[-2:]}")
    return out


@pytest.fixture
def out(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "out"))


def wrong(out: Path) -> dict[str, str]:
    return {one.name: one.problem for one in verify.verify(out) if one.problem}


def test_a_clean_folder_is_clean(published: Path) -> None:
    found = list(verify.verify(published))
    assert not wrong(published)
    names = {one.name for one in found}
    assert {"run.json", "cube.icechunk r1", "cube.icechunk r2", "values of cube.icechunk"} <= names
    assert {hourly(published).name, f"values of {hourly(published).name}"} <= names


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))


def hourly(out: Path) -> Path:
    return sorted((out / "products").glob("pm25_*_hourly_*.nc"))[-1]


def largest_chunk(out: Path) -> Path:
    return max((out / "cube.icechunk" / "chunks").iterdir(), key=lambda path: path.stat().st_size)


def test_a_file_that_was_changed(out: Path) -> None:
    flip_a_byte(out / "products" / "run.json")
    assert list(wrong(out)) == ["run.json"]


def test_a_file_that_went(out: Path) -> None:
    (out / "products" / "lineage.json").unlink()
    assert wrong(out) == {"lineage.json": "expected a file; found: No such file or directory"}


def test_values_of_another_revision(out: Path) -> None:
    """A file whose checksum was made anew, too."""
    with netCDF4.Dataset(hourly(out), "a") as file:
        file.tracking_id = "urn:uuid:00000000-0000-0000-0000-000000000000"
    assert "expected the values of r2" in wrong(out)[f"values of {hourly(out).name}"]


def test_a_chunk_that_rotted(out: Path) -> None:
    """Its codec may read it all the same, as other values."""
    flip_a_byte(largest_chunk(out))
    assert f"values of {hourly(out).name}" in wrong(out)


def test_a_chunk_that_was_lost(out: Path) -> None:
    largest_chunk(out).unlink()
    assert "cannot be read" in wrong(out)["values of cube.icechunk"]


def test_a_revision_that_was_lost(out: Path) -> None:
    snapshot = next(entry["snapshot"] for entry in reader.history(out / "cube.icechunk") if entry["revision"] == "r1")
    (out / "cube.icechunk" / "snapshots" / snapshot).unlink()
    assert "cannot be read" in wrong(out)["cube.icechunk r1"]


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        (lambda out: None, 0, "0 wrong"),
        (lambda out: flip_a_byte(out / "products" / "run.json"), 1, "run.json: expected"),
    ],
)
def test_the_command(
    damage: Callable[[Path], None], code: int, said: str, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(out)
    assert cli.run_command(["verify", "--out", str(out)]) == code
    assert said in capfd.readouterr().out


def test_no_checksums_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProductError, match="expected SHA256SUMS beside the products"):
        list(verify.verify(tmp_path))
