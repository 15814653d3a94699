"""The QC report: one page that needs nothing else, and says what it must."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline import qc
from pipeline.contract import POLLUTANTS
from pipeline.harmonise import to_cube
from pipeline.pages import quality_report
from pipeline.qc.record import Record, record

START = np.datetime64("2020-01-05T00")
BBOX = (115.0, 39.0, 118.0, 41.0)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    """Six days of eight stations: one with a spike, two at one place, one that moves."""
    rng = np.random.default_rng(1)
    time = pd.date_range("2020-01-01", periods=240, freq="h")
    tables = []
    for n in range(8):
        values = {name: np.round(rng.uniform(40, 60, len(time))) for name in POLLUTANTS}
        values["pm10"] += 30
        lon = np.where((n == 7) & (np.arange(len(time)) > 150), 117.0, 116 + 0.1 * max(n, 1))
        tables.append(pd.DataFrame({"time": time, "station": f"n:{n}", "lon": lon, "lat": 40.0, **values}))
    tables[3].loc[200, "pm2p5"] = 700.0
    cube = to_cube(tables, time[0].to_datetime64(), START + np.timedelta64(144, "h"))
    return [record(qc.flag(cube), START)]


def page(records: list[Record], path: Path, **change: object) -> str:
    given = {"title": "Observations of n", "period": "six days", "run_id": "r", "bbox": BBOX, "simulated": False}
    return quality_report.write(records, quality_report.About(**(given | change)), path).read_text()  # type: ignore[arg-type]


def test_the_page_needs_nothing_else(records: list[Record], tmp_path: Path) -> None:
    text = page(records, tmp_path / "page.html")
    sources = re.findall(r'(?:src|href)="([^"]{0,22})', text)
    assert len(sources) == 5
    assert set(sources) == {"data:image/png;base64,"}
    assert [found.name for found in tmp_path.iterdir()] == ["page.html"]


def test_the_page_names_stations_moves_and_shared_places(records: list[Record], tmp_path: Path) -> None:
    text = page(records, tmp_path / "page.html")
    assert re.search(r"<td>n:3</td><td>116\.300</td>.*spike 1", text)
    assert re.search(r"<td>n:7@2020-01-07T07</td><td class=\"text\">moved</td>", text)
    assert "n:0, n:1" in text
    assert "SIMULATED" not in text


def test_simulated_data_says_so(records: list[Record], tmp_path: Path) -> None:
    assert "SIMULATED DATA" in page(records, tmp_path / "page.html", simulated=True)


def test_titles_are_escaped(records: list[Record], tmp_path: Path) -> None:
    assert "<script>" not in page(records, tmp_path / "page.html", title="<script>")


def test_alarms_name_network_offset_and_what_to_do(records: list[Record]) -> None:
    cycle = np.roll(qc.clocks.CYCLES["o3"], -8)
    other = np.roll(qc.clocks.CYCLES["no2"], -8)
    rows = [("m", "o3", 5, 6.0, cycle), ("m", "no2", 5, 6.0, other)]
    cycles = pd.DataFrame(rows, columns=["network", "pollutant", "stations", "days", "cycle"])
    (alarm,) = quality_report.alarms([Record(**(vars(records[0]) | {"cycles": cycles}))])
    assert alarm.startswith("network 'm': its daily cycles (o3 no2, 6 days) run 8 h early")
    assert alarm.endswith("check the time zone declared for it")


def test_months_are_added_up(records: list[Record], tmp_path: Path) -> None:
    once, twice = (re.search(r"reported ([\d,]+) hourly", page(records * n, tmp_path / "p.html")) for n in (1, 2))
    assert once is not None
    assert twice is not None
    assert int(twice[1].replace(",", "")) == 2 * int(once[1].replace(",", ""))
