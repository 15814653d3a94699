"""The page from which people download: ``index.html``, beside the products, with nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from pyproj import CRS

from pipeline import output, provenance
from pipeline.atomic import replacing
from pipeline.offer import catalog, crate
from pipeline.offer.editions import Edition, domains, editions, is_simulated, newest, title_of
from pipeline.offer.inventory import Inventory, Product
from pipeline.pages import page

NAME = catalog.PAGE

#: Files of the folder that people may want beside the products, and what they are.
_BESIDE = {
    output.RUN_REPORT: "report of the last run",
    output.QUALITY_REPORT: "quality control of the observations of the last run",
    output.LINEAGE: "digests of every input of the last run",
    output.REPORT: "the last run: configuration, stages, scores",
    catalog.ROOT: "STAC catalogue, for programs",
    crate.NAME: "provenance as RO-Crate, for programs",
    output.SUMS: "SHA-256 of every file, for sha256sum --check",
}

#: Those that are written with the page or after it.
_ALWAYS = (catalog.ROOT, crate.NAME, output.SUMS)

_LICENCES = {"https://creativecommons.org/licenses/by/4.0/": "CC BY 4.0"}


@dataclass(frozen=True)
class Offer:
    """One NetCDF file as the page shows it; `picture` and `small` are its map, or empty."""

    name: str
    link: str
    kind: str
    period: str
    revision: str
    size: str
    sha256: str
    tracking_id: str
    picture: str
    small: str


@dataclass(frozen=True)
class Month:
    """A calendar month: what is current, and what was replaced since."""

    name: str
    current: list[Offer]
    replaced: list[Offer]
    revisions: list[str]


def write(inventory: Inventory, citation: str) -> Path:
    """Write the page in one step.

    Parameters
    ----------
    inventory : of the folder, once the catalogue is in it.
    citation : how to cite the products.
    """
    text, path = page.render("downloads.html", _content(inventory, citation)), inventory.folder / NAME
    with replacing(path) as part:
        part.write_text(text, "utf-8")
    return path


def _content(inventory: Inventory, citation: str) -> dict[str, Any]:
    product = newest(inventory)
    licence, there = product.attrs.get("license", ""), {*inventory.files, *_ALWAYS}
    return {
        "title": title_of(inventory),
        "summary": product.attrs.get("summary", ""),
        "simulated": is_simulated(inventory),
        "facts": _facts(inventory),
        "months": _months(inventory),
        "example": product.file.name,
        "first_hour": product.period[0][:16].replace("T", " "),
        "beside": {name: text for name, text in _BESIDE.items() if name in there},
        "licence": licence,
        "licence_name": _LICENCES.get(licence, licence or "not stated"),
        "citation": citation,
        "cube": inventory.cube,
        "local": inventory.cube is not None and isinstance(inventory.cube.path, Path),
        "newest": inventory.cube.revisions[-1] if inventory.cube else None,
        "origin": {name: product.attrs[name] for name in provenance.ORIGIN if name in product.attrs},
    }


def _facts(inventory: Inventory) -> dict[str, str]:
    product = newest(inventory)
    axes, code = product.axes, CRS.from_wkt(product.axes.crs).to_epsg()
    (west, south), (east, north) = axes.outline.min(axis=0), axes.outline.max(axis=0)
    found = {
        "Domain": f"{domains(inventory)}: {west:g} to {east:g} E, {south:g} to {north:g} N",
        "Grid": f"{len(axes.y)} x {len(axes.x)} cells of {_spacing(product)}, {f'EPSG:{code}' if code else 'own CRS'}",
        "Times": "starts of hours, UTC",
        "Newest revision": product.revision,
    }
    if inventory.cube:
        last = inventory.cube.revisions[-1]
        found["Newest revision"] = f"{last.name}, published {last.published.replace('T', ' ').replace('Z', ' UTC')}"
    return found


def _spacing(product: Product) -> str:
    steps = [
        float(np.diff(axis).mean()) if len(axis) > 1 else float("nan") for axis in (product.axes.y, product.axes.x)
    ]
    unit = "degrees" if product.axes.spatial == ("lat", "lon") else "m"
    return " x ".join(f"{step:g}" for step in dict.fromkeys(round(step, 6) for step in steps)) + f" {unit}"


def _months(inventory: Inventory) -> list[Month]:
    """Months that have files, the latest first."""
    found: dict[str, list[Edition]] = {}
    for edition in editions(inventory):
        found.setdefault(edition.month, []).append(edition)
    months = [_month(inventory, name, of) for name, of in sorted(found.items(), reverse=True)]
    return [month for month in months if month.current or month.replaced]


def _month(inventory: Inventory, name: str, of: Sequence[Edition]) -> Month:
    current = [_offer(inventory, product) for edition in of if not edition.successor for product in edition.products]
    replaced = [_offer(inventory, product) for edition in of if edition.successor for product in edition.products]
    title = datetime.strptime(name, "%Y-%m").strftime("%B %Y") if "-" in name else f"{name}, several months"
    return Month(title, current, replaced, [edition.revision for edition in of if edition.cube])


def _offer(inventory: Inventory, product: Product) -> Offer:
    picture, small = inventory.beside(product, ".png"), inventory.files.get(catalog.thumbnail_name(product))
    return Offer(
        name=product.file.name,
        link=quote(product.file.name),
        kind=f"{product.frequency}, {product.stream}",
        period=" to ".join(end[:16].replace("T", " ") for end in product.period),
        revision=product.revision,
        size=size_text(product.file.size),
        sha256=product.file.sha256,
        tracking_id=product.attrs.get("tracking_id", ""),
        picture=quote(picture.name) if picture else "",
        small=quote(small.name) if small else "",
    )


def size_text(size: int) -> str:
    """Bytes as people read them: 1 kB is 1000 bytes."""
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"
