"""Names of what lies in the output folder of a run: who writes, offers, watches or checks it takes them here."""

from __future__ import annotations

from pathlib import Path

from pipeline import atomic
from pipeline.errors import ConfigError
from pipeline.location import Location, located

#: Folders: the cube of record, the products that are offered, the papers of runs that the release gate stopped.
CUBE, PRODUCTS, HELD = "cube.icechunk", "products", "held"

#: Papers of the last run among the products.
LINEAGE, REPORT = "lineage.json", "run.json"
QUALITY_REPORT, RUN_REPORT = "quality-control.html", "report.html"

#: SHA-256 of every product.
SUMS = "SHA256SUMS"

#: One line: where the cube of the folder lies when it is not in it.
STORE = "cube.url"


def cube(out: Path, store: str | None = None) -> Location:
    """Where the cube of an output folder lies: in it, or in the store that its runs were told.

    Parameters
    ----------
    out : output folder of `aqnet run`.
    store : what the configuration says; None goes by what the folder holds.

    Raises
    ------
    ConfigError
        When the folder belongs to a cube elsewhere than `store`.
    """
    noted = _noted(out)
    if store is None:
        return noted or out / CUBE
    wanted = located(store)
    if noted is not None and noted != wanted:
        raise ConfigError(f"store: expected {noted}, as {out / STORE} says; found {wanted}: take another output folder")
    if (out / CUBE).exists():
        raise ConfigError(f"store: expected none, for {out / CUBE} is the cube of this folder; found {wanted}")
    return wanted


def keep_location(out: Path, cube: Location) -> None:
    """Note in an output folder where its cube lies, unless that is in it."""
    if cube != out / CUBE and _noted(out) != cube:
        atomic.write_bytes(out / STORE, f"{cube}\n".encode())


def found(place: str | Path) -> Location:
    """Cube of an output folder, of the place in it where the cube would lie, or of a location of its own."""
    location = located(place)
    if not isinstance(location, Path):
        return location
    if location.name == CUBE and not location.exists():
        return cube(location.parent)
    return cube(location) if (location / STORE).is_file() or (location / CUBE).is_dir() else location


def _noted(out: Path) -> Location | None:
    try:
        return located((out / STORE).read_text().strip())
    except FileNotFoundError:
        return None
    except ValueError as problem:
        raise ConfigError(f"{out / STORE}: {problem}") from None
