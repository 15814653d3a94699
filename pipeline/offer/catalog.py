"""The static STAC catalogue of a folder of products: catalogue, collection, and an item for each month and revision.

STAC 1.1 with the extensions datacube, file, projection, version and scientific citation. Every link is relative, so
that products and cube can be moved to any web server. An item of a revision whose files were replaced since leads to
the cube alone, at that revision's tag, and to the item that took its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pystac
from pystac.extensions.file import FileExtension
from pystac.extensions.scientific import ScientificExtension
from pystac.extensions.version import ItemVersionExtension, VersionRelType
from pystac.layout import CustomLayoutStrategy

from pipeline import output, provenance
from pipeline.location import S3
from pipeline.offer import footprint
from pipeline.offer.editions import Edition, domains, editions, homepage, is_simulated, newest, title_of
from pipeline.offer.inventory import File, Inventory, Product, Revision

#: Names in the folder of products.
ROOT, FOLDER, THUMBNAILS, PAGE = "catalog.json", "stac", "thumbnails", "index.html"

NETCDF, ICECHUNK = "application/netcdf", "application/vnd.zarr; version=3; profile=icechunk"

#: SPDX names of licences by what products say.
_LICENCES = {"https://creativecommons.org/licenses/by/4.0/": "CC-BY-4.0"}

_TYPES = {".html": "text/html", ".json": "application/json", ".png": "image/png", ".nc": NETCDF}

#: Folders between collection or item and the products.
_UP, _UP_ITEM = "../", "../../"


def write(inventory: Inventory, citation: str) -> pystac.Catalog:
    """Write the catalogue into the folder of an inventory: ``catalog.json`` and ``stac/``, where nothing is yet."""
    found = editions(inventory)
    collection = _collection(inventory, found, citation)
    items = {(edition.month, edition.revision): _item(inventory, edition, collection.id) for edition in found}
    collection.add_items(items.values())
    for edition in found:
        if edition.successor:
            _lead_on(items[edition.month, edition.revision], items[edition.month, edition.successor])
    title = title_of(inventory)
    catalog = pystac.Catalog(f"{collection.id}_catalog", f"Products of aqnet-reanalysis: {title}", title)
    catalog.add_child(collection)
    catalog.add_link(pystac.Link("alternate", f"./{PAGE}", "text/html", "page for people"))
    collection.add_link(pystac.Link("alternate", f"{_UP}{PAGE}", "text/html", "page for people"))
    # pystac takes the last part of a path that has a dot, as the staged folder's name has, for a file
    catalog.normalize_hrefs(str(inventory.folder / ROOT), _layout())
    catalog.save(pystac.CatalogType.SELF_CONTAINED)
    return catalog


def _layout() -> CustomLayoutStrategy:
    return CustomLayoutStrategy(
        catalog_func=lambda _catalog, parent, _is_root: f"{parent}/{ROOT}",
        collection_func=lambda _collection, parent, _is_root: f"{parent}/{FOLDER}/collection.json",
        item_func=lambda item, parent: f"{parent}/items/{item.id}.json",
    )


# ---- the collection ----


def _collection(inventory: Inventory, found: Sequence[Edition], citation: str) -> pystac.Collection:
    product, simulated = newest(inventory), is_simulated(inventory)
    attrs, licence = product.attrs, product.attrs.get("license", "")
    described = attrs.get("summary", title_of(inventory))
    producer = pystac.Provider(
        attrs.get("institution", "unknown"), roles=[pystac.ProviderRole.PRODUCER], url=homepage(inventory) or None
    )
    collection = pystac.Collection(
        f"pm25_{domains(inventory)}_aqnet",
        f"SIMULATED DATA, measured nowhere. {described}" if simulated else described,
        _extent(product, found),
        title_of(inventory),
        keywords=["PM2.5", "air quality", "reanalysis", *(["SIMULATED"] if simulated else [])],
        license=_LICENCES.get(licence, "other"),
        providers=[producer],
    )
    if licence:
        collection.add_link(pystac.Link(pystac.RelType.LICENSE, licence, title="licence"))
    ScientificExtension.ext(collection, add_if_missing=True).citation = citation
    _add_common_assets(collection, inventory)
    return collection


def _extent(product: Product, found: Sequence[Edition]) -> pystac.Extent:
    starts, ends = zip(*(edition.period for edition in found), strict=True)
    spatial = pystac.SpatialExtent([footprint.bbox(product.axes.outline)])
    return pystac.Extent(spatial, pystac.TemporalExtent([[_time(min(starts)), _time(max(ends))]]))


def _add_common_assets(collection: pystac.Collection, inventory: Inventory) -> None:
    """What belongs to no month: the cube at its newest revision, checksums, provenance, reports.

    Checksums and crate have no checksum here: they hold those of the catalogue.
    """
    if inventory.cube:
        collection.add_asset("cube", _cube_asset(inventory, inventory.cube.revisions[-1], _UP))
    for key, name, title, kind in (
        ("checksums", output.SUMS, "SHA-256 of every file", "text/plain"),
        ("ro-crate", "ro-crate-metadata.json", "provenance as RO-Crate", "application/ld+json"),
    ):
        collection.add_asset(key, pystac.Asset(f"{_UP}{name}", title, media_type=kind, roles=["metadata"]))
    for name, file in inventory.files.items():
        if "/" not in name and name.endswith((".html", ".json")):
            _add_file(collection, Path(name).stem, file, Path(name).stem, ["metadata"], _UP)


# ---- items ----


def _item(inventory: Inventory, edition: Edition, collection: str) -> pystac.Item:
    of = edition.products[0] if edition.products else newest(inventory)
    item = pystac.Item(
        f"{collection}_{edition.month.replace('-', '')}_{edition.revision}",
        footprint.geometry(of.axes.outline),
        footprint.bbox(of.axes.outline),
        None,
        _properties(inventory, edition),
        _time(edition.period[0]),
        _time(edition.period[1]),
    )
    footprint.describe_cube(item, of, edition.period)
    footprint.describe_grid(item, of.axes)
    version = ItemVersionExtension.ext(item, add_if_missing=True)
    version.apply(edition.revision, deprecated=edition.successor is not None)
    for product in edition.products:
        _add_product(item, inventory, product, _key(product, edition.products))
    if inventory.cube and edition.cube:
        item.add_asset("cube", _cube_asset(inventory, edition.cube, _UP_ITEM))
    return item


def _properties(inventory: Inventory, edition: Edition) -> dict[str, Any]:
    """Title, date and provenance; an edition that only the cube has knows its run alone."""
    attrs: dict[str, Any] = edition.products[0].attrs if edition.products else {}
    if edition.cube:
        attrs = {"flow_run_id": edition.cube.run_id, "date_created": edition.cube.published} | attrs
    found: dict[str, Any] = {
        "title": f"{title_of(inventory)}, {edition.month}, revision {edition.revision}",
        "aqnet:domain": domains(inventory),
        "aqnet:simulated": is_simulated(inventory),
        "aqnet:streams": sorted({product.stream for product in edition.products}),
    }
    found |= {"created": attrs["date_created"]} if attrs.get("date_created") else {}
    return found | {f"aqnet:{name}": attrs[name] for name in provenance.ORIGIN if attrs.get(name)}


def _key(product: Product, products: Sequence[Product]) -> str:
    """Name of the asset: frequency and stream, and the days where that is not one file's alone."""
    kinds = [(other.frequency, other.stream) for other in products]
    key = f"{product.frequency}_{product.stream}"
    days = "_".join(end[:10].replace("-", "") for end in product.period)
    return key if kinds.count((product.frequency, product.stream)) == 1 else f"{key}_{days}"


def _add_product(item: pystac.Item, inventory: Inventory, product: Product, key: str) -> None:
    """A NetCDF file, its map and the small form of the map."""
    said = {"aqnet:stream": product.stream, "aqnet:frequency": product.frequency}
    said |= {f"aqnet:{name}": product.attrs[name] for name in ("tracking_id",) if name in product.attrs}
    _add_file(item, key, product.file, f"{product.frequency} NetCDF, {product.stream}", ["data"], _UP_ITEM, said)
    for ending, file, role in (
        ("map", inventory.beside(product, ".png"), "overview"),
        ("thumbnail", inventory.files.get(thumbnail_name(product)), "thumbnail"),
    ):
        if file:
            _add_file(item, f"{key}_{ending}", file, f"{ending} of {product.file.name}", [role], _UP_ITEM)


def thumbnail_name(product: Product) -> str:
    """Place of the small form of a product's map."""
    return f"{THUMBNAILS}/{product.file.name.removesuffix('.nc')}.png"


def _add_file(
    owner: pystac.Item | pystac.Collection,
    key: str,
    file: File,
    title: str,
    roles: list[str],
    up: str,
    extra: dict[str, Any] | None = None,
) -> None:
    """An asset with its size and its SHA-256."""
    kind = _TYPES[Path(file.name).suffix]
    owner.add_asset(key, pystac.Asset(f"{up}{file.name}", title, media_type=kind, roles=roles, extra_fields=extra))
    FileExtension.ext(owner.assets[key], add_if_missing=True).apply(checksum=multihash(file.sha256), size=file.size)


def multihash(sha256: str) -> str:
    """SHA-256 as hexadecimal multihash: code 0x12, length 32 bytes (https://multiformats.io/multihash)."""
    return f"1220{sha256}"


def _cube_asset(inventory: Inventory, revision: Revision, up: str) -> pystac.Asset:
    assert inventory.cube
    extra = {"aqnet:tag": revision.name, "aqnet:snapshot": revision.snapshot, "aqnet:published": revision.published}
    title = f"Icechunk cube, revision {revision.name}: every published hour"
    path = inventory.cube.path
    where = str(path) if isinstance(path, S3) else f"../{up}{path.name}"
    return pystac.Asset(where, title, media_type=ICECHUNK, roles=["data"], extra_fields=extra)


def _lead_on(old: pystac.Item, new: pystac.Item) -> None:
    """Link an item whose files were replaced with the one that has their place."""
    old.add_link(pystac.Link(VersionRelType.SUCCESSOR, new, "application/geo+json"))
    if not new.get_single_link(VersionRelType.PREDECESSOR):
        new.add_link(pystac.Link(VersionRelType.PREDECESSOR, old, "application/geo+json"))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
