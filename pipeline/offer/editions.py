"""Months and revisions: which files there are of a calendar month at a revision, and what took their place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.offer.inventory import Inventory, Product, Revision
from pipeline.pages import maps


@dataclass(frozen=True)
class Edition:
    """What there is of one calendar month, or of several months of a year, at one revision of the cube.

    Attributes
    ----------
    month : ``YYYY-MM``, or ``YYYY`` of files that hold several months.
    period : first hour and the end of the last, ISO 8601 UTC.
    products : NetCDF files that are there of it, perhaps none.
    cube : the revision, where the cube has it.
    successor : revision that took the place of all of it, or None.
    """

    month: str
    revision: str
    period: tuple[str, str]
    products: tuple[Product, ...]
    cube: Revision | None
    successor: str | None


Key = tuple[str, str]


def editions(inventory: Inventory) -> list[Edition]:
    """Months and revisions that products or cube have, by month and revision."""
    held: dict[Key, list[Product]] = defaultdict(list)
    for product in inventory.products:
        held[product.month, product.revision].append(product)
    cube = inventory.cube.revisions if inventory.cube else ()
    tags = {one.name: one for one in cube}
    covered = {(month, one.name): hours for one in cube for month, hours in _months(one).items()}
    keys = sorted({*held, *covered}, key=lambda key: (key[0], _number(key[1])))
    periods = {key: [product.period for product in held[key]] or [covered[key]] for key in keys}
    return [
        Edition(*key, _around(periods[key]), tuple(held[key]), tags.get(key[1]), _successor(key, keys, held))
        for key in keys
    ]


def _number(revision: str) -> int:
    """Number of a revision: 3 for r3."""
    return int(revision[1:])


def _around(periods: Sequence[tuple[str, str]]) -> tuple[str, str]:
    starts, ends = zip(*periods, strict=True)
    return min(starts), max(ends)


def _successor(key: Key, keys: Sequence[Key], held: dict[Key, list[Product]]) -> str | None:
    """Newest revision of the month, where later files hold all that the files of this one hold."""
    later = [other for other in keys if other[0] == key[0] and _number(other[1]) > _number(key[1])]
    files = [product for other in later for product in held[other]]
    return later[-1][1] if later and all(_replaced(product, files) for product in held[key]) else None


def _replaced(product: Product, later: Sequence[Product]) -> bool:
    """Whether one of the files of later revisions is of the same kind and holds all of its period."""
    return any(
        (other.stream, other.frequency) == (product.stream, product.frequency)
        and other.period[0] <= product.period[0]
        and other.period[1] >= product.period[1]
        for other in later
    )


def _months(revision: Revision) -> dict[str, tuple[str, str]]:
    """Hours of a revision by calendar month, ISO 8601."""
    if revision.hours is None:
        return {}
    first, end = revision.hours
    months = np.arange(first.astype("M8[M]"), (end - 1).astype("M8[M]") + 1)
    edges = [(max(first, month.astype("M8[h]")), min(end, (month + 1).astype("M8[h]"))) for month in months]
    return {str(month): (f"{a}:00:00Z", f"{b}:00:00Z") for month, (a, b) in zip(months, edges, strict=True)}


# ---- what all of them are ----


def newest(inventory: Inventory) -> Product:
    """Product of the newest revision, of its latest period; one of hours where there is any."""
    kinds = [product for product in inventory.products if product.frequency == "hourly"] or inventory.products
    return max(kinds, key=lambda product: (_number(product.revision), product.period))


def title_of(inventory: Inventory) -> str:
    """Title of the newest product; it begins with SIMULATED where the data are."""
    title = newest(inventory).attrs["title"]
    return f"SIMULATED: {title}" if is_simulated(inventory) and "SIMULATED" not in title else title


def is_simulated(inventory: Inventory) -> bool:
    """Whether any product says that its data are simulated."""
    return any(maps.simulated(product.attrs) for product in inventory.products)


def domains(inventory: Inventory) -> str:
    """Domain of the products; several are joined by a hyphen."""
    return "-".join(sorted({product.domain for product in inventory.products}))


def homepage(inventory: Inventory) -> str:
    """Web address of who made the products; empty where the configuration left the placeholder."""
    url = newest(inventory).attrs.get("creator_url", "")
    return "" if url.rstrip("/").endswith(".example") else url
