"""The page for people: says what there is, needs nothing from elsewhere, and every link on it leads somewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from pipeline.offer import download_page, publication
from tests.offer import TITLE, add_run, sha256


class Page(HTMLParser):
    """Addresses, tags and text of a page; fails where tags are not closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src") and value]
        self.pictures += [dict(attrs)] if tag == "img" else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """January replaced by r2, February of r1, in titles that HTML must escape."""
    folder = tmp_path_factory.mktemp("page")
    add_run(folder, "run-1", 0, title=f"{TITLE} <b>&</b>")
    add_run(folder, "run-2", 1, hours=24, title=f"{TITLE} <b>&</b>")
    publication.publish(folder)
    return folder / "products"


@pytest.fixture(scope="module")
def text(products: Path) -> str:
    return (products / "index.html").read_text()


def test_every_link_leads_to_a_file(products: Path, text: str) -> None:
    links = Page(text).links
    assert {"catalog.json", "ro-crate-metadata.json", "SHA256SUMS", "lineage.json", "run.json"} <= set(links)
    for link in links:
        assert link == "https://creativecommons.org/licenses/by/4.0/" or (products / unquote(link)).is_file(), link


def test_it_needs_no_script_and_nothing_from_elsewhere(text: str) -> None:
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert not re.search(r"@import|url\(|\son\w+=", text)
    assert [link for link in page.links if ":" in link] == ["https://creativecommons.org/licenses/by/4.0/"]


def test_it_tells_each_file_with_size_checksum_and_map(products: Path, text: str) -> None:
    page = Page(text)
    assert [picture["loading"] for picture in page.pictures] == ["lazy", "lazy"]
    assert all(str(picture["src"]).startswith("thumbnails/") and picture["alt"] for picture in page.pictures)
    for path in products.glob("*.nc"):
        assert path.name in page.links
        assert sha256(path) in text
        assert f"Download, {download_page.size_text(path.stat().st_size)}" in text
    assert text.index("February 2019") < text.index("January 2019")  # the latest first
    assert "2019-01-31 00:00 to 2019-02-01 00:00 UTC" in text


def test_it_says_how_to_open_cite_and_use(text: str) -> None:
    for word in ("xarray.open_dataset", "cdo -daymean", "Add Raster Layer", "CC BY 4.0", "Cite", "revision r2"):
        assert word in text, word
    assert "arxiv.org/abs/2502.11941" in text
    assert 'tag="r2"' in text


def test_simulated_data_are_said_to_be_so(text: str) -> None:
    assert "SIMULATED DATA. Nothing on this page was measured" in text
    assert text.count("<strong>SIMULATED</strong>") == 2
    assert "<title>SIMULATED" in text


def test_measured_data_are_not(tmp_path: Path) -> None:
    add_run(tmp_path, "run", 0, hours=2, title="Hourly PM2.5 of Shandong")
    publication.publish(tmp_path)
    assert "SIMULATED" not in (tmp_path / "products" / "index.html").read_text()


def test_text_is_escaped(text: str) -> None:
    assert "&lt;b&gt;&amp;&lt;/b&gt;" in text
    assert "<b>&</b>" not in text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (109_593, "110 kB"), (999_600, "1 MB"), (3.2e9, "3.2 GB")],
)
def test_sizes_as_people_read_them(size: float, text: str) -> None:
    assert download_page.size_text(int(size)) == text
