"""Lineage: the same inputs give the same digests, and nothing tells the machine."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

import netCDF4
import pytest

import pipeline
from pipeline import output, provenance
from pipeline.cube import reader
from pipeline.offer import publication
from pipeline.products import export
from tests.offer import add_run
from tests.offer import lineage as lineage_of

INPUTS = {"b.csv": "22", "a.csv": "11"}


def test_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert provenance.digest_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_the_input_digest_does_not_depend_on_order() -> None:
    one = provenance.lineage("c", INPUTS, "w", "run")
    other = provenance.lineage("c", dict(sorted(INPUTS.items())), "w", "run")
    assert one["input_digest"] == other["input_digest"] == hashlib.sha256(b"11  a.csv\n22  b.csv\n").hexdigest()
    assert one["input_digest"] != provenance.lineage("c", INPUTS | {"a.csv": "12"}, "w", "run")["input_digest"]
    assert one["input_count"] == "2"


def test_lineage_names_code_packages_and_run() -> None:
    found = provenance.lineage("c", INPUTS, "w", "run-7")
    assert (found["config_digest"], found["weights_digest"], found["flow_run_id"]) == ("c", "w", "run-7")
    assert "zarr 3." in found["package_versions"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["date_created"])
    assert all(isinstance(value, str) and "/" not in value for value in found.values())


def test_code_version_is_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pipeline"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(pipeline, "__file__", str(package / "__init__.py"))
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert provenance.code_version() == f"git {head}"
    (package / "__init__.py").write_text("changed = True\n")
    assert provenance.code_version() == f"git {head}-dirty"


def test_code_version_of_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "__file__", str(tmp_path / "pipeline" / "__init__.py"))
    monkeypatch.setattr(provenance, "version", {"aqnet-reanalysis": "1.2.3"}.__getitem__)
    assert provenance.code_version() == "1.2.3"


def test_lineage_file_lists_every_input(tmp_path: Path) -> None:
    attrs = provenance.lineage("c", INPUTS, "w", "run")
    written = json.loads(provenance.write_lineage(tmp_path / "lineage.json", attrs, INPUTS).read_text())
    assert written.pop("inputs") == INPUTS
    assert written == attrs
    assert [file.name for file in tmp_path.iterdir()] == ["lineage.json"]


# ---- what products carry ----


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, the second of which replaced the file of January, and means of days and months by hand."""
    folder = tmp_path_factory.mktemp("provenance")
    add_run(folder, "run-1", 0)
    publication.publish(folder)
    add_run(folder, "run-2", 1, hours=24)
    cube = reader.open_cube(folder / "cube.icechunk")
    for frequency in ("daily", "monthly"):
        cut = export.Cut("interim", frequency)
        try:
            export.export_files(cube, folder / "products", cut, "netcdf", "shandong", "0.1.0")
        except pipeline.errors.ProductError:
            assert frequency == "monthly"  # two days are no month
    publication.publish(folder)
    return folder


def test_every_netcdf_product_carries_its_provenance(out: Path) -> None:
    paths = sorted((out / "products").glob("*.nc"))
    assert {path.name.split("_")[-2] for path in paths} == {"hourly", "daily"}
    identifiers = []
    for path in paths:
        with netCDF4.Dataset(path) as file:
            attrs = {name: file.getncattr(name) for name in file.ncattrs()}
        assert provenance.lacking(attrs) == [], path.name
        expected = lineage_of(attrs["flow_run_id"])
        for name in set(provenance.ORIGIN) - {"date_created"}:
            assert attrs[name] == expected[name], f"{path.name}: {name}"
        assert f"aqnet run {attrs['flow_run_id']}" in attrs["history"]
        identifiers.append(attrs["tracking_id"])
    assert len(set(identifiers)) == len(paths)


def test_the_cube_carries_its_provenance_at_every_revision(out: Path) -> None:
    found = [reader.open_cube(out / "cube.icechunk", revision).attrs for revision in ("r1", "r2")]
    assert [attrs["flow_run_id"] for attrs in found] == ["run-1", "run-2"]
    for attrs in found:
        assert provenance.lacking(attrs) == []
        assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", attrs["tracking_id"])
    assert found[0]["tracking_id"] != found[1]["tracking_id"]
    assert [line.split()[3] for line in found[1]["history"].splitlines()] == ["run-2:", "run-1:"]


def test_what_is_lacking_is_named() -> None:
    attrs = {name: "x" for name in provenance.ATTRIBUTES}
    assert provenance.lacking(attrs) == []
    assert provenance.lacking(attrs | {"history": " "}) == ["history"]
    assert provenance.lacking({}) == list(provenance.ATTRIBUTES)


def test_the_list_of_inputs_is_the_one_that_products_name_by_its_digest(out: Path) -> None:
    for run in ("run-1", "run-2"):
        kept = out / "products" / provenance.RUNS / run
        assert provenance.digest_file(kept / provenance.INPUTS) == lineage_of(run)["input_digest"]
        assert json.loads((kept / output.LINEAGE).read_text())["flow_run_id"] == run
        assert json.loads((kept / output.REPORT).read_text())["run_id"] == run


def test_runs_that_nothing_comes_from_any_more_are_forgotten(tmp_path: Path) -> None:
    for run in ("one", "two", "../three"):
        provenance.write_lineage(tmp_path / output.LINEAGE, lineage_of(run), INPUTS)
        provenance.keep(tmp_path, {"one", run})
    assert [path.name for path in (tmp_path / provenance.RUNS).iterdir()] == ["one"]
    assert not (tmp_path.parent / "three").exists()
    assert provenance.kept(tmp_path, "one")["inputs"] == INPUTS
    assert provenance.kept(tmp_path, "two") == {}


def test_the_list_of_inputs_checks_an_archive(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "a b.csv").write_text("1")
    inputs = {"a b.csv": provenance.digest_file(tmp_path / "archive" / "a b.csv")}
    provenance.write_lineage(tmp_path / output.LINEAGE, provenance.lineage("c", inputs, "w", "run"), inputs)
    provenance.keep(tmp_path, set())
    check = ["sha256sum", "--check", "--strict", tmp_path / provenance.RUNS / "run" / provenance.INPUTS]
    for expected in (0, 1):
        done = subprocess.run(check, cwd=tmp_path / "archive", capture_output=True, text=True)
        assert done.returncode == expected, done.stdout + done.stderr
        (tmp_path / "archive" / "a b.csv").write_text("2")
