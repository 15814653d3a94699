"""What is offered of a folder of products: catalogue, download page, provenance and checksums, all in one step.

`aqnet publish` and the last stage of a run build the same from what lies there: NetCDF files with their maps, reports,
and the cube beside them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from pipeline import atomic, output, provenance
from pipeline.errors import ConfigError
from pipeline.location import Location
from pipeline.offer import catalog, crate, download_page, inventory
from pipeline.offer.editions import domains, newest, title_of
from pipeline.offer.inventory import Inventory
from pipeline.offer.staging import staged

logger = logging.getLogger("aqnet")

#: What `complete` makes anew each time, catalogue first.
MADE = (catalog.ROOT, catalog.FOLDER, download_page.NAME, crate.NAME, output.SUMS)

#: Where people, programs, auditors and `sha256sum` begin.
_ENTRANCES = {
    "page": download_page.NAME,
    "catalogue": catalog.ROOT,
    "provenance": crate.NAME,
    "checksums": output.SUMS,
}

#: Width of the small form of a map, pixels.
_SMALL = 480


def publish(out: Path) -> Path:
    """Build catalogue, page, provenance and checksums anew from the products and the cube of an output folder.

    Readers see what was there, whole, until they see what is new, whole.

    Parameters
    ----------
    out : output folder of `aqnet run`, which holds ``products`` and ``cube.icechunk``.

    Returns
    -------
    The folder of products.

    Raises
    ------
    ConfigError
        When there is no folder of products.
    ProductError
        When no product is in it, or one cannot be read; then all stays as it was.
    """
    folder = out / output.PRODUCTS
    if not folder.is_dir():
        raise ConfigError(
            f"{out}: expected the output folder of `aqnet run`; found no folder '{output.PRODUCTS}' in it"
        )
    with offering(out):
        pass
    return folder


@contextmanager
def offering(out: Path, trusted: bool = False) -> Iterator[Path]:
    """Give a hidden copy of the products to put files into; they are offered, all of them at once, when the block ends.

    What is there already is shared by hard links: replace it (`pipeline.atomic.replacing`), never write into it.

    Parameters
    ----------
    out : output folder of a run; its ``products`` need not exist yet.
    trusted : nobody but runs touched the products, so those that are older than their checksums are not digested again.
    """
    with staged(out / output.PRODUCTS) as products:
        known = inventory.known(products) if trusted else None
        yield products
        complete(products, output.cube(out), known)


def in_place(files: Mapping[str, Path], copy: Path, products: Path) -> dict[str, Path]:
    """Give each path in the copy that `offering` gave as readers will find it in `products`."""
    return {name: products / path.relative_to(copy) for name, path in files.items()}


def entrances(products: Path) -> dict[str, Path]:
    """Files to begin with in a folder of products, by what they are."""
    return {name: products / file for name, file in _ENTRANCES.items()}


def complete(products: Path, cube: Location, known: Mapping[str, inventory.Known] | None = None) -> Inventory:
    """Build them in a folder that nobody reads yet (see `pipeline.offer.staging`).

    Parameters
    ----------
    products : folder of NetCDF products, their maps, lineage and reports.
    cube : the Icechunk repository beside it; where there is none, nothing leads to it.
    known : digests from `inventory.known`, for those who know that nobody else touched the files; others are digested.
    """
    for name in MADE:
        atomic.remove(products / name)
    found = inventory.take(products, cube, known)
    _warn(found)
    provenance.keep(products, _runs(found))
    _draw_small_maps(found)
    catalog.write(found.refresh(), citation(found))
    download_page.write(found, citation(found))
    crate.write(found.refresh(), citation(found))
    _write_sums(found.refresh())
    logger.info("offered: %d products, %d files in all", len(found.products), len(found.files) + 1)
    return found


def citation(found: Inventory) -> str:
    """One line that names the products, their revision and the method."""
    product = newest(found)
    start, end = min(one.period[0] for one in found.products), max(one.period[1] for one in found.products)
    who, year = product.attrs.get("creator_name", "unknown"), product.attrs.get("date_created", "no date")[:4]
    what = f"{title_of(found)}, {domains(found)}, {start[:10]} to {end[:10]}"
    return f"{who} ({year}): {what}, version {product.version}, revision {product.revision}. {_method(product.attrs)}"


def _method(attrs: dict[str, str]) -> str:
    return f"Method: {attrs['references']}." if attrs.get("references") else ""


def _runs(found: Inventory) -> set[str]:
    """Runs that products and the cube come from."""
    attrs = [product.attrs for product in found.products] + ([found.cube.attrs] if found.cube else [])
    return {str(one["flow_run_id"]) for one in attrs if one.get("flow_run_id")}


def _warn(found: Inventory) -> None:
    """Say which products tell too little of their origin."""
    for product in found.products:
        if lacking := provenance.lacking(product.attrs):
            logger.warning("%s: without the attributes %s", product.file.name, ", ".join(lacking))


def _draw_small_maps(found: Inventory) -> None:
    """Make the small form of each map, unless it is there and newer; remove those whose map is gone."""
    pictures = {catalog.thumbnail_name(one): found.beside(one, ".png") for one in found.products}
    wanted = {found.folder / name: found.folder / large.name for name, large in pictures.items() if large}
    _remove_others((found.folder / catalog.THUMBNAILS).glob("*"), wanted)
    for small, large in wanted.items():
        if not small.exists() or small.stat().st_mtime_ns < large.stat().st_mtime_ns:
            _draw_small(large, small)


def _remove_others(paths: Iterable[Path], wanted: Iterable[Path]) -> None:
    for path in set(paths) - set(wanted):
        atomic.remove(path)


def _draw_small(large: Path, small: Path) -> None:
    small.parent.mkdir(exist_ok=True)
    with Image.open(large) as picture, atomic.replacing(small) as part:
        reduced = picture.convert("RGB")
        reduced.thumbnail((_SMALL, 10 * _SMALL), Image.Resampling.LANCZOS)
        reduced.quantize(128, dither=Image.Dither.NONE).save(part, "PNG", optimize=True)


def _write_sums(found: Inventory) -> None:
    """``SHA256SUMS`` of every file, those in folders too, as ``sha256sum --check`` reads it."""
    digests = {name: file.sha256 for name, file in found.files.items()}
    with atomic.replacing(found.folder / output.SUMS) as part:
        part.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())))
