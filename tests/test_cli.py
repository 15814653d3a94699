"""The command line: each bad input gives one line that names what and where; options reach what they are for."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline import cli, output
from pipeline.cube import reader
from pipeline.twin import example, simulate
from pipeline.twin.simulate import Simulation

Run = Callable[..., tuple[int, str, str]]

COMMANDS = tuple(cli.aqnet.commands)


@pytest.fixture
def aqnet(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command: exit code, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.run_command([str(word) for word in words])
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def options(small_simulation: Simulation, weights: Path, tmp_path: Path) -> dict[str, object]:
    """Options of a run that works: six hours of the small simulation."""
    return {
        "--input": small_simulation.archive,
        "--stations": small_simulation.stations,
        "--start": "2019-12-01",
        "--end": "2019-12-01T06:00",
        "--bbox": "110 36 113 39",
        "--resolution": 0.5,
        "--weights": weights,
        "--out": tmp_path / "out",
    }


def words(options: dict[str, object]) -> list[str]:
    return [word for name, value in options.items() for word in (name, *str(value).split())]


def error_line(err: str) -> str:
    """The one error line; what else is on standard error are log lines."""
    lines = [line for line in err.splitlines() if " INFO " not in line and " WARNING " not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith("aqnet: error: ")
    return lines[0]


# ---- help ----


def test_help_answers_at_once_and_names_every_command() -> None:
    began = time.perf_counter()
    code = "from pipeline.cli import main; main(['--help'])"
    found = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - began < 5  # a loaded machine; alone it takes 0.3 s, since nothing below is imported
    for heavy in ("numpy", "pandas", "torch", "xarray", "prefect", "pydantic"):
        assert f"| {heavy}\n" not in found.stderr.replace(" ", "").replace("|", "| ")
    for command in COMMANDS:
        assert f"\n  {command} " in found.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(aqnet: Run, command: str) -> None:
    code, out, _ = aqnet(command, "--help")
    assert code == 0
    assert out.startswith(f"Usage: aqnet {command} ")
    assert "no-prefect" not in out


def test_version(aqnet: Run) -> None:
    assert aqnet("--version") == (0, "aqnet, version 0.1.0\n", "")


# ---- bad input ----


def test_unknown_option_and_value(aqnet: Run, options: dict[str, object]) -> None:
    code, _, err = aqnet("run", "--resolutoin", "1")
    assert code == 2
    assert "No such option '--resolutoin'" in error_line(err)
    code, _, err = aqnet("run", *words(options | {"--truncated": "maybe"}))
    assert code == 2
    assert "'--truncated': 'maybe' is not one of" in error_line(err)
    code, _, err = aqnet("run", *words(options | {"--source": "nowhere"}))
    assert code == 1
    assert "--source: expected one of airnow, aqs, cnemc, eea" in error_line(err)


def test_end_before_start(aqnet: Run, options: dict[str, object]) -> None:
    code, _, err = aqnet("run", *words(options | {"--end": "2019-11-30"}))
    assert code == 1
    assert error_line(err).endswith("end: expected an hour after start (2019-12-01T00); found 2019-11-30T00")


def test_unwritable_output(aqnet: Run, options: dict[str, object], tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    for out in (blocked, "/proc/out"):
        code, _, err = aqnet("run", *words(options | {"--out": out}))
        assert code == 1
        assert f"out: expected a folder that can be written; found {out}: " in error_line(err)


def test_missing_configuration_file(aqnet: Run) -> None:
    code, _, err = aqnet("run", "none.toml")
    assert code == 1
    assert "none.toml: expected a TOML file that can be read" in error_line(err)


def test_bbox_with_no_station(prefect_harness: None, aqnet: Run, options: dict[str, object], tmp_path: Path) -> None:
    code, _, err = aqnet("run", *words(options | {"--bbox": "-10 40 -9 41"}))
    assert code == 1
    assert "expected stations inside bbox (-10.0, 40.0, -9.0, 41.0)" in error_line(err)
    assert not (tmp_path / "out" / output.PRODUCTS).exists()


def test_empty_zip(prefect_harness: None, aqnet: Run, options: dict[str, object], tmp_path: Path) -> None:
    empty = tmp_path / "china_sites_201912.zip"
    with zipfile.ZipFile(empty, "w"):
        pass
    code, _, err = aqnet("run", *words(options | {"--input": empty}))
    assert code == 1
    assert str(empty) in error_line(err)


def test_truncated_csv(
    prefect_harness: None, aqnet: Run, options: dict[str, object], small_simulation: Simulation, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    with zipfile.ZipFile(small_simulation.archive / "china_sites_201912.zip") as archive:
        archive.extractall(cut)
    file = cut / "china_sites_20191201.csv"
    text = file.read_text()
    file.write_text(text[: len(text) // 2].rsplit(",", 3)[0])
    code, _, err = aqnet("run", *words(options | {"--input": cut}))
    assert code == 1
    assert "china_sites_20191201.csv" in error_line(err)
    assert "line" in error_line(err)


def test_station_without_coordinates(
    prefect_harness: None, aqnet: Run, options: dict[str, object], small_simulation: Simulation, tmp_path: Path
) -> None:
    listed = pd.read_csv(small_simulation.stations, dtype={"code": str})
    short = tmp_path / "stations.csv"
    listed.loc[0, "lon"] = np.nan
    listed.to_csv(short, index=False)
    code, _, err = aqnet("run", *words(options | {"--stations": short}))
    assert code == 1
    assert listed["code"][0] in error_line(err)
    assert str(short) in error_line(err)


def test_weights_that_are_none(prefect_harness: None, aqnet: Run, options: dict[str, object], tmp_path: Path) -> None:
    wrong = tmp_path / "weights.safetensors"
    wrong.write_text("no weights")
    code, _, err = aqnet("run", *words(options | {"--weights": wrong}))
    assert code == 1
    assert f"{wrong}: expected AQ-Net weights" in error_line(err)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_training_and_evaluation_look_for_their_files(aqnet: Run, command: str, tmp_path: Path) -> None:
    files = ["--input", tmp_path, "--stations", tmp_path / "none.csv", "--splits", tmp_path, "--out", tmp_path]
    code, _, err = aqnet(command, *files)
    assert code == 1
    assert f"found nothing at {tmp_path / 'none.csv'}" in error_line(err)


# ---- interruptions and bugs ----


def test_interrupt_and_bug(aqnet: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(error: BaseException) -> None:
        def simulated(*_: object) -> None:
            raise error

        monkeypatch.setattr(simulate, "simulate", simulated)

    fail(KeyboardInterrupt())
    assert aqnet("simulate", "--out", tmp_path)[0] == 130
    fail(ZeroDivisionError("by\nzero"))
    code, _, err = aqnet("simulate", "--out", tmp_path)
    assert code == 70
    assert err.strip() == (
        "aqnet: this is a bug: ZeroDivisionError: by zero; `aqnet --debug COMMAND ...` shows the traceback"
    )
    code, _, err = aqnet("--debug", "simulate", "--out", tmp_path)
    assert code == 70
    assert "Traceback (most recent call last)" in err


def test_a_service_managers_signal_ends_as_an_interrupt_does(tmp_path: Path) -> None:
    code = f"from pipeline.cli import main; main(['simulate', '--days', '60', '--out', {str(tmp_path)!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "SIMULATED data" in process.stderr.readline()
        process.terminate()
        assert process.stderr.read() == "aqnet: interrupted; nothing was published\n"
    assert process.returncode == 130
    assert not (tmp_path / "truth.nc").exists()


def test_logging_is_put_back(aqnet: Run, tmp_path: Path) -> None:
    logger = logging.getLogger("aqnet")
    before = (logger.level, logger.propagate, list(logger.handlers))
    aqnet("export", "--cube", tmp_path, "--format", "zarr", "--out", tmp_path / "zarr")
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


# ---- what works ----


def test_run_from_a_file_then_export(
    prefect_harness: None, aqnet: Run, options: dict[str, object], tmp_path: Path
) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text("resolution = 9.0\ndomain = 'tiny'\n")
    code, out, err = aqnet("run", toml, "--json", *words(options))
    assert code == 0, err
    found = json.loads(out)
    assert found["revision"] == "r1"
    assert found["config"]["resolution"] == 0.5
    assert all(Path(path).exists() for path in found["files"].values())
    assert any("pm25_tiny_aqnet_interim" in path for path in found["files"].values())
    assert "INFO analysed 6 of 6 hours" in err

    cube = tmp_path / "out" / output.CUBE
    assert reader.open_cube(cube).sizes["lat"] == 7
    code, out, _ = aqnet(
        "export", "--cube", cube, "--format", "netcdf", "--out", tmp_path / "nc", "--end", "2019-12-01T03"
    )
    assert code == 0
    assert Path(out.strip()).name == "pm25_region_aqnet_interim_v0.1.0_hourly_20191201-20191201.nc"
    code, _, err = aqnet("export", "--cube", cube, "--format", "netcdf", "--stream", "final", "--out", tmp_path / "f")
    assert code == 1
    assert "the cube holds no final hour" in err
    code, out, _ = aqnet(
        "export", "--cube", cube, "--format", "zarr", "--out", tmp_path / "z", "--bbox", 110, 36, 111, 37
    )
    assert code == 0
    assert (tmp_path / "z" / "zarr.json").exists()


def test_simulate(aqnet: Run, tmp_path: Path) -> None:
    small = ("--days", 1, "--bbox", 110, 36, 111, 37, "--n-stations", 3)
    code, out, _ = aqnet("simulate", "--out", tmp_path, *small)
    assert code == 0
    assert out.startswith("SIMULATED")
    assert simulate.read_truth(tmp_path / "truth.nc").sizes["time"] == 24


def test_estimate(aqnet: Run, small_simulation: Simulation, weights: Path, tmp_path: Path) -> None:
    rng, hours = np.random.default_rng(0), pd.date_range("2019-12-01", periods=6, freq="h")
    listed = pd.read_csv(small_simulation.stations)
    table = pd.DataFrame(
        {
            "time": np.repeat(hours, len(listed)),
            "station": np.tile("test:" + listed["code"], len(hours)),
            "lon": np.tile(listed["lon"], len(hours)),
            "lat": np.tile(listed["lat"], len(hours)),
            "pm2p5": rng.uniform(40, 60, len(hours) * len(listed)).round(1),
        }
    )
    table.to_csv(tmp_path / "observed.csv", index=False)
    pd.DataFrame({"station": ["home"], "lon": [111.5], "lat": [37.5]}).to_csv(tmp_path / "points.csv", index=False)
    files = ("--input", tmp_path / "observed.csv", "--points", tmp_path / "points.csv", "--output", tmp_path / "e.csv")
    code, _, err = aqnet("estimate", *files, "--start", "2019-12-01T04", "--end", "2019-12-01T06", "--weights", weights)
    assert code == 0, err
    found = pd.read_csv(tmp_path / "e.csv")
    assert list(found["station"]) == ["home", "home"]
    assert (found["pm2p5_p05"] < found["pm2p5_p50"]).all()
    assert found["pm2p5_p50"].between(30, 100).all()  # the network is untrained

    code, _, err = aqnet("estimate", *files, "--start", "2019-12-02", "--end", "2019-12-01", "--weights", weights)
    assert code == 1
    assert error_line(err).endswith("--end: expected an hour after --start (2019-12-02T00); found 2019-12-01T00")


def test_embedded_default_only_when_nothing_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AQNET_INPUT", raising=False)
    nothing = {"input": None, "start": None, "out": None}
    assert example.wanted(None, nothing)
    assert example.wanted(None, nothing | {"out": Path("x")})
    assert not example.wanted(Path("run.toml"), nothing)
    assert not example.wanted(None, nothing | {"start": "2019-12-01"})
    monkeypatch.setenv("AQNET_INPUT", "x")
    assert not example.wanted(None, nothing)


def test_embedded_default(
    prefect_harness: None, aqnet: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = simulate.simulate

    def small(out: Path, days: int) -> Simulation:
        return real(out, days=1, bbox=(110.0, 36.0, 112.0, 38.0), n_stations=30, truth_resolution=0.1)

    monkeypatch.setattr(simulate, "simulate", small)
    monkeypatch.setenv("AQNET_WEIGHTS", str(weights))
    code, out, err = aqnet("run", "--out", tmp_path)
    assert code == 0, err
    assert "SIMULATED data: scores against the simulated truth" in out
    for method in ("AQ-Net", "Inverse distance", "Kriging"):
        assert f"| {method} |" in out
    assert (tmp_path / example.PICTURE).stat().st_size > 10_000
    assert "SIMULATED" in reader.open_cube(tmp_path / output.CUBE).attrs["title"]


# ---- observation store ----


def test_ingest_and_ledger(aqnet: Run, tmp_path: Path) -> None:
    header, store = "time,station,lon,lat,pm2p5\n", tmp_path / "store"
    (tmp_path / "a.csv").write_text(f"{header}2019-12-10T03,x:1,10,50,7\n2019-12-10T04,x:1,10,50,8\n")
    (tmp_path / "b.csv").write_text(f"{header}2019-12-10T04,x:1,10,50,9\n")
    for name, published in (("a", "2020-01-01"), ("b", "2020-01-02T10:30:00+08:00")):
        words = ("ingest", "table", "--input", tmp_path / f"{name}.csv", "--store", store, "--published", published)
        code, out, err = aqnet(*words)
        assert code == 0, err
    assert "ingest 2: 1 files put in, 0 there already; 1 rows" in out
    assert "1 hours changed: values 0 added, 1 changed, 0 withdrawn" in out
    code, out, _ = aqnet("ledger", "--store", store, "--since", "1")
    assert out == (
        "1 hours changed after ingest 1\n"
        "  table 2019-12-10T04 to 2019-12-10T05: values 0 added, 1 changed, 0 withdrawn\n"
    )
    code, out, _ = aqnet("ledger", "--store", store, "--since", "1", "--json")
    assert json.loads(out)[0]["time"] == "2019-12-10T04:00:00Z"
    code, out, _ = aqnet("ledger", "--store", store, "--since", "2")
    assert out == "No hour changed after ingest 2\n"
    code, out, _ = aqnet(*words, "--json")
    assert json.loads(out)["known"] == 1


def test_ingest_errors_are_one_line(aqnet: Run, tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text("time,station,lon,lat,pm2p5\n2019-12-10T03,x:1,10,50,7\n")
    (tmp_path / "tad.csv").write_text("time,station,lon,lat,pm2p5\n2019-12-10T03,x:1,10,50,low\n")
    words = ("ingest", "table", "--input", tmp_path, "--store", tmp_path / "store")
    code, _, err = aqnet(*words)
    assert code == 1
    assert "tad.csv, line 2, column 'pm2p5': expected a number; found 'low'" in error_line(err)
    code, out, err = aqnet(*words, "--keep-going")
    assert code == 1
    assert "1 files put in" in out
    assert "1 files were left out; the first: " in err
    code, _, err = aqnet("ingest", "nowhere", "--input", tmp_path, "--store", tmp_path / "store")
    assert "source: expected one of airnow" in error_line(err)
    code, _, err = aqnet("ingest", "table", "--input", tmp_path / "no", "--store", tmp_path / "store")
    assert "expected a file or folder that exists" in error_line(err)
    code, _, err = aqnet(*words, "--published", "soon")
    assert "--published: expected an ISO time" in error_line(err)
    code, _, err = aqnet("ledger", "--store", tmp_path / "store")
    assert "expected one of --cube and --since; found neither" in error_line(err)
    code, _, err = aqnet("ledger", "--store", tmp_path / "no", "--since", "0")
    assert "expected an observation store" in error_line(err)
