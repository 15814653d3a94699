"""The installed software: Python, packages, PROJ's data, the cache of compiled code, the weights."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import pipeline
from pipeline.doctor.check import Check, Subject, failure, ok, warning

DISTRIBUTION = "aqnet-reanalysis"
ROOT = Path(pipeline.__file__).parents[1]
INSTALL = "python -m pip install -c constraints.txt -e ."


def python(_subject: Subject) -> Iterator[Check]:
    """Compare the version of Python with what the package says it needs."""
    found = ".".join(map(str, sys.version_info[:3]))
    wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
    if SpecifierSet(wanted).contains(found):
        yield ok("python", f"{found} at {sys.executable}")
    else:
        yield failure(
            "python", f"{found}; expected {wanted}", "make an environment with such a Python and install anew"
        )


def packages(_subject: Subject) -> Iterator[Check]:
    """Compare the packages with what the project requires, and in a checkout with what it was tested with."""
    required = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    needed = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    versions = {one.name: _version(one.name) for one in needed}
    wrong = [_unmet(one, versions[one.name]) for one in needed if not _met(one, versions[one.name])]
    if wrong:
        yield failure("packages", "; ".join(wrong), f"install what it needs: {INSTALL}")
        return
    pins = _pins()
    other = [
        f"{name} {versions[name]} (tested: {pin})" for name, pin in _pinned(versions, pins) if versions[name] != pin
    ]
    if other:
        found = f"{len(other)} are not those of constraints.txt: {', '.join(other[:4])}"
        yield warning("packages", found, f"install the tested set: {INSTALL}")
    else:
        tested = ", as in constraints.txt" if pins else ""
        yield ok("packages", f"{len(needed)} as required{tested}; {DISTRIBUTION} {_version(DISTRIBUTION)}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _met(wanted: Requirement, found: str | None) -> bool:
    return found is not None and wanted.specifier.contains(found, prereleases=True)


def _unmet(wanted: Requirement, found: str | None) -> str:
    return f"{wanted.name}: expected {wanted.specifier or 'any version'}; found {found or 'none'}"


def _pins() -> dict[str, str]:
    """Tested versions by canonical name; empty where there is no checkout."""
    path = ROOT / "constraints.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = (line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): pin.strip() for name, pin in pairs}


def _pinned(versions: dict[str, str | None], pins: dict[str, str]) -> list[tuple[str, str]]:
    """Name and tested version of the packages that have one; a local label such as ``+cpu`` is of the same version."""
    found = {name: pins[canonicalize_name(name)] for name in versions if canonicalize_name(name) in pins}
    return [(name, pin) for name, pin in found.items() if (versions[name] or "").partition("+")[0] != pin]


def projections(subject: Subject) -> Iterator[Check]:
    """Project a place there and back, on the run's grid where there is one."""
    import numpy as np
    import pyproj

    crs = subject.config.crs if subject.config else "EPSG:3035"
    advice = "unset PROJ_DATA and PROJ_LIB, or install pyproj anew"
    try:
        there = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
        lon, lat = _centre(subject)
        x, y = there.transform(lon, lat)
        back = there.transform(x, y, direction="INVERSE")
        folder = pyproj.datadir.get_data_dir()
    except (pyproj.exceptions.ProjError, pyproj.exceptions.DataDirError) as error:
        yield failure("projections", f"{crs}: {' '.join(str(error).split())}", advice)
        return
    if not np.allclose(back, (lon, lat), rtol=0, atol=1e-6):
        yield failure("projections", f"{crs}: {lon} {lat} comes back as {back[0]} {back[1]}", advice)
    else:
        yield ok("projections", f"{crs}, PROJ {pyproj.proj_version_str} with {folder}")


def _centre(subject: Subject) -> tuple[float, float]:
    bbox = subject.config.grid().bbox if subject.config else None
    return ((bbox[0] + bbox[2]) / 2, (bbox[1] + bbox[3]) / 2) if bbox else (10.0, 52.0)


def compiled_code(_subject: Subject) -> Iterator[Check]:
    """Look for a folder that keeps compiled loops: NUMBA_CACHE_DIR, that of the package, or the user's cache."""
    name = "compiled code"
    given = os.environ.get("NUMBA_CACHE_DIR")
    package = importlib.util.find_spec("model")
    beside = Path(next(iter(package.submodule_search_locations or ["."]))) / "__pycache__" if package else Path()
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"
    for folder in [Path(given)] if given else [beside, user]:
        if can_write(folder):
            yield ok(name, f"kept in {folder}")
            return
    tried = given or f"{beside}, {user}"
    yield warning(name, f"nowhere to keep it ({tried}): every run compiles for half a minute", "set NUMBA_CACHE_DIR")


def can_write(folder: Path) -> bool:
    """Whether a file can be made in a folder, or in the nearest one above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".aqnet-", suffix=".tmp") as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError:
        return False
    return True


def weights(subject: Subject) -> Iterator[Check]:
    """Load the network as a run does, which compares the file with the digest beside it."""
    from model import checkpoint

    config = subject.config
    yield _loaded("weights", checkpoint.load, (config and config.weights) or checkpoint.DEFAULT)
    if config and config.outlook_hours:
        path = config.outlook_weights or checkpoint.DEFAULT_OUTLOOK
        yield _loaded("outlook weights", checkpoint.load_outlook, path)


def _loaded(name: str, load: Callable[[Path], object], path: Path) -> Check:
    try:
        load(path)
    except ValueError as problem:
        return failure(name, str(problem), "install the package anew, or give the weights that the run shall use")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ok(name, f"{path}: SHA-256 {digest[:12]} as described, loads")
