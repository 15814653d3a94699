"""A small output folder as runs leave it, made in a second: cube, NetCDF files, pictures, lineage. Values are drawn."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image
from test_write import GRID, make_block

from pipeline import provenance
from pipeline.cube import layout, reader, write
from pipeline.products import export

DOMAIN, VERSION = "shandong", "0.1.0"
INPUTS = {"a.csv": "1" * 64, "folder/b, of March.csv": "2" * 64}
TITLE = "SIMULATED hourly PM2.5 of nowhere"

#: From the last day of January to the first of February 2019.
FIRST = layout.to_hours("2019-01-31")


def lineage(run: str) -> dict[str, str]:
    return provenance.lineage("c" * 64, INPUTS, "d" * 64, run)


def add_run(out: Path, run: str, seed: int, hours: int = 48, title: str = TITLE) -> None:
    """What a run leaves in `out`: a revision of the cube, a file a month, a picture each, lineage and report."""
    about, last = lineage(run), FIRST + hours
    first, end = (np.datetime64(hour, "h") for hour in (FIRST, last))
    with write.begin(out / "cube.icechunk", GRID, first, end, about | {"title": title}) as candidate:
        for hour in range(FIRST, last, 24):
            write.write_block(candidate, make_block(hour, min(24, last - hour), seed))
        write.publish(candidate)
    add_files(out, about, seed, first, end)


def add_files(out: Path, about: dict[str, str], seed: int, first: np.datetime64, end: np.datetime64) -> None:
    """Cut the downloads from the cube."""
    products, cube = out / "products", reader.open_cube(out / "cube.icechunk")
    for path in export.export_netcdf(cube, products, DOMAIN, "interim", VERSION, start=first, end=end):
        picture = path.with_suffix(".png")
        picture.unlink(missing_ok=True)  # never written into: the folder that is offered may share it
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (90, 120, 3), "uint8")).save(picture)
    provenance.write_lineage(products / "lineage.json", about, INPUTS)
    report = products / "run.json"
    report.unlink(missing_ok=True)
    report.write_text(json.dumps({"run_id": about["flow_run_id"], "config": {}}))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def faults(products: Path) -> list[str]:
    """What a reader finds wrong: links that lead nowhere, and sizes or checksums that are not the file's.

    Follows the catalogue from its root by its links alone, as a crawler does, and then checks SHA256SUMS.
    """
    found: list[str] = []
    todo, seen = [products / "catalog.json"], set()
    while todo:
        place = todo.pop()
        if place in seen:
            continue
        seen.add(place)
        said = json.loads(place.read_text())
        for link in said["links"]:
            if ":" not in link["href"]:
                target = (place.parent / link["href"]).resolve()
                found += [] if target.is_file() else [f"{place.name} links to {link['href']}"]
                todo += [target] if link["rel"] in ("child", "item", "successor-version") else []
        for asset in said.get("assets", {}).values():
            found += _asset_faults(place, asset)
    for line in (products / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ", 1)
        if not (products / name).is_file() or sha256(products / name) != digest:
            found.append(f"SHA256SUMS: {name}")
    return found


def _asset_faults(place: Path, asset: dict[str, object]) -> list[str]:
    target = (place.parent / str(asset["href"])).resolve()
    if not target.exists():
        return [f"{place.name} has the asset {asset['href']}"]
    found = []
    if "file:size" in asset and target.stat().st_size != asset["file:size"]:
        found.append(f"{place.name}: size of {target.name}")
    if "file:checksum" in asset and f"1220{sha256(target)}" != asset["file:checksum"]:
        found.append(f"{place.name}: checksum of {target.name}")
    return found
