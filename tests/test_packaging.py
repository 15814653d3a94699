"""What users install: the wheel holds all of it, versions agree, the pinned set is the installed and a sound one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "model", "flows")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def command(*words: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(words, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def normal(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out)
    (found,) = out.glob("*.whl")
    return found


def test_wheel_holds_every_module_and_the_weights(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    kinds = (".py", ".html", ".safetensors", ".json")
    expected = {str(path.relative_to(ROOT)) for path in sources if path.suffix in kinds}
    assert expected <= held
    assert {name.split("/")[0] for name in held} == set(PACKAGES)
    for weights in ("aqnet", "evaluation/aqnet-seed0", "outlook/outlook-seed0"):
        assert {f"model/weights/{weights}.safetensors", f"model/weights/{weights}.json"} <= held


def test_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command(sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", target, wheel)
    here = {"PYTHONPATH": str(target)}
    assert (
        command(target / "bin" / "aqnet", "--version", cwd=tmp_path, **here) == f"aqnet, version {PROJECT['version']}\n"
    )
    places = "import pipeline, model, flows; print(pipeline.__file__, model.__file__, flows.__file__)"
    found = command(sys.executable, "-c", places, cwd=tmp_path, **here).split()
    assert found == [str(target / package / "__init__.py") for package in PACKAGES]


def test_versions_agree() -> None:
    assert version("aqnet-reanalysis") == PROJECT["version"]
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_docker_is_no_package() -> None:
    assert not list((ROOT / "docker").rglob("*.py"))  # it would shadow the `docker` that Prefect imports


def test_pinned_set_is_the_installed_one() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    installed = {normal(found.name): found.version.removesuffix("+cpu") for found in distributions()}
    # A package index that has no CPU build of torch gives one that brings the CUDA libraries along.
    others = re.compile(r"pip|aqnet-reanalysis|(nvidia|cuda)-.*|triton")
    assert {normal(name): pin for name, pin in pinned.items()} == {
        name: found for name, found in installed.items() if not others.fullmatch(name)
    }


def test_pinned_set_is_sound() -> None:
    assert command(sys.executable, "-m", "pip", "check").strip().endswith("No broken requirements found.")


@pytest.mark.parametrize("pin", ["prefect==3.8.8", "fastapi==0.145.0", "sqlalchemy==2.0.58"])
def test_load_bearing_pins(pin: str) -> None:
    assert pin in PROJECT["dependencies"]
    assert pin.lower() in (ROOT / "constraints.txt").read_text().lower().splitlines()


def test_every_requirement_is_pinned() -> None:
    pinned = {normal(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    required = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert {normal(re.split(r"[\[=<>~]", line)[0]) for line in required} <= pinned
