"""Lineage: the same inputs give the same digests, and nothing tells the machine."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

import pipeline
from pipeline import provenance

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
