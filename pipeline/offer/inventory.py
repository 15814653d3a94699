"""What lies in a folder of products: its NetCDF files as they describe themselves, every file's size and checksum."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
from numpy.typing import NDArray

from pipeline import output
from pipeline.cube import reader, write
from pipeline.errors import ProductError
from pipeline.location import Location
from pipeline.provenance import digest_file
from pipeline.tracing import runs

#: ``pm25_<domain>_aqnet_<stream>_v<version>_<frequency>_<first day>-<last day>.nc``; days that are not UTC's say so.
NAME = re.compile(
    r"pm25_(?P<domain>[A-Za-z0-9-]+)_aqnet_(?P<stream>[a-z]+)_v(?P<version>[0-9.]+)"
    r"_(?P<frequency>[a-z]+(?:-utc[+-]\d\d)?)_(?P<first>\d{8})-(?P<last>\d{8})\.nc"
)

#: Newest revisions of the cube that are listed, whether or not a file is of them: hours leave thousands a year.
LISTED = 100


@dataclass(frozen=True)
class File:
    """One file of the folder: its place in it with forward slashes, bytes and SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Known:
    """SHA-256 of a file as long as it is this one: its inode, and when it was last changed, ns."""

    sha256: str
    inode: int
    changed: int


@dataclass(frozen=True)
class Variable:
    """A variable as a file declares it."""

    dims: tuple[str, ...]
    units: str
    description: str


@dataclass(frozen=True)
class Axes:
    """Grid of a file.

    Attributes
    ----------
    y, x : cell centres in units of the CRS, ascending.
    spatial : names of these dimensions, ``("lat", "lon")`` or ``("y", "x")``.
    crs : WKT of the coordinate reference system.
    outline : longitude and latitude (WGS84 degrees) along the outer edges of the cells, counter-clockwise; (n, 2).
    """

    y: NDArray[np.float64]
    x: NDArray[np.float64]
    spatial: tuple[str, str]
    crs: str
    outline: NDArray[np.float64]


@dataclass(frozen=True)
class Product:
    """One NetCDF file and what its name, attributes and time axis say.

    Attributes
    ----------
    frequency : ``hourly``, ``daily`` or ``monthly``; ``daily-utc+08`` where days are not those of UTC.
    month : calendar month ``YYYY-MM`` of its days, or the year where they are of several months.
    period : first hour and the end of the last, ISO 8601 UTC.
    """

    file: File
    domain: str
    stream: str
    version: str
    frequency: str
    month: str
    period: tuple[str, str]
    attrs: dict[str, str]
    variables: dict[str, Variable]
    axes: Axes

    @property
    def revision(self) -> str:
        """Revision of the cube that the file was cut from."""
        return self.attrs["revision"]


@dataclass(frozen=True)
class Revision:
    """One publication of the cube: when, by which run, what its tag stands for, and `hours` that it covered.

    `hours` are the first hour and the hour after the last, UTC, those of an outlook included; None where unknown.
    """

    name: str
    published: str
    run_id: str
    snapshot: str
    hours: tuple[np.datetime64, np.datetime64] | None


@dataclass(frozen=True)
class Cube:
    """The cube of record beside the products: folder, newest attributes, the newest revisions, oldest first."""

    path: Location
    attrs: dict[str, str]
    revisions: tuple[Revision, ...]


@dataclass
class Inventory:
    """A folder of products, and its cube where there is one; `refresh` after files were added.

    ``known`` are SHA-256 of files that need not be digested, see `known`.
    """

    folder: Path
    cube: Cube | None
    files: dict[str, File] = field(default_factory=dict)
    known: Mapping[str, Known] = field(default_factory=dict)

    def refresh(self) -> Inventory:
        """Digest the files that are new or were replaced since; forget those that went."""
        found = {name: path for name, path in _visible(self.folder)}
        self.files = {name: self.add(path) for name, path in found.items()}
        return self

    def add(self, path: Path) -> File:
        """Digest one file, unless it is known as it is."""
        name, info = path.relative_to(self.folder).as_posix(), path.stat()
        key = (name, info.st_ino, info.st_mtime_ns, info.st_size)
        if key not in self._digested:
            told = self.known.get(name)
            same = told is not None and (told.inode, told.changed) == (info.st_ino, info.st_mtime_ns)
            self._digested[key] = File(name, info.st_size, told.sha256 if told and same else digest_file(path))
        self.files[name] = self._digested[key]
        return self.files[name]

    @cached_property
    def _digested(self) -> dict[tuple[str, int, int, int], File]:
        return {}

    @cached_property
    def products(self) -> list[Product]:
        """NetCDF files that carry the name of a product, by month, stream and name."""
        named = [(file, match) for name, file in self.files.items() if (match := NAME.fullmatch(name))]
        found = [read_product(self.folder, file, match) for file, match in named]
        return sorted(found, key=lambda product: (product.period, product.stream, product.file.name))

    def beside(self, product: Product, ending: str) -> File | None:
        """File of the same name with another ending, such as the quick-look map."""
        return self.files.get(product.file.name.removesuffix(".nc") + ending)


def known(folder: Path) -> dict[str, Known]:
    """SHA-256 that a folder's ``SHA256SUMS`` tells of the files that are older than it, before others are put there.

    A file that nobody replaced keeps the digest that it was published with: old files are not read every hour, and one
    that rotted on the disk does not get the digest of what it became. Times alone would not do: once the clock was
    ahead, new files are older than the checksums, too.
    """
    sums = folder / output.SUMS
    if not sums.is_file():
        return {}
    written, told = sums.stat().st_mtime_ns, {}
    for line in sums.read_text().splitlines():
        digest, name = line.split("  ", 1)
        path = folder / name
        if path.is_file() and (found := path.stat()).st_mtime_ns < written:
            told[name] = Known(digest, found.st_ino, found.st_mtime_ns)
    return told


def take(folder: Path, cube: Location, known: Mapping[str, Known] | None = None) -> Inventory:
    """Digest every file of a folder of products, those in folders below it too; hidden ones do not count.

    Parameters
    ----------
    known : SHA-256 by name of files that need not be read, see `known`.

    Raises
    ------
    ProductError
        When there is no product, or one of them cannot be read.
    """
    found = Inventory(folder, read_cube(cube), known=known or {}).refresh()
    if not found.products:
        raise ProductError(f"{folder}: expected NetCDF products, pm25_*.nc; found none; run `aqnet run` first")
    return found


def _visible(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix(), path


def read_product(folder: Path, file: File, name: re.Match[str]) -> Product:
    """Read what a NetCDF file says of itself; ProductError where it cannot be read or says too little."""
    try:
        with netCDF4.Dataset(folder / file.name) as data:
            attrs = {key: _plain(data.getncattr(key)) for key in data.ncattrs()}
            variables = {key: _variable(found) for key, found in data.variables.items() if len(found.dimensions)}
            axes, period = _axes(data), _period(data["time_bnds"])
    except (OSError, LookupError, AttributeError) as error:
        raise ProductError(
            f"{folder / file.name}: expected a NetCDF product; cannot read it as one: {error}"
        ) from error
    if lacking := {"revision", "title"} - set(attrs):
        raise ProductError(f"{folder / file.name}: global attribute '{min(lacking)}' is missing")
    domain, stream, version, frequency, first, last = name.groups()
    return Product(file, domain, stream, version, frequency, _month(first, last), period, attrs, variables, axes)


def _month(first: str, last: str) -> str:
    return f"{first[:4]}-{first[4:6]}" if first[:6] == last[:6] else first[:4]


def _period(bounds: Any) -> tuple[str, str]:
    """Start of the first and end of the last averaging period, which are hours since 1970."""
    first, end = (np.datetime64(int(hour), "h").astype("M8[s]") for hour in (bounds[0, 0], bounds[-1, 1]))
    return f"{first}Z", f"{end}Z"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _variable(found: Any) -> Variable:
    said = [getattr(found, name) for name in ("long_name", "standard_name") if name in found.ncattrs()]
    units = found.units if "units" in found.ncattrs() else ""
    return Variable(found.dimensions, units, said[0] if said else "")


def _axes(data: Any) -> Axes:
    spatial = ("y", "x") if "y" in data.dimensions else ("lat", "lon")
    y, x = (np.asarray(data[name][:], "float64") for name in spatial)
    lat, lon = (np.asarray(data[f"{name}_bnds"][:], "float64") for name in ("lat", "lon"))
    outline = _outline(lat, lon) if lat.ndim == 3 else _box(lat, lon)
    return Axes(y, x, spatial, data["crs"].crs_wkt, outline)


def _box(lat: NDArray[np.float64], lon: NDArray[np.float64]) -> NDArray[np.float64]:
    (south, north), (west, east) = (lat.min(), lat.max()), (lon.min(), lon.max())
    return np.array([(west, south), (east, south), (east, north), (west, north), (west, south)])


def _outline(lat: NDArray[np.float64], lon: NDArray[np.float64]) -> NDArray[np.float64]:
    """Outer corners of cells with four corners each, (y, x, 4), counter-clockwise from the south-west."""
    both = np.stack([lon, lat], axis=-1)
    edges = both[0, :, 0], both[:, -1, 1], both[-1, ::-1, 2], both[::-1, 0, 3], both[:1, 0, 0]
    return np.concatenate(edges)


def read_cube(path: Location) -> Cube | None:
    """Read attributes and the newest revisions of a published cube; None where there is none."""
    try:
        attrs = reader.open_cube(path).attrs
        tags = {entry["revision"]: entry for entry in reader.history(path, LISTED)}
    except ProductError:
        return None
    said = {line["revision"]: line for line in write.HISTORY_LINE.finditer(str(attrs.get("history", "")))}
    return Cube(path, attrs, tuple(_revision(tag, entry, said.get(tag)) for tag, entry in tags.items()))


def _revision(tag: str, entry: dict[str, Any], said: re.Match[str] | None) -> Revision:
    """A revision, with hours and run from its record, or from the cube's ``history`` where it has none."""
    record, known = entry["metadata"], (tag, entry["published"])
    if "hours" in record and runs.KEY in record:
        run, first, last = record[runs.KEY]["run_id"], record["hours"]["start"], record["hours"]["last"]
    elif said:
        run, first, last = said["run"], said["first"], said["outlook"] or said["end"]
    else:
        return Revision(*known, "", entry["snapshot"], None)
    return Revision(*known, run, entry["snapshot"], (np.datetime64(first, "h"), np.datetime64(last, "h")))
