"""The cube of record: whole revisions or nothing, the same cube however a period was cut, killed or repeated."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.contract import FIELDS, check_cube
from pipeline.cube import layout, reader, write
from pipeline.errors import ProductError
from pipeline.grid import Grid

GRID = Grid((119, 36, 121.0, 38), 0.25)
DAY = 24
NEW_YEAR = layout.to_hours("2019-01-01")


def make_block(first: int, count: int = DAY, seed: int = 0, grid: Grid = GRID) -> xr.Dataset:
    """Hours of fields drawn from (seed, hour), so that an hour's values do not depend on how a run was cut."""
    rngs = [np.random.default_rng([seed, hour]) for hour in range(first, first + count)]
    mean = np.stack([rng.gamma(2, 30, grid.shape) for rng in rngs])
    values = {"pm2p5": mean, "pm2p5_p05": mean * 0.4, "pm2p5_p50": mean * 0.9, "pm2p5_p95": mean * 2.2}
    values = {name: np.where(grid.land, value, np.nan) for name, value in values.items()}
    values["nearest_observation_distance"] = mean + 5
    values["quality_flag"] = np.broadcast_to(~grid.land, mean.shape)
    values |= {"stream": np.zeros(count), "revision": np.zeros(count), "observation_count": np.full(count, 7)}
    hours = np.arange(first, first + count).astype("datetime64[h]").astype("datetime64[ns]")
    return xr.Dataset(
        {spec.name: (spec.dims(grid.spatial), values[spec.name].astype(spec.dtype)) for spec in FIELDS},
        coords={"time": hours, grid.spatial[0]: grid.y, grid.spatial[1]: grid.x},
    )


def run(path: Path, first: int, last: int, seed: int = 0, grid: Grid = GRID) -> str | None:
    """One run for the hours [first, last): a block a UTC day, a commit a block, publication."""
    with write.begin(path, grid, np.datetime64(first, "h"), np.datetime64(last, "h"), {}) as candidate:
        hour = first
        while hour < last:
            count = min(DAY - hour % DAY, last - hour)
            write.write_block(candidate, make_block(hour, count, seed, grid))
            candidate.commit(f"hours from {hour}")
            hour += count
        return write.publish(candidate)


def assert_same_cube(one: xr.Dataset, other: xr.Dataset, *, revisions: bool = True) -> None:
    drop = [] if revisions else ["revision"]
    xr.testing.assert_equal(one.load().drop_vars(drop), other.load().drop_vars(drop))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "cube.icechunk"


def test_what_is_written_is_what_is_read(path: Path) -> None:
    assert run(path, NEW_YEAR, NEW_YEAR + 48) == "r1"
    cube = check_cube(reader.open_cube(path).load())
    expected = xr.concat([make_block(NEW_YEAR), make_block(NEW_YEAR + DAY)], "time")
    for spec in FIELDS:
        if spec.name == "revision":
            assert (cube[spec.name] == 1).all()
        elif spec.dtype == "float32":
            np.testing.assert_array_equal(cube[spec.name], write.bitround(expected[spec.name].values))
            np.testing.assert_allclose(cube[spec.name], expected[spec.name], rtol=2.0**-10)
        else:
            np.testing.assert_array_equal(cube[spec.name], expected[spec.name])
        assert cube[spec.name].dtype == spec.dtype
    np.testing.assert_array_equal(cube["lat"], GRID.lat)


def test_hours_never_produced_are_marked(path: Path) -> None:
    run(path, NEW_YEAR + 5, NEW_YEAR + 30)
    cube = reader.open_cube(path).load()
    assert cube.sizes["time"] == 48
    assert cube["time"].values[0] == np.datetime64("2019-01-01")
    produced = (np.arange(48) >= 5) & (np.arange(48) < 30)
    np.testing.assert_array_equal(cube["stream"].values >= 0, produced)
    for name, fill in layout.FILL.items():
        assert (cube[name].values[~produced] == fill).all()
        assert (cube[name].values[produced] != fill).all()
    assert np.isnan(cube["pm2p5"].values[~produced]).all()
    assert np.isfinite(cube["nearest_observation_distance"].values[produced]).all()
    assert cube.attrs["time_coverage_start"] == "2019-01-01T05:00:00Z"
    assert cube.attrs["time_coverage_end"] == "2019-01-02T06:00:00Z"


def test_the_same_run_twice_publishes_nothing(path: Path) -> None:
    run(path, NEW_YEAR, NEW_YEAR + 30)
    first = reader.open_cube(path).load()
    assert run(path, NEW_YEAR, NEW_YEAR + 30) is None
    second = reader.open_cube(path).load()
    xr.testing.assert_identical(first, second)
    assert [entry["revision"] for entry in reader.history(path)] == ["r1"]


def test_only_hours_that_differ_gain_a_revision(path: Path) -> None:
    run(path, NEW_YEAR, NEW_YEAR + 48)
    assert run(path, NEW_YEAR + 30, NEW_YEAR + 36, seed=1) == "r2"
    revision = reader.open_cube(path)["revision"].values
    assert revision.tolist() == [1] * 30 + [2] * 6 + [1] * 12
    assert (reader.open_cube(path, "r1")["revision"].values == 1).all()


def test_short_runs_and_one_long_run_make_the_same_cube(path: Path, tmp_path: Path) -> None:
    for first, last in ((0, 10), (10, 24), (24, 50), (72, 96), (50, 72)):
        run(path, NEW_YEAR + first, NEW_YEAR + last)
    run(tmp_path / "long.icechunk", NEW_YEAR, NEW_YEAR + 96)
    assert_same_cube(reader.open_cube(path), reader.open_cube(tmp_path / "long.icechunk"))


def test_a_projected_cube(path: Path) -> None:
    grid = Grid((119, 36, 121, 38), 50_000, "EPSG:32650")
    run(path, NEW_YEAR, NEW_YEAR + 24, grid=grid)
    cube = check_cube(reader.open_cube(path).load())
    assert cube["pm2p5"].dims == ("time", "y", "x")
    np.testing.assert_array_equal(cube["lat"], grid.lat)
    assert run(path, NEW_YEAR, NEW_YEAR + 24, grid=grid) is None


def test_a_reader_sees_whole_revisions_only(path: Path) -> None:
    def constant(value: float) -> None:
        with write.begin(path, GRID, "2019-01-01", "2019-01-03", {}) as candidate:
            for first in (NEW_YEAR, NEW_YEAR + DAY):
                block = make_block(first)
                for name in ("pm2p5", "pm2p5_p05", "pm2p5_p50", "pm2p5_p95"):
                    block[name] = xr.full_like(block[name], value)
                write.write_block(candidate, block)
                candidate.commit("half")
            write.publish(candidate)

    seen: list[tuple[str, set[float]]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            cube = reader.open_cube(path)
            seen.append((cube.attrs["revision"], set(np.unique(cube["pm2p5"].values))))

    constant(1)
    watcher = threading.Thread(target=read)
    watcher.start()
    try:
        for value in range(2, 8):
            constant(value)
    finally:
        done.set()
        watcher.join()
    assert len(seen) > 5
    assert all(values == {float(revision[1:])} for revision, values in seen), seen


KILLED = """
import os, shutil, signal, sys, icechunk, zarr
from pathlib import Path
from test_write import GRID, NEW_YEAR, run

GRID.land  # read the mask once, before the forks

def die_at(step):
    calls = [0]
    def counted(owner, name):
        kept = getattr(owner, name)
        def wrapper(*args, **kwargs):
            for moment in ("before", "after"):
                calls[0] += 1
                if calls[0] == step or step == f"{moment} {name}":
                    os.kill(os.getpid(), signal.SIGKILL)
                if moment == "before":
                    result = kept(*args, **kwargs)
            return result
        setattr(owner, name, wrapper)
    counted(zarr.Array, "__setitem__")
    counted(zarr.Array, "resize")
    counted(icechunk.Session, "commit")
    for name in ("create_branch", "reset_branch", "create_tag", "delete_branch"):
        counted(icechunk.Repository, name)

def child(path, step):
    pid = os.fork()
    if pid == 0:
        if step is None:
            run(path, NEW_YEAR, NEW_YEAR + 48)
        else:
            if isinstance(step, float):
                signal.setitimer(signal.ITIMER_REAL, step)
            die_at(step)
            run(path, NEW_YEAR + 30, NEW_YEAR + 60, seed=1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

out = Path(sys.argv[1])
assert child(out / "first", None) == 0
for number, step in enumerate(eval(sys.argv[2])):
    shutil.copytree(out / "first", out / str(number))
    print(child(out / str(number), step), flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_revision_and_the_next_run_repairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(20190101)
    steps = [
        "after create_branch",
        "before commit",
        "after commit",
        "before reset_branch",
        "after reset_branch",
        "after create_tag",
        "after delete_branch",
        *rng.integers(3, 60, 3).tolist(),
        *rng.uniform(0.01, 0.3, 3).tolist(),
    ]
    here = Path(__file__).resolve().parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path), repr(steps)]
    codes = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert [code for code in codes if code not in ("-9", "-14", "0")] == []
    assert codes.count("-9") >= 9

    run(tmp_path / "reference", NEW_YEAR, NEW_YEAR + 48)
    before = reader.open_cube(tmp_path / "reference").load()
    run(tmp_path / "reference", NEW_YEAR + 30, NEW_YEAR + 60, seed=1)
    after = reader.open_cube(tmp_path / "reference").load()
    for number, step in enumerate(steps):
        found = reader.open_cube(tmp_path / str(number)).load()
        assert found.equals(before) or found.equals(after), f"killed {step}"
        run(tmp_path / str(number), NEW_YEAR + 30, NEW_YEAR + 60, seed=1)
        assert_same_cube(reader.open_cube(tmp_path / str(number)), after)
        assert [entry["revision"] for entry in reader.history(tmp_path / str(number))] == ["r1", "r2"], f"killed {step}"


def test_a_failed_candidate_stays_unseen_and_is_dropped_by_the_next_run(path: Path) -> None:
    run(path, NEW_YEAR, NEW_YEAR + 24)
    with write.begin(path, GRID, "2019-01-01", "2019-01-02", {"flow_run_id": "bad"}) as candidate:
        write.write_block(candidate, make_block(NEW_YEAR, seed=9))
        candidate.commit("for inspection")
        assert (candidate.open()["revision"].values == 2).all()
    assert "candidate-bad" in candidate.repo.list_branches()
    assert (reader.open_cube(path)["revision"].values == 1).all()
    run(path, NEW_YEAR, NEW_YEAR + 24, seed=2)
    assert candidate.repo.list_branches() == {"main"}


def test_one_run_writes_at_a_time(path: Path) -> None:
    with (
        write.begin(path, GRID, "2019-01-01", "2019-01-02", {}),
        pytest.raises(ProductError, match="another run is writing this cube"),
    ):
        write.begin(path, GRID, "2019-01-01", "2019-01-02", {})
    write.begin(path, GRID, "2019-01-01", "2019-01-02", {}).close()


def test_a_candidate_does_not_publish_over_a_main_that_moved(path: Path) -> None:
    run(path, NEW_YEAR, NEW_YEAR + 24)
    with write.begin(path, GRID, "2019-01-01", "2019-01-02", {}) as candidate:
        write.write_block(candidate, make_block(NEW_YEAR, seed=3))
        session = candidate.repo.writable_session("main")
        zarr.open_group(session.store, mode="a").attrs["title"] = "someone else"
        session.commit("someone else")
        with pytest.raises(ProductError, match=r"run .*: main moved since the candidate began"):
            write.publish(candidate)
    assert (reader.open_cube(path)["revision"].values == 1).all()


@pytest.mark.parametrize(
    ("grid", "start", "message"),
    [
        (Grid((119, 36, 121.0, 38), 0.5), "2019-01-02", "cube is on another grid"),
        (Grid((119.25, 36, 121.25, 38), 0.25), "2019-01-02", "cube is on another grid"),
        (Grid((119, 36, 121.0, 38), 0.25, "EPSG:4490"), "2019-01-02", "cube is on another grid .'crs'"),
        (GRID, "2018-12-31", "begins at 2019-01-01T00 and cannot grow backwards; the run starts at 2018-12-31T00"),
        (GRID, "2019-03-01", "must be before its end"),
    ],
)
def test_a_run_that_does_not_fit_the_cube_is_refused(path: Path, grid: Grid, start: str, message: str) -> None:
    run(path, NEW_YEAR, NEW_YEAR + 24)
    with pytest.raises(ProductError, match=message):
        write.begin(path, grid, start, "2019-02-01", {})
    assert run(path, NEW_YEAR, NEW_YEAR + 24) is None  # the lock was given back


def test_a_block_elsewhere_than_the_candidate_is_refused(path: Path) -> None:
    with write.begin(path, GRID, "2019-01-01", "2019-01-02", {}) as candidate:
        for block in (make_block(NEW_YEAR + DAY), make_block(NEW_YEAR - 2, 4), make_block(NEW_YEAR - 1, 1)):
            with pytest.raises(ProductError, match="coordinate 'time' must be hours of one UTC day within the run"):
                write.write_block(candidate, block)
        with pytest.raises(ProductError, match="coordinate 'lon' is not the grid's"):
            write.write_block(candidate, make_block(NEW_YEAR).assign_coords(lon=GRID.lon + 1))
        with pytest.raises(ProductError, match="variable 'pm2p5' is missing"):
            write.write_block(candidate, make_block(NEW_YEAR).drop_vars("pm2p5"))


def test_there_is_nothing_to_open(path: Path) -> None:
    with pytest.raises(ProductError, match="no cube here"):
        reader.open_cube(path)
    write.begin(path, GRID, "2019-01-01", "2019-01-02", {}).close()
    with pytest.raises(ProductError, match="nothing is published yet"):
        reader.open_cube(path)
    run(path, NEW_YEAR, NEW_YEAR + 24)
    with pytest.raises(ProductError, match="no revision 'r7'; published: r1"):
        reader.open_cube(path, "r7")


def test_the_run_adds_its_own_attributes(path: Path) -> None:
    attrs = {"title": "A trial", "weights_digest": "ab12", "flow_run_id": "f00"}
    start, end = datetime(2019, 1, 1, tzinfo=UTC), datetime(2019, 1, 2, tzinfo=UTC)
    with write.begin(path, GRID, start, end, attrs) as candidate:
        write.write_block(candidate, make_block(NEW_YEAR))
        write.publish(candidate)
    found = reader.open_cube(path).attrs
    assert {name: found[name] for name in attrs} == attrs
    assert found["Conventions"] == "CF-1.11, ACDD-1.3"
    assert found["revision"] == "r1"


def test_shards_are_a_day_by_the_whole_of_a_small_grid(path: Path) -> None:
    grid = Grid((105, 32, 125, 45), 0.1)
    with write.begin(path, grid, "2019-01-01", "2019-01-02", {}) as candidate:
        field = candidate.group["pm2p5"]
        assert (field.chunks, field.shards) == ((24, 64, 64), (24, 192, 256))
    assert candidate.group["time"].attrs["units_metadata"] == "leap_seconds: utc"


@given(arrays("float32", 20, elements=st.floats(width=32)), st.integers(1, 22))
def test_bitround_is_the_nearest_value_of_so_many_bits(values: np.ndarray, keepbits: int) -> None:
    """Oracle: np.rint on the mantissa in float64, where halving and scaling by powers of two are exact."""
    found = write.bitround(values, keepbits)
    normal = np.isfinite(values) & (np.abs(values) > np.finfo("float32").tiny * 2)
    mantissa, exponent = np.frexp(values[normal].astype("float64"))
    expected = np.ldexp(np.rint(mantissa * 2.0 ** (keepbits + 1)) / 2.0 ** (keepbits + 1), exponent)
    fits = np.abs(expected) <= np.finfo("float32").max
    np.testing.assert_array_equal(found[normal][fits], expected[fits].astype("float32"))
    np.testing.assert_array_equal(found[~np.isfinite(values)], values[~np.isfinite(values)])
    np.testing.assert_array_equal(write.bitround(found, keepbits), found)


def test_bitround_agrees_with_numcodecs() -> None:
    from numcodecs.bitround import BitRound

    values = np.random.default_rng(1).gamma(2, 30, 10_000).astype("float32")
    codec = BitRound(keepbits=9)
    np.testing.assert_array_equal(write.bitround(values), codec.decode(codec.encode(values.copy())).view("float32"))


def test_the_history_names_the_newest_revisions_alone() -> None:
    lines = ""
    for number in range(1, 2 * write.HISTORY_LINES):
        lines = write._history(f"revision r{number}", lines.splitlines())
    *named, rest = lines.splitlines()
    assert named == [f"revision r{2 * write.HISTORY_LINES - 1 - n}" for n in range(write.HISTORY_LINES)]
    assert rest == "earlier revisions: aqnet history"
