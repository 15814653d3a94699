"""`aqnet doctor`: everything that it looks at is broken here for real, and it must say so, and what to do."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyproj
import pytest
from test_write import GRID, NEW_YEAR, make_block, run

from model import checkpoint
from pipeline import cli, doctor, output
from pipeline.cube import repository, write
from pipeline.doctor import cube, environment, machine, observations, reach
from pipeline.doctor.check import Check, Subject
from pipeline.store import ingest

HOURS = [f"2019-01-{day:02d}T{hour:02d}:00" for day in (1, 2) for hour in range(24)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a cube of two revisions; tests break copies of it."""
    out = tmp_path_factory.mktemp("doctor") / "out"
    run(out / output.CUBE, NEW_YEAR, NEW_YEAR + 24)
    run(out / output.CUBE, NEW_YEAR + 24, NEW_YEAR + 48)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [f"{hour},net:{k},{10 + k},50,{20 + k}" for hour in HOURS for k in range(3)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["time,station,lon,lat,pm2p5", *rows]) + "\n")
    return path


def toml(tmp_path: Path, source: str, path: Path, **more: object) -> Path:
    given = {"start": "2019-01-01", "end": "2019-01-02", "out": str(tmp_path / "out"), **more}
    lines = [f"{name} = {json.dumps(value)}" for name, value in given.items()]
    file = tmp_path / "config.toml"
    file.write_text("\n".join([f'source = "{source}"', f'input = "{path}"', "bbox = [10, 49, 12, 51]", *lines]))
    return file


def look(what: Callable[..., object], out: Path, config: object = None) -> dict[str, Check]:
    found = list(what(Subject(config, out, 2.0)))  # type: ignore[arg-type, call-overload]
    assert all(check.advice for check in found if check.status != "ok")
    assert not any(check.advice for check in found if check.status == "ok")
    return {check.name: check for check in found}


def only(found: dict[str, Check]) -> Check:
    (check,) = found.values()
    return check


# ---- all of it ----


def test_where_all_is_well_it_says_so_and_changes_nothing(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    config = toml(tmp_path, "table", table)
    before = sorted(tmp_path.rglob("*"))
    assert cli.run_command(["doctor", str(config), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["failure"] == 0
    names = {check["name"] for check in told["checks"]}
    assert names >= {"python", "packages", "weights", "observations", "space", "clock", "memory", "prefect", "lock"}
    assert told["ok"] + told["warning"] == len(told["checks"])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_makes_exit_code_1_and_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://me:hidden@127.0.0.1:9/api")
    assert cli.run_command(["doctor", "--timeout", "1"]) == 1
    said = capsys.readouterr().out
    assert "FAILURE  prefect" in said
    assert "-> start the server" in said
    assert "hidden" not in said
    assert said.rstrip().endswith("1 failures")


def test_a_broken_configuration_is_a_failure_and_the_rest_is_looked_at(tmp_path: Path, table: Path) -> None:
    checks = {check.name: check for check in doctor.examine(toml(tmp_path, "table", table, resolution=0))}
    assert checks["configuration"].status == "failure"
    assert "resolution" in checks["configuration"].found
    assert checks["weights"].status == "ok"
    assert "observations" not in checks
    assert not (tmp_path / "out").exists()
    missing = doctor.examine(tmp_path / "none.toml")
    assert "none.toml: expected a TOML file" in missing[0].found


def test_a_check_that_breaks_stops_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "no meminfo")
    checks = {check.name: check for check in doctor.examine()}
    assert "the check itself broke: FileNotFoundError" in checks["memory"].found
    assert checks["clock"].status == "ok"


def test_it_is_fast(tmp_path: Path, out: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    config = toml(tmp_path, "table", table, out=str(out))
    doctor.examine(config)
    began = time.process_time()
    doctor.examine(config)
    assert time.process_time() - began < 3.0


# ---- environment ----


def test_wrong_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = metadata.version
    assert only(look(environment.packages, tmp_path)).status == "ok"
    monkeypatch.setattr(metadata, "version", lambda name: "2.1.0" if name == "sqlalchemy" else real(name))
    check = only(look(environment.packages, tmp_path))
    assert (check.status, check.found) == ("failure", "sqlalchemy: expected ==2.0.58; found 2.1.0")
    monkeypatch.setattr(metadata, "version", lambda name: "99.0" if name == "numpy" else real(name))
    check = only(look(environment.packages, tmp_path))
    assert check.status == "warning"
    assert "numpy 99.0 (tested: " in check.found


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["nobody-has-this>=1", "also-not; extra == 'dev'"])
    check = only(look(environment.packages, tmp_path))
    assert (check.status, check.found) == ("failure", "nobody-has-this: expected >=1; found none")


def test_another_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert only(look(environment.python, tmp_path)).status == "ok"
    monkeypatch.setattr(environment.sys, "version_info", (3, 13, 1, "final", 0))
    assert only(look(environment.python, tmp_path)).status == "failure"


def test_projections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(look(environment.projections, tmp_path)).status == "ok"
    beyond = SimpleNamespace(bbox=(169, 0, 171, 1))  # the horizon of a gnomonic map of 0 E
    elsewhere = SimpleNamespace(crs="+proj=gnom +lon_0=0", grid=lambda: beyond)
    assert "comes back as inf" in only(look(environment.projections, tmp_path, elsewhere)).found
    monkeypatch.setattr(pyproj.datadir, "get_data_dir", raising(pyproj.exceptions.DataDirError("no proj.db")))
    assert only(look(environment.projections, tmp_path)).found == "EPSG:3035: no proj.db"


def raising(error: Exception) -> Callable[..., None]:
    def function(*_: object) -> None:
        raise error

    return function


def test_nowhere_to_keep_compiled_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert only(look(environment.compiled_code, tmp_path)).status == "ok"
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/numba")
    assert only(look(environment.compiled_code, tmp_path)).status == "warning"


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"), "SHA-256 expected"),
        (lambda path: path.write_bytes(b"not weights"), "expected AQ-Net weights"),
        (lambda path: path.with_suffix(".json").unlink(), "expected AQ-Net weights with a .json beside them"),
        (lambda path: path.with_suffix(".json").write_text("{}"), "expected AQ-Net weights"),
    ],
)
def test_weights_that_are_not_whole(harm: Callable[[Path], object], found: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for end in (".safetensors", ".json"):
        shutil.copyfile(checkpoint.DEFAULT.with_suffix(end), path.with_suffix(end))
    config = SimpleNamespace(weights=path, outlook_hours=0)
    assert only(look(environment.weights, tmp_path, config)).status == "ok"
    harm(path)
    check = only(look(environment.weights, tmp_path, config))
    assert check.status == "failure"
    assert found in check.found


def test_weights_of_the_outlook_where_a_run_makes_one(tmp_path: Path) -> None:
    config = SimpleNamespace(weights=None, outlook_hours=24, outlook_weights=checkpoint.DEFAULT)
    found = look(environment.weights, tmp_path, config)
    assert found["weights"].status == "ok"
    assert "expected outlook weights" in found["outlook weights"].found


# ---- machine ----


def test_less_memory_than_the_last_run_took(tmp_path: Path) -> None:
    (tmp_path / "products").mkdir()
    for peak, status in ((100, "ok"), (machine._free_mib() / 1.2, "warning"), (1e9, "failure")):
        (tmp_path / "products" / "run.json").write_text(json.dumps({"stages": [{"peak_mib": peak}]}))
        check = only(look(machine.memory, tmp_path))
        assert check.status == status
        assert "the last run took" in check.found


def test_a_memory_limit_of_the_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**29}\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    assert machine._free_mib() == 512


def test_a_clock_that_is_behind_its_files(tmp_path: Path) -> None:
    assert only(look(machine.clock, tmp_path)).status == "ok"
    file = tmp_path / "cube"
    file.touch()
    os.utime(file, (time.time() + 3600,) * 2)
    check = only(look(machine.clock, tmp_path))
    assert check.status == "failure"
    assert str(file) in check.found


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1000.0, 1002.0])
    monkeypatch.setattr(machine.time, "time", lambda: next(ticks))
    assert "jumped by" in only(look(machine.clock, tmp_path)).found


def test_more_threads_than_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    assert only(look(machine.threads, tmp_path)).status == "warning"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert only(look(machine.threads, tmp_path)).status == "ok"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    check = only(look(machine.threads, tmp_path))
    assert "0.5 processors of" in check.found
    assert "OMP_NUM_THREADS=1" in check.advice


# ---- observations ----


def test_files_that_do_not_reach_the_period(tmp_path: Path) -> None:
    folder = tmp_path / "cnemc"
    folder.mkdir()
    for day in ("20190101", "20190102"):
        (folder / f"china_sites_{day}.csv").touch()
    (folder / "stations.csv").write_text("code,lon,lat\n1001A,116.3,39.9\n")
    config = {"source": "cnemc", "input": folder, "stations": None}

    def at(start: str, days: int) -> Check:
        first = np.datetime64(start, "h")
        times = {name: hour.item().replace(tzinfo=UTC) for name, hour in (("start", first), ("end", first + 24 * days))}
        return only(look(observations.files, tmp_path, SimpleNamespace(**config, **times)))

    assert at("2019-01-01T12", 1).status == "ok"
    assert at("2019-01-01T12", 2).status == "warning"
    late = at("2019-02-01", 1)
    assert late.status == "failure"
    assert "found files for 2018-12-31" in late.found


def test_a_store_with_a_file_lost_or_broken(tmp_path: Path, table: Path) -> None:
    path = tmp_path / "store"
    ingest.ingest(path, "table", table)
    config = SimpleNamespace(source="store", input=path)
    check = look(observations.store, tmp_path, config)["store"]
    assert check.status == "ok"
    assert "last hour 2019-01-02T23" in check.found
    with locked(path):
        assert f"process {os.getpid()} (" in look(observations.store, tmp_path, config)["store lock"].found
    next(path.glob("observations/**/*.parquet")).unlink()
    assert "are gone, such as observations/" in only(look(observations.store, tmp_path, config)).found
    (path / "manifest.json").write_text("{")
    assert "expected the manifest" in only(look(observations.store, tmp_path, config)).found
    shutil.rmtree(path)
    assert only(look(observations.store, tmp_path, config)).status == "failure"


def test_the_configuration_of_a_schedule_has_no_end_and_wants_new_hours(tmp_path: Path, table: Path) -> None:
    ingest.ingest(tmp_path / "store", "table", table)
    config = toml(tmp_path, "store", tmp_path / "store")
    config.write_text("\n".join(line for line in config.read_text().splitlines() if not line.startswith("end")))
    checks = {check.name: check for check in doctor.examine(config)}
    assert checks["configuration"].status == "ok"
    assert "2019-01-01T00 to now" in checks["configuration"].found
    assert checks["store"].status == "warning"
    assert "nothing new has come in" in checks["store"].advice


# ---- output folder and cube ----


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with (path.parent / f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB of its own; needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system, which we have not here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    assert only(look(cube.output_folder, small_disk)).status == "ok"
    with (small_disk / "filler").open("wb", 0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(b"0" * 4096 for _ in range(100))
    check = only(look(cube.output_folder, small_disk / "out"))
    assert check.status == "failure"
    assert "no space left" in check.found
    assert only(look(cube.space, small_disk)).status == "failure"


def test_a_disk_that_is_read_only(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "cannot be written" in only(look(cube.output_folder, small_disk)).found


@pytest.mark.parametrize("out", ["/proc/aqnet", "/dev/null"])
def test_a_folder_that_nobody_can_write(out: str) -> None:
    assert only(look(cube.output_folder, Path(out))).status == "failure"


def test_less_space_than_the_next_month_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = GRID.shape[0] * GRID.shape[1]
    needed = cells * 744 * cube.CELL_HOUR * cube.TIMES
    monkeypatch.setattr(cube, "LEAST", 1000)
    for free, status in ((needed - 1, "failure"), (2 * needed, "warning"), (4 * needed, "ok")):
        monkeypatch.setattr(cube.shutil, "disk_usage", lambda _, f=free: SimpleNamespace(free=f, total=5 * needed))
        check = only(look(cube.space, tmp_path, SimpleNamespace(grid=lambda: GRID)))
        assert check.status == status
        assert f"{cells:,} cells" in check.found


def test_the_estimate_of_space_is_above_what_a_cube_takes(out: Path) -> None:
    taken = sum(file.stat().st_size for file in (out / output.CUBE).rglob("*") if file.is_file())
    assert taken < GRID.shape[0] * GRID.shape[1] * 48 * cube.CELL_HOUR


def test_a_cube_that_is_whole(out: Path) -> None:
    found = look(cube.published, out)
    assert [check.status for check in found.values()] == ["ok", "ok"]
    assert "r2, published" in found["cube"].found
    assert "last hour 2019-01-02T23" in found["cube"].found
    assert only(look(cube.leftovers, out)).status == "ok"
    assert only(look(cube.lock, out)).status == "ok"


@pytest.mark.parametrize("folder", ["chunks", "snapshots", "manifests", "refs"])
def test_a_cube_that_lost_files(folder: str, out: Path) -> None:
    found = out / output.CUBE / folder
    if not found.is_dir():
        pytest.skip(f"this version of Icechunk keeps no folder {folder}")
    shutil.rmtree(found)
    check = look(cube.published, out)["cube"]
    assert check.status == "failure"
    assert "#restore" in check.advice


def test_a_cube_that_is_another_thing(tmp_path: Path) -> None:
    (tmp_path / output.CUBE).mkdir()
    assert "no cube here" in only(look(cube.published, tmp_path)).found
    assert only(look(cube.published, tmp_path / "elsewhere")).status == "ok"


def test_a_run_that_was_killed_as_it_published(out: Path) -> None:
    repo = repository.open_existing(out / output.CUBE)
    repo.delete_tag("r2")
    assert "not r1" in look(cube.published, out)["revisions"].found
    repo.create_tag("r3", repo.lookup_branch("main"))
    assert look(cube.published, out)["revisions"].found == "r2 is gone"


def test_a_run_that_was_killed_as_it_wrote(out: Path) -> None:
    start, end = (np.datetime64(NEW_YEAR + hours, "h") for hours in (48, 72))
    candidate = write.begin(out / output.CUBE, GRID, start, end, {"flow_run_id": "dead"})
    write.write_block(candidate, make_block(NEW_YEAR + 48))
    candidate.commit("half")
    assert "leftovers" not in look(cube.leftovers, out) or look(cube.leftovers, out)["leftovers"].status == "ok"
    candidate.close()
    check = look(cube.leftovers, out)["leftovers"]
    assert check.status == "warning"
    assert "candidate-dead" in check.found


def test_a_candidate_that_waits_for_a_person(out: Path) -> None:
    start, end = (np.datetime64(NEW_YEAR + hours, "h") for hours in (48, 72))
    with write.begin(out / output.CUBE, GRID, start, end, {"flow_run_id": "odd"}) as candidate:
        write.write_block(candidate, make_block(NEW_YEAR + 48))
        write.hold(candidate)
    check = look(cube.leftovers, out)["held candidate"]
    assert check.status == "warning"
    assert "aqnet accept odd" in check.advice


def test_who_holds_the_lock(out: Path) -> None:
    with locked(out / output.CUBE):
        check = only(look(cube.lock, out))
    assert check.status == "warning"
    assert f"held by process {os.getpid()} (" in check.found
    assert "python" in check.found
    assert only(look(cube.lock, out)).status == "ok"


# ---- network ----


@contextmanager
def answering(answers: dict[str, tuple[int, str]], date: float | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body = answers.get(self.path, (404, ""))
            self.send_response_only(code)
            self.send_header("Date", formatdate(time.time() if date is None else date, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body.encode())

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


CONFIG = SimpleNamespace(source="airnow")


def test_an_archive_that_answers_and_a_clock_that_drifts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for off, status in ((0, "ok"), (-3600, "failure")):
        with answering({"/": (200, "")}, time.time() + off) as address:
            monkeypatch.setitem(reach.ARCHIVES, "airnow", f"{address}/")
            found = look(reach.archive, tmp_path, CONFIG)
        assert found["archive"].status == "ok"
        assert found["clock drift"].status == status
    assert "s ahead of" in found["clock drift"].found


def test_an_archive_in_trouble_or_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering({"/": (503, "")}) as address:
        monkeypatch.setitem(reach.ARCHIVES, "airnow", f"{address}/")
        assert look(reach.archive, tmp_path, CONFIG)["archive"].status == "warning"
    assert "ConnectError" in look(reach.archive, tmp_path, CONFIG)["archive"].found
    assert look(reach.archive, tmp_path, SimpleNamespace(source="table")) == {}


@pytest.mark.parametrize(
    ("answers", "status", "found"),
    [
        ({"/api/health": (200, "true"), "/api/admin/version": (200, f'"{metadata.version("prefect")}"')}, "ok", "well"),
        ({"/api/health": (200, "true"), "/api/admin/version": (200, '"2.0.0"')}, "warning", "version 2.0.0"),
        ({"/api/health": (200, "false"), "/api/admin/version": (200, '"2.0.0"')}, "failure", "health is False"),
        ({"/api/health": (200, "<html>")}, "failure", "JSONDecodeError"),
        ({}, "failure", "404"),
    ],
)
def test_prefects_server(
    answers: dict[str, tuple[int, str]], status: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(answers) as address:
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        check = only(look(reach.prefect, tmp_path))
    assert check.status == status
    assert found in check.found


def test_prefects_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    check = only(look(reach.prefect, tmp_path))
    assert check.status == "failure"
    assert "prefect server start" in check.advice
    monkeypatch.delenv("PREFECT_API_URL")
    assert only(look(reach.prefect, tmp_path)).status == "ok"


def test_networks_that_can_be_fetched_have_an_archive() -> None:
    from pipeline.fetch import NETWORKS

    assert set(reach.ARCHIVES) == set(NETWORKS)
