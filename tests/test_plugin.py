"""The plug-in of docs/how-to/add-a-network.md, built and installed as a third party would, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from pipeline import sources
from pipeline.errors import ConfigError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "add-a-network.md"
FILE = re.compile(r"^<!-- file: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` and, in `site`, the installed plug-in."""
    folder = tmp_path_factory.mktemp("plugin")
    for name, text in FILE.findall(PAGE.read_text()):
        place = folder / ("data" if name.endswith(".csv") else "luftnetz")
        place.mkdir(exist_ok=True)
        (place / name).write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(folder / "luftnetz")], check=True)
    return folder


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder / "site")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_example_reads_values_hours_and_lines(installed: Path) -> None:
    code = """
from pathlib import Path
import numpy as np
from pipeline import sources
assert "luftnetz" in sources.names()
(table,) = sources.read("luftnetz", Path("data"), None, np.datetime64("2024-01-01"), np.datetime64("2024-01-02"), None)
columns = ["time", "station", "lon", "lat", "pm2p5", "o3", "line_pm2p5", "line_o3", "source_file"]
print(table[columns].to_csv(index=False))
"""
    found = python(installed, code)
    assert found.stdout.split() == [
        "time,station,lon,lat,pm2p5,o3,line_pm2p5,line_o3,source_file",
        # 02:00 CET, the end of the hour, is the hour from 00 UTC
        *("2024-01-01", "00:00:00,luftnetz:BER01,13.35,52.54,31.0,12.0,2,2,luftnetz_20240101.csv"),
        *("2024-01-01", "00:00:00,luftnetz:BER02,13.47,52.51,,15.0,0,3,luftnetz_20240101.csv"),
        *("2024-01-01", "01:00:00,luftnetz:BER01,13.35,52.54,28.0,14.0,4,4,luftnetz_20240101.csv"),
    ], found.stderr


def test_the_command_of_the_page_ingests_it(installed: Path) -> None:
    words = ["ingest", "luftnetz", "--input", "data", "--store", "observations"]
    found = python(installed, f"from pipeline.cli import main; main({words!r})")
    assert found.returncode == 0, found.stderr
    assert (installed / "observations" / "manifest.json").is_file()


def test_its_errors_name_file_and_line(installed: Path) -> None:
    (installed / "luftnetz_20240102.csv").write_text("zeit;station;pm25;ozon\n2024-01-02 02:30;BER01;1;2\n")
    (installed / "stationen.csv").write_text((installed / "data" / "stationen.csv").read_text())
    words = ["ingest", "luftnetz", "--input", "luftnetz_20240102.csv", "--store", "other"]
    found = python(installed, f"from pipeline.cli import main; main({words!r})")
    assert found.returncode == 1
    assert (
        "luftnetz_20240102.csv, line 2: expected YYYY-MM-DD hh:00 and a station; found '2024-01-02 02:30'"
        in found.stderr
    )


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, sources.GROUP)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (
            [point("x", "no_such_module:SOURCE")],
            "plug-in no_such_module:SOURCE: expected a module that loads; found Mod",
        ),
        ([point("x", "math:pi")], "plug-in math:pi: expected a pipeline.sources.Source; found float"),
        ([point("x", "math:pi"), point("x", "math:e")], "expected one plug-in of this name; found math:pi and math:e"),
    ],
)
def test_plug_ins_that_do_not_load(monkeypatch: pytest.MonkeyPatch, points: list[EntryPoint], message: str) -> None:
    monkeypatch.setattr(sources, "entry_points", lambda **_: points)
    with pytest.raises(ConfigError, match=message):
        sources.find("x")


def test_a_built_in_name_cannot_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "entry_points", lambda **_: [point("cnemc", "math:pi")])
    with pytest.raises(ConfigError, match="expected a plug-in with a name of its own; found math:pi"):
        sources.find("cnemc")
