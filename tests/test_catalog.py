"""The STAC catalogue: valid, true to the files, movable, and never seen half."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pystac
import pytest
from pystac.validation import RegisteredValidator
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from test_write import make_block

from pipeline import atomic, output, provenance
from pipeline.cube import reader, write
from pipeline.errors import ConfigError, ProductError
from pipeline.grid import Grid
from pipeline.offer import catalog, crate, download_page, editions, footprint, inventory, publication, staging
from pipeline.products import export
from tests.offer import DOMAIN, FIRST, VERSION, add_run, faults, lineage, sha256

SCHEMAS = Path(__file__).parent / "schemas"

#: pystac says of each item that it reads whether it is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::pystac.errors.DeprecatedWarning")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: r1 of two days around the end of January, r2 of the same with other values on the first of them."""
    folder = tmp_path_factory.mktemp("offered")
    add_run(folder, "run-1", 0)
    publication.publish(folder)
    add_run(folder, "run-2", 1, hours=24)
    publication.publish(folder)
    return folder


@pytest.fixture(scope="module")
def products(out: Path) -> Path:
    return out / "products"


@pytest.fixture
def copied(out: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(out, tmp_path / "out"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A validator that has every schema here, and no way to fetch one."""
    validator = JsonSchemaSTACValidator()
    projjson = json.loads((Path(pyproj.datadir.get_data_dir()) / "projjson.schema.json").read_text())
    schemas = [json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")]
    validator.schema_cache |= {schema["$id"].rstrip("#"): schema for schema in schemas}
    validator.schema_cache |= {f"https://proj.org/schemas/v0.{n}/projjson.schema.json": projjson for n in (4, 7)}
    former = RegisteredValidator.get_validator()
    RegisteredValidator.set_validator(validator)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_a, **_k: pytest.fail("a schema was asked of the network"))
    yield
    RegisteredValidator.set_validator(former)


def items(products: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (products / "stac" / "items").glob("*.json")]
    return {item["id"].removeprefix(f"pm25_{DOMAIN}_aqnet_"): item for item in found}


# ---- valid and true ----


def test_the_catalogue_is_valid_stac_with_its_extensions(products: Path, offline: None) -> None:
    root = pystac.Catalog.from_file(str(products / "catalog.json"))
    root.validate()
    assert root.validate_all() == 3  # items; the collection was one of those that it went through
    extensions = {name.split("/")[3] for item in root.get_items(recursive=True) for name in item.stac_extensions}
    assert extensions == {"datacube", "file", "projection", "version"}


def test_the_validation_finds_a_wrong_value(products: Path, offline: None) -> None:
    item = pystac.Item.from_dict(items(products)["201901_r2"])
    for name, value in {"proj:shape": "9x9", "cube:dimensions": {"time": {"type": "spatial"}}, "version": 2}.items():
        wrong = item.clone()
        wrong.properties[name] = value
        with pytest.raises(pystac.STACValidationError):
            wrong.validate()
    item.assets["hourly_interim"].extra_fields["file:checksum"] = "not hexadecimal"
    with pytest.raises(pystac.STACValidationError):
        item.validate()


def test_an_item_a_month_and_revision(products: Path) -> None:
    found = items(products)
    assert sorted(found) == ["201901_r1", "201901_r2", "201902_r1"]
    assert found["201901_r2"]["properties"]["start_datetime"] == "2019-01-31T00:00:00Z"
    assert found["201901_r2"]["properties"]["end_datetime"] == "2019-02-01T00:00:00Z"
    assert sorted(found["201902_r1"]["assets"]) == [
        "cube",
        "hourly_interim",
        "hourly_interim_map",
        "hourly_interim_thumbnail",
    ]
    assert found["201902_r1"]["properties"]["deprecated"] is False


def test_a_replaced_revision_leads_to_the_cube_and_to_its_successor(out: Path, products: Path) -> None:
    old, new = items(products)["201901_r1"], items(products)["201901_r2"]
    assert old["properties"]["deprecated"] is True
    assert list(old["assets"]) == ["cube"]
    assert [link["href"] for link in old["links"] if link["rel"] == "successor-version"] == [f"./{new['id']}.json"]
    assert [link["href"] for link in new["links"] if link["rel"] == "predecessor-version"] == [f"./{old['id']}.json"]
    tag = old["assets"]["cube"]["aqnet:tag"]
    cube = reader.open_cube((products / "stac" / "items" / old["assets"]["cube"]["href"]).resolve(), tag)
    expected = write.bitround(make_block(FIRST, 24, seed=0)["pm2p5"].values)
    np.testing.assert_array_equal(cube["pm2p5"].values[:24], expected)


def test_assets_have_the_size_and_checksum_of_their_files(products: Path) -> None:
    assert faults(products) == []
    asset = items(products)["201901_r2"]["assets"]["hourly_interim"]
    file = products / "stac" / "items" / asset["href"]
    assert asset["file:checksum"] == f"1220{sha256(file)}"  # multihash: sha2-256, 32 bytes
    assert asset["file:size"] == file.stat().st_size
    assert asset["type"] == "application/netcdf"


def test_the_item_tells_grid_variables_and_origin(products: Path) -> None:
    said = items(products)["201901_r2"]["properties"]
    assert said["proj:code"] == "EPSG:4326"
    assert said["proj:shape"] == [9, 9]
    assert said["proj:transform"] == [0.25, 0.0, 118.875, 0.0, 0.25, 35.875]
    assert said["cube:dimensions"]["lat"] == {
        "type": "spatial", "axis": "y", "extent": [36.0, 38.0], "step": 0.25, "reference_system": 4326,
    }  # fmt: skip
    assert said["cube:dimensions"]["time"]["step"] == "PT1H"
    assert said["cube:variables"]["pm2p5"]["unit"] == "ug m-3"
    assert said["cube:variables"]["pm2p5"]["dimensions"] == ["time", "lat", "lon"]
    expected = lineage("run-2")
    assert {said[f"aqnet:{name}"] for name in ("config_digest", "input_digest", "flow_run_id")} == {
        expected["config_digest"], expected["input_digest"], "run-2",
    }  # fmt: skip
    assert said["aqnet:simulated"] is True
    assert said["title"].startswith("SIMULATED")


def test_links_stay_right_when_the_folder_moves(out: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(out, tmp_path / "other place")) / "products"
    assert faults(moved) == []
    for path in [moved / "catalog.json", *moved.glob("stac/**/*.json")]:
        said = json.loads(path.read_text())
        hrefs = [one["href"] for one in (*said["links"], *said.get("assets", {}).values())]
        assert [href for href in hrefs if href.startswith(("/", "file:")) or str(out) in href] == []
        assert all(href.startswith(".") or link_to_licence(href) for href in hrefs)


def link_to_licence(href: str) -> bool:
    return href.startswith("https://creativecommons.org/")


def test_the_checksums_cover_every_file(products: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=products, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    named = {line.split("  ", 1)[1] for line in (products / "SHA256SUMS").read_text().splitlines()}
    there = {path.relative_to(products).as_posix() for path in products.rglob("*") if path.is_file()}
    assert named == there - {"SHA256SUMS"}
    assert {"catalog.json", "stac/collection.json", "index.html", "ro-crate-metadata.json"} <= named


def test_publishing_again_changes_no_byte(copied: Path) -> None:
    before = digests(copied)
    publication.publish(copied)
    assert digests(copied) == before


def test_without_the_cube_the_products_are_offered_alone(copied: Path, offline: None) -> None:
    shutil.rmtree(copied / "cube.icechunk")
    publication.publish(copied)
    assert sorted(items(copied / "products")) == ["201901_r2", "201902_r1"]
    assert all("cube" not in item["assets"] for item in items(copied / "products").values())
    pystac.Catalog.from_file(str(copied / "products" / "catalog.json")).validate_all()


def test_a_map_that_went_takes_its_small_form_along(copied: Path) -> None:
    products = copied / "products"
    (picture,) = products.glob("*20190201*.png")
    small = products / "thumbnails" / picture.name
    assert small.is_file()
    picture.unlink()
    publication.publish(copied)
    assert not small.exists()
    assert faults(products) == []


@pytest.mark.parametrize("broken", ["empty", "no products", "damaged"])
def test_what_cannot_be_offered_leaves_all_as_it_was(copied: Path, broken: str) -> None:
    products, error = copied / "products", ProductError
    if broken == "empty":
        shutil.rmtree(products)
        error = ConfigError
    elif broken == "no products":
        for path in products.glob("*.nc"):
            path.unlink()
    else:
        next(products.glob("*.nc")).write_bytes(b"\x89HDF\r\n\x1a\n")
    before = digests(products)
    with pytest.raises(error, match=r"products|NetCDF product"):
        publication.publish(copied)
    assert digests(products) == before
    assert not (copied / ".products.next").exists()


# ---- never seen half ----

#: Functions after which a publication is stopped, in the order in which they are called.
STEPS: dict[str, tuple[Any, str]] = {
    "copied": (staging, "_copy"),
    "taken": (inventory, "take"),
    "small maps": (publication, "_draw_small_maps"),
    "catalogue": (catalog, "write"),
    "page": (download_page, "write"),
    "crate": (crate, "write"),
    "checksums": (publication, "_write_sums"),
    "on the disk": (staging, "_to_disk"),
    "exchanged": (staging, "exchange"),
}

#: A kill costs a process; the suite kills at one step, `make faults` at all of them.
KILLED = tuple(STEPS) if os.environ.get("AQNET_TEST_ALL_FAULTS") else ("checksums",)


class Stopped(Exception):
    pass


def stopping(function: Callable[..., Any]) -> Callable[..., Any]:
    def stop(*given: Any, **named: Any) -> None:
        function(*given, **named)
        raise Stopped

    return stop


def digests(products: Path) -> dict[Path, str]:
    """What readers see, by the place of each file."""
    return {path: sha256(path) for path in products.rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_any_step_leaves_the_former_or_the_new_catalogue(
    copied: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    products = copied / "products"
    before = digests(products)
    module, name = STEPS[step]
    monkeypatch.setattr(module, name, stopping(getattr(module, name)))
    with pytest.raises(Stopped):
        run_again(copied)
    monkeypatch.undo()
    assert faults(products) == []
    assert (digests(products) == before) == (step != "exchanged")
    assert not (copied / ".products.next").exists()
    run_again(copied)
    assert faults(products) == []
    assert "run-3" in (products / "lineage.json").read_text()


def run_again(out: Path) -> None:
    """Replace every file and publish, as a run over the same hours does."""
    with staging.staged(out / "products") as staged:
        cube = reader.open_cube(out / "cube.icechunk").load()
        cube["pm2p5"] = cube["pm2p5"] + 1
        cube.attrs["flow_run_id"] = "run-3"
        export.export_netcdf(cube, staged, DOMAIN, "interim", VERSION)
        provenance.write_lineage(staged / "lineage.json", lineage("run-3"), {"c.csv": "3" * 64})
        publication.complete(staged, out / "cube.icechunk")


KILL = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_catalog

module, name = test_catalog.STEPS[{step!r}]
function = getattr(module, name)

def kill(*given, **named):
    function(*given, **named)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(module, name, kill)
test_catalog.run_again(Path({out!r}))
"""


@pytest.mark.parametrize("step", KILLED)
def test_a_kill_at_any_step_leaves_the_former_or_the_new_catalogue(copied: Path, step: str) -> None:
    products = copied / "products"
    before = digests(products)
    code = KILL.format(tests=str(Path(__file__).parent), step=step, out=str(copied))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert faults(products) == []
    assert (digests(products) == before) == (step != "exchanged")
    publication.publish(copied)  # the next one tidies up
    assert faults(products) == []
    assert [path.name for path in copied.iterdir() if path.name.startswith(".products.") and path.is_dir()] == []


def test_checksums_are_right_once_the_clock_was_ahead(copied: Path) -> None:
    """What a run replaces is then older than the checksums before."""
    products, ahead = copied / "products", time.time() + 3600
    for path in products.rglob("*"):
        os.utime(path, (ahead, ahead - (path.name != "SHA256SUMS")))
    said = json.loads((products / "run.json").read_text())
    with publication.offering(copied, trusted=True) as folder, atomic.replacing(folder / "run.json") as part:
        part.write_text(json.dumps(said | {"made": "when the clock was right again"}))
    assert faults(products) == []


def test_readers_in_between_see_one_whole_state_or_the_other(copied: Path) -> None:
    """A crawler reads all the time; what it finds between two looks at the same checksums is without a fault."""
    products, ended, whole, wrong = copied / "products", threading.Event(), [], []

    def crawl() -> None:
        while not ended.is_set():
            first = (products / "SHA256SUMS").read_bytes()
            try:
                found = faults(products)
            except FileNotFoundError as error:
                found = [f"{error.filename} is gone"]
            if (products / "SHA256SUMS").read_bytes() == first:
                whole.append(first)
                wrong.extend(found)

    watcher = threading.Thread(target=crawl)
    watcher.start()
    try:
        for run in range(4):
            add_value(products, run)
    finally:
        ended.set()
        watcher.join()
    assert wrong == []
    assert len(set(whole)) > 1  # it saw more than one state


def add_value(products: Path, run: int) -> None:
    with staging.staged(products) as staged:
        for path in staged.glob("*.png"):
            path.unlink()
            path.write_bytes((products / path.name).read_bytes() + bytes([run]))
        publication.complete(staged, products.parent / "cube.icechunk")


# ---- grids ----


def item_of(grid: Grid, tmp_path: Path) -> pystac.Item:
    """The item of two hours on a grid."""
    hours = np.datetime64(FIRST, "h"), np.datetime64(FIRST + 2, "h")
    with write.begin(tmp_path / "cube.icechunk", grid, *hours, lineage("run")) as candidate:
        write.write_block(candidate, make_block(FIRST, 2, grid=grid))
        write.publish(candidate)
    cube = reader.open_cube(tmp_path / "cube.icechunk")
    export.export_netcdf(cube, tmp_path / "products", "d", "interim", "1")
    publication.publish(tmp_path)
    (item,) = pystac.Catalog.from_file(str(tmp_path / "products" / "catalog.json")).get_items(recursive=True)
    return item


def test_a_projected_grid(tmp_path: Path, offline: None) -> None:
    grid = Grid((115.0, 36.0, 117.0, 38.0), 25_000.0, "EPSG:32650")
    item = item_of(grid, tmp_path)
    item.validate()
    assert item.properties["proj:code"] == "EPSG:32650"
    assert item.properties["proj:shape"] == list(grid.shape)
    assert set(item.properties["cube:dimensions"]) == {"time", "y", "x"}
    assert item.properties["cube:dimensions"]["x"]["step"] == 25_000.0
    west, south, east, north = item.bbox
    assert west <= 115.0 < 117.0 <= east
    assert south <= 36.0 < 38.0 <= north
    ring = np.array(item.geometry["coordinates"][0])
    np.testing.assert_array_equal(ring[0], ring[-1])
    assert len(ring) == 2 * sum(grid.shape) + 1
    area = np.sum(ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1]) / 2
    assert area > 0  # counter-clockwise


@pytest.mark.parametrize(
    ("west", "east", "box", "kind"),
    [
        (170.0, 190.0, [170.0, -10.0, -170.0, 10.0], "MultiPolygon"),
        (185.0, 190.0, [-175.0, -10.0, -170.0, 10.0], "Polygon"),
        (-180.0, 180.0, [-180.0, -10.0, 180.0, 10.0], "Polygon"),
        (5.0, 16.0, [5.0, -10.0, 16.0, 10.0], "Polygon"),
    ],
)
def test_footprints_across_the_dateline(west: float, east: float, box: list[float], kind: str) -> None:
    outline = np.array([(west, -10.0), (east, -10.0), (east, 10.0), (west, 10.0), (west, -10.0)])
    assert footprint.bbox(outline) == box
    found = footprint.geometry(outline)
    assert found["type"] == kind
    longitudes = np.array(found["coordinates"]).reshape(-1, 2)[:, 0]
    assert np.abs(longitudes).max() <= 180


# ---- staging ----


def test_a_staged_folder_shares_bytes_and_takes_its_place_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "kept").write_text("kept")
    (folder / "changed").write_text("old")
    (folder / ".left.part").write_text("half")
    with staging.staged(folder) as copy:
        assert (copy / "below" / "kept").samefile(folder / "below" / "kept")
        assert not (copy / ".left.part").exists()
        (copy / "changed").unlink()
        (copy / "changed").write_text("new")
        assert (folder / "changed").read_text() == "old"
    assert (folder / "changed").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".f.lock", "f"]


def test_where_folders_cannot_be_exchanged_two_renames_do_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "file").write_text("old")

    def none(*_: Path) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(staging, "_renameat2", none)
    with staging.staged(folder) as copy:
        (copy / "other").write_text("new")
    assert sorted(path.name for path in folder.iterdir()) == ["file", "other"]
    folder.rename(tmp_path / ".f.old")  # as a kill between the two renames leaves it
    with staging.staged(folder):
        pass
    assert sorted(path.name for path in folder.iterdir()) == ["file", "other"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".f.lock", "f"]


def test_where_there_are_no_hard_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "file").write_text("text")

    def none(*_: str) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    with staging.staged(folder) as copy:
        assert not (copy / "file").samefile(folder / "file")
        assert (copy / "file").read_text() == "text"


def test_the_second_to_publish_waits(tmp_path: Path) -> None:
    order: list[str] = []
    inside, go = threading.Event(), threading.Event()

    def first() -> None:
        with staging.staged(tmp_path / "f"):
            inside.set()
            go.wait()
            order.append("first")

    def second() -> None:
        with staging.staged(tmp_path / "f"):
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join()
    assert order == ["first", "second"]


def test_names_are_those_of_a_run() -> None:

    assert (output.CUBE, output.PRODUCTS) == (output.CUBE, output.PRODUCTS)
    assert (output.LINEAGE, output.REPORT) == (output.LINEAGE, output.REPORT)


def test_a_later_file_of_a_longer_period_replaces_an_earlier_one(out: Path) -> None:
    found = inventory.take(out / "products", out / "cube.icechunk")
    assert [(one.month, one.revision, one.successor) for one in editions.editions(found)] == [
        ("2019-01", "r1", "r2"),
        ("2019-01", "r2", None),
        ("2019-02", "r1", None),
    ]
