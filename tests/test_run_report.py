"""The report of a run: a whole page that needs nothing else, says what run.json says, and stands empty cases."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from pipeline import analyse, stages
from pipeline.config import RunConfig, from_sources
from pipeline.cube import reader
from pipeline.cube.changes import Change, Changes
from pipeline.grid import Grid
from pipeline.pages import pairs, run_report, run_report_figures, run_summary
from pipeline.pages.places import Place
from pipeline.pages.run_summary import Fields, Series, Summary
from pipeline.qc import pictures
from pipeline.release.gate import Check
from pipeline.twin.simulate import Simulation

VOID = {"meta", "img", "br", "hr", "input", "link", "col"}
HOURS = np.arange("2019-12-02", "2019-12-04", dtype="M8[h]").astype("M8[ns]")
PLACE = Place("Town", 0, 0, 116.0, 38.0, ("n:1",), 3)


class Page(HTMLParser):
    """The elements of a page and its text; an end tag that closes something else is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag}: an attribute twice"
        assert not (self.open and self.open[-1] == "p" and tag in ("p", "div", "table", "figure", "ul", "h2")), tag
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> Iterator[dict[str, str]]:
        return (attrs for name, attrs in self.tags if name == tag)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def row(text: str, head: str) -> list[str]:
    """Cells of the first table row that begins with this heading."""
    found = re.search(rf'<th scope="row">{re.escape(head)}</th>(.*?)</tr>', text, re.S)
    assert found is not None, head
    return re.findall(r"<td[^>]*>([^<]*)", found[1])


# ---- a run, from end to end ----


def run_stages(config: RunConfig, run_id: str) -> tuple[stages.Run, list[pairs.Kept]]:
    run = stages.make(config, run_id)
    return run, run.kept


@pytest.fixture(scope="module")
def finished(
    small_simulation: Simulation, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Summary, str, dict]:
    """Eight SIMULATED hours on 3 by 3 degrees: its summary, its page and its run.json."""
    out = tmp_path_factory.mktemp("run")
    fields = {"input": small_simulation.archive, "stations": small_simulation.stations, "weights": weights}
    where = {"bbox": small_simulation.bbox, "resolution": 0.5, "out": out, "domain": "test"}
    config = from_sources(None, fields | where | {"start": "2019-12-02T00", "end": "2019-12-02T08"})
    run, kept = run_stages(config, "run-1")
    cube, folder = reader.open_cube(out / "cube.icechunk"), out / "products"
    summary = run_summary.from_run(run, cube, kept, analyse.EXTRAPOLATED_KM, folder)
    text = run_report.write(summary, folder / "report.html").read_text()
    return summary, text, json.loads((folder / "run.json").read_text())


def test_the_page_is_whole_and_needs_nothing_else(finished: tuple[Summary, str, dict]) -> None:
    page = Page(finished[1])
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    assert all(found["src"].startswith("data:image/") for found in page.all("img"))
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link["href"].removeprefix("#") in ids if link["href"][0] == "#" else "://" not in link["href"]
    assert "url(" not in finished[1]
    assert "@import" not in finished[1]


def test_it_can_be_read_by_ear(finished: tuple[Summary, str, dict]) -> None:
    page = Page(finished[1])
    assert next(page.all("html"))["lang"] == "en"
    alts = [found["alt"] for found in page.all("img")]
    assert len(alts) >= 6
    assert all(len(alt) > 40 and re.search(r"\d", alt) for alt in alts)
    assert len(set(alts)) == len(alts)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("figure") == tags.count("figcaption") == len(alts)
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert max(np.diff(levels)) <= 1
    assert all("scope" in found for found in page.all("th"))


def test_its_figures_are_those_of_run_json(finished: tuple[Summary, str, dict]) -> None:
    _, text, said = finished
    page = Page(text)
    for scores in said["withheld_stations"]:
        cells = row(text, run_report.METHODS[scores["method"]])
        for (name, (_, places)), cell in zip(run_report.SCORES.items(), cells, strict=True):
            value = scores[name]
            assert cell == ("–" if value is None else f"{value:,.{places}f}".replace("-", "−")), name  # noqa: RUF001
    flags = {name: counts for name, counts in said["quality_control"].items() if any(counts.values())}
    for name, counts in flags.items():
        assert [int(cell.replace(",", "")) for cell in row(text, name)[:6]] == [counts[k] for k in stages.qc.POLLUTANTS]
    for stage in said["stages"][:-1]:
        assert row(text, stage["name"])[1] == f"{stage['seconds']:,.1f}"
    for check in said["checks"]:
        assert row(text, check["name"])[1] == check["found"]
    for name in ("run_id", "revision"):
        assert said[name] in page.text
    for value in said["lineage"].values():
        assert value in page.text
    hours = said["validation"]
    assert f"{hours['hours_without_observations']} of {hours['hours']}" in page.text


def test_simulated_data_says_so_everywhere(finished: tuple[Summary, str, dict]) -> None:
    summary, text, _ = finished
    assert summary.header.simulated
    page = Page(text)
    assert page.text.startswith("SIMULATED")
    assert "SIMULATED DATA: a made-up field" in page.text
    assert '@top-right { content: "SIMULATED DATA"' in text


def test_estimates_at_places_are_the_cells_of_the_cube(finished: tuple[Summary, str, dict]) -> None:
    summary, _, said = finished
    cube = reader.open_cube(Path(said["files"]["cube"])).sel(time=slice("2019-12-02T00", "2019-12-02T07"))
    assert summary.series
    for one in summary.series:
        cell = cube.sel(lat=one.place.lat, lon=one.place.lon, method="nearest")
        np.testing.assert_array_equal(one.mean, cell["pm2p5"].values)
        np.testing.assert_array_equal(one.low, cell["pm2p5_p05"].values)
        assert np.isfinite(one.observed).any()
    assert summary.changes is None
    assert "first revision" in Page(finished[1]).text


# ---- made-up summaries ----


def fields_of(grid: Grid, value: float = 40.0) -> Fields:
    def field(fill: float | bool) -> xr.DataArray:
        return grid.coords().assign(map=(grid.spatial, np.full(grid.shape, fill)))["map"]

    found = (value, 30.0, 0.1, 90.0, HOURS[3], (116.0, 38.0), (0, 8.0, 9))
    return Fields(field(value), field(30.0), field(False), *found)


def series(count: int = len(HOURS), place: Place = PLACE) -> Series:
    time = HOURS[0] + np.arange(count) * np.timedelta64(1, "h")
    mean = 40 + 10 * np.sin(np.arange(count) / 4)
    return Series(place, time, mean, 0.5 * mean, 2 * mean, np.where(np.arange(count) % 5 == 0, np.nan, mean + 1))


@pytest.fixture
def summary(finished: tuple[Summary, str, dict], monkeypatch: pytest.MonkeyPatch) -> Summary:
    """The run's summary on a grid of one cell, without what takes long to draw, as if nothing were simulated."""
    monkeypatch.setattr(pictures, "station_map", lambda *_: b"a picture")
    real, grid = finished[0], Grid((116.0, 38.0, 116.1, 38.1), 0.5)
    assert grid.shape == (1, 1)
    header = replace(real.header, title="PM2.5 of Town", simulated=False)
    return replace(real, header=header, fields=fields_of(grid), series=[series()], pairs=[])


def written(summary: Summary, folder: Path) -> str:
    return run_report.write(summary, folder / "report.html").read_text()


def test_one_cell_and_nothing_withheld_is_still_a_page(summary: Summary, tmp_path: Path) -> None:
    text = written(replace(summary, scores=pd.DataFrame(), checks=[], validation=None), tmp_path)
    page = Page(text)
    assert "A grid of one row or column of cells has no map" in page.text
    assert "Nothing could be withheld" in page.text
    assert "SIMULATED" not in page.text
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


def test_places_without_observations_or_estimates_say_so(summary: Summary, tmp_path: Path) -> None:
    whole, nothing = series(), np.full(len(HOURS), np.nan)
    silent = replace(whole, place=replace(PLACE, name="Silent"), observed=nothing)
    empty = replace(silent, place=replace(PLACE, name="Empty"), mean=nothing, low=nothing, high=nothing)
    page = Page(written(replace(summary, series=[whole, silent, empty]), tmp_path))
    assert "No valid observation in these hours" in page.text
    assert "neither an estimate nor a valid observation" in page.text
    assert next(alt for found in page.all("img") if "Silent" in (alt := found["alt"])).endswith("observed: none.")
    assert "No station stands on the grid" in Page(written(replace(summary, series=[]), tmp_path)).text


def test_a_field_without_any_estimate(summary: Summary, tmp_path: Path) -> None:
    none = replace(summary.fields, highest=-np.inf, when=np.datetime64("NaT"), area_mean=np.nan)
    assert "no estimate in any hour" in Page(written(replace(summary, fields=none), tmp_path)).text


def test_what_changed_is_told_by_kind(summary: Summary, tmp_path: Path) -> None:
    kinds = [Change("interim to final", 24, 24, 20, 0, 0, 1.234, 1.0, 7.89), Change("new final", 6)]
    changed = Changes("r1", "r2", kinds, {}, summary.fields.mean * np.nan)
    text = written(replace(summary, changes=changed), tmp_path)
    assert row(text, "interim to final") == ["24", "20", "1.23", "1.00", "7.9"]
    assert row(text, "new final")[:2] == ["6", "0"]
    text = written(replace(summary, changes=replace(changed, kinds=[])), tmp_path)
    assert "every hour equals revision r1" in Page(text).text


def test_the_gate_that_stopped_a_run_is_named(summary: Summary, tmp_path: Path) -> None:
    checks = [Check("level", "a factor of 1.4", "2.0", False), Check("skill", "as before", "nothing", None)]
    text = written(replace(summary, checks=checks), tmp_path)
    assert "Stopped by the release gate: level." in Page(text).text
    assert "<strong>failed</strong>" in text
    assert row(text, "skill")[2] == "not judged"


def test_text_is_escaped(summary: Summary, tmp_path: Path) -> None:
    named = replace(summary, series=[series(place=replace(PLACE, name='<b>"&'))], alarms=["a < b"])
    page = Page(written(replace(named, header=replace(summary.header, title="<script>")), tmp_path))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "a < b" in page.text
    assert '<b>"&' in page.text


# ---- pictures ----


def test_pictures_depend_on_nothing_but_what_they_show(finished: tuple[Summary, str, dict]) -> None:
    first, second = (run_report_figures.withheld_stations(finished[0]) for _ in range(2))
    assert first is not None
    assert first == second
    assert first.startswith(b"<?xml")
    assert b"<image" not in first


def test_a_long_series_is_drawn_by_daily_means(
    summary: Summary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_report_figures, "HOURLY", 240)
    long = series(264)
    page = Page(written(replace(summary, series=[long]), tmp_path))
    assert "Daily means" in page.text
    hourly, daily = (run_report_figures.series(one, False) for one in (series(240), long))
    assert hourly is not None
    assert daily is not None
    assert len(daily) < 0.5 * len(hourly)
    assert "Daily means" not in Page(written(summary, tmp_path)).text


def test_one_hour_is_drawn(summary: Summary) -> None:
    one, none = series(1), series(1)
    image = run_report_figures.series(replace(one, observed=one.mean), False)
    assert image is not None
    blank = replace(none, mean=none.mean * np.nan, observed=none.observed * np.nan)
    assert run_report_figures.series(blank, False) is None


def test_pictures_of_simulated_data_are_stamped(summary: Summary) -> None:
    plain, stamped = (run_report_figures.series(series(), made_up) for made_up in (False, True))
    assert plain is not None
    assert stamped is not None
    assert b"#b00020" not in plain
    assert b"#b00020" in stamped


def test_pictures_are_in_the_page_as_they_are(finished: tuple[Summary, str, dict]) -> None:
    image = run_report_figures.series(finished[0].series[0], True)
    assert image is not None
    assert base64.b64encode(image).decode("ascii") in finished[1]
