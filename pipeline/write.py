"""The cube of record: an Icechunk repository that readers only ever see in whole revisions.

A run begins a candidate branch from ``main``, writes hour blocks on it and publishes: ``main`` moves to the candidate's
snapshot in one step and is tagged ``r1``, ``r2`` ... One run writes at a time, held by a file lock that dies with its
process; a reader needs no lock. See docs/adr/0002-icechunk-cube.md.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from uuid import uuid4

import icechunk
import numpy as np
import pandas as pd
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from pipeline.contract import FIELD_NAMES, FIELDS, TIME_UNITS, FieldSpec, check_cube
from pipeline.errors import ProductError
from pipeline.grid import Grid, extent

log = logging.getLogger("aqnet")

KEEP_BITS = 9
BLOCK = 24
CHUNK = 64
SHARD_CHUNKS = 8

#: What an hour that was never produced holds; every other field is NaN there.
FILL = {"quality_flag": 255, "stream": -1, "revision": 0, "observation_count": -1}

TIME_ATTRS = {
    "standard_name": "time",
    "long_name": "start of the averaging hour, UTC",
    "units": TIME_UNITS,
    "calendar": "standard",
    "units_metadata": "leap_seconds: utc",
    "axis": "T",
    "bounds": "time_bnds",
}

_EACH_HOUR = "nearest_observation_distance quality_flag stream revision observation_count"
_ANCILLARY = {
    "pm2p5": f"pm2p5_p05 pm2p5_p50 pm2p5_p95 {_EACH_HOUR}",
    "pm2p5_p05": _EACH_HOUR,
    "pm2p5_p50": _EACH_HOUR,
    "pm2p5_p95": _EACH_HOUR,
}

_MORE: dict[str, dict[str, str]] = {
    "quality_flag": {"coverage_content_type": "qualityInformation"},
    "stream": {"standard_name": "status_flag"},
    "observation_count": {"standard_name": "number_of_observations"},
}

_GLOBAL_ATTRS = {
    "Conventions": "CF-1.11, ACDD-1.3",
    "title": "AQ-Net hourly gridded PM2.5 reanalysis",
    "summary": "Hourly mean PM2.5 near the ground on a regular grid, estimated from station observations by a neural "
    "network with learned nearest-neighbour weights, with the 5th, 50th and 95th percentile of each value, the "
    "distance to the nearest observation and a quality flag.",
    "keywords": "EARTH SCIENCE > ATMOSPHERE > AIR QUALITY > PARTICULATES, PM2.5, reanalysis",
    "keywords_vocabulary": "GCMD Science Keywords",
    "standard_name_vocabulary": "CF Standard Name Table v86",
    "source": "AQ-Net analysis of hourly station observations",
    "processing_level": "gridded analysis of quality-controlled station observations",
    "cdm_data_type": "Grid",
    "comment": "Times are the starts of averaging hours in UTC. Sea cells hold no concentration.",
    "references": "AQ-Net, SCIA 2025, https://arxiv.org/abs/2502.11941",
    "license": "https://creativecommons.org/licenses/by/4.0/",
    "creator_name": "aqnet-reanalysis developers",
    "creator_type": "group",
    "institution": "aqnet-reanalysis",
    "project": "aqnet-reanalysis",
}


def bitround(values: NDArray[np.float32], keepbits: int = KEEP_BITS) -> NDArray[np.float32]:
    """Round to ``keepbits`` bits of mantissa, half to even; NaN and infinity stay.

    Kloewer et al. 2021, Nature Computational Science 1, 713-724. Relative error at most 2^-(keepbits + 1); order and
    sign are kept, so quantiles stay ordered.
    """
    drop = 23 - keepbits
    bits = np.ascontiguousarray(values, "float32").view("uint32")
    half = np.uint32((1 << (drop - 1)) - 1) + ((bits >> np.uint32(drop)) & np.uint32(1))
    rounded = (bits + half) & np.uint32((0xFFFFFFFF << drop) & 0xFFFFFFFF)
    return np.where(np.isfinite(values), rounded.view("float32"), values)


def to_hours(time: object) -> int:
    """Hours since 1970-01-01T00 UTC of a date-time (naive is UTC)."""
    stamp = pd.Timestamp(time)  # type: ignore[arg-type]
    return int((stamp.tz_convert(None) if stamp.tz else stamp).to_datetime64().astype("datetime64[h]").astype("int64"))


def field_attrs(spec: FieldSpec, spatial: tuple[str, str]) -> dict[str, object]:
    """CF attributes of a cube variable: the contract's, plus its links to the variables that explain it."""
    attrs = {**spec.attrs, **_MORE.get(spec.name, {})}
    attrs.setdefault("coverage_content_type", "modelResult" if spec.name in _ANCILLARY else "auxiliaryInformation")
    if spec.name in _ANCILLARY:
        attrs["ancillary_variables"] = _ANCILLARY[spec.name]
    if spec.gridded:
        attrs["grid_mapping"] = "crs"
        if spatial == ("y", "x"):
            attrs["coordinates"] = "lat lon"
    return attrs


def time_coverage(hours: NDArray[np.int64]) -> dict[str, str]:
    """ACDD-1.3 ``time_coverage_*`` attributes of ascending hours since 1970-01-01; the end is that of the last hour."""
    first, last = np.array([hours[0], hours[-1] + 1]).astype("datetime64[h]").astype("datetime64[s]")
    return {
        "time_coverage_start": f"{first}Z",
        "time_coverage_end": f"{last}Z",
        "time_coverage_duration": f"PT{int(hours[-1] - hours[0]) + 1}H",
        "time_coverage_resolution": "PT1H",
    }


def lay(group: zarr.Group, coords: xr.Dataset, hours: NDArray[np.int64]) -> None:
    """Lay the empty cube: coordinates of the grid, the hours, and every field at its fill value."""
    spatial = ("y", "x") if "y" in coords.dims else ("lat", "lon")
    for name, variable in coords.variables.items():
        _create(group, str(name), variable.dims, variable.shape, variable.dtype, variable.attrs)[...] = variable.values
    shape = tuple(coords.sizes[name] for name in spatial)
    _create(group, "time", ("time",), (0,), "int64", TIME_ATTRS)
    _create(group, "time_bnds", ("time", "bnds"), (0, 2), "int64", {})
    for spec in FIELDS:
        size = (0, *shape) if spec.gridded else (0,)
        _create(group, spec.name, spec.dims(spatial), size, spec.dtype, field_attrs(spec, spatial), FILL.get(spec.name))
    extend(group, hours)


def _create(
    group: zarr.Group,
    name: str,
    dims: Iterable[object],
    shape: tuple[int, ...],
    dtype: object,
    attrs: Mapping[str, object],
    fill: int | None = None,
) -> zarr.Array:
    """One Zarr array. Fields are sharded: a day by up to 512 x 512 cells a shard, day by 64 x 64 a chunk."""
    layout: dict[str, object] = {"chunks": tuple(max(1, size) for size in shape)}
    if len(shape) == 3 and shape[0] == 0:
        chunks = [min(CHUNK, size) for size in shape[1:]]
        counts = [min(SHARD_CHUNKS, -(-size // chunk)) for size, chunk in zip(shape[1:], chunks, strict=True)]
        shards = (BLOCK, *(count * chunk for count, chunk in zip(counts, chunks, strict=True)))
        layout = {"chunks": (BLOCK, *chunks), "shards": shards, "compressors": [_codec()]}
    elif shape and shape[0] == 0:
        layout = {"chunks": (366 * BLOCK if name.startswith("time") else BLOCK, *shape[1:])}
    if fill is None:
        fill = np.nan if np.dtype(dtype).kind == "f" else 0
    return group.create_array(
        name, shape=shape, dtype=dtype, fill_value=fill, dimension_names=dims, attributes=plain(attrs), **layout
    )


def _codec() -> BloscCodec:
    return BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")


def plain(attrs: Mapping[str, object]) -> dict[str, object]:
    """Attributes as JSON can hold them."""
    return {name: value.tolist() if isinstance(value, np.ndarray | np.generic) else value for name, value in attrs.items()}


def extend(group: zarr.Group, hours: NDArray[np.int64]) -> None:
    """Give every variable with a time dimension the length of ``hours`` and write the time axis; never shortens."""
    for _, array in group.arrays():
        if (array.metadata.dimension_names or ("",))[0] == "time":
            array.resize((len(hours), *array.shape[1:]))
    group["time"][:] = hours
    group["time_bnds"][:] = np.stack([hours, hours + 1], axis=-1)


@dataclass
class Candidate:
    """A revision in the making: a branch of the cube that one run writes and readers do not see.

    Use it as a context manager, so that the lock is given back when the run fails; the branch then stays for
    inspection until the next run begins.

    Attributes
    ----------
    path, grid : the repository and its grid.
    run_id : identifier of the run; the branch is ``candidate-<run_id>``.
    revision : the tag that publication will give, ``r1``, ``r2`` ...
    hours : the run's own hours (first, last + 1) since 1970-01-01.
    base : snapshot of ``main`` that the candidate grew from; `published` is that revision's group, or None.
    """

    path: Path
    grid: Grid
    run_id: str
    revision: str
    hours: tuple[int, int]
    repo: icechunk.Repository
    base: str
    published: zarr.Group | None
    session: icechunk.Session
    lock: IO[str]

    def __enter__(self) -> Candidate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back; what was not published stays unpublished."""
        self.lock.close()

    @property
    def branch(self) -> str:
        """Name of the candidate's branch."""
        return f"candidate-{self.run_id}"

    @property
    def group(self) -> zarr.Group:
        """Root of the candidate's arrays."""
        return zarr.open_group(self.session.store, mode="r+")

    def open(self) -> xr.Dataset:
        """Return the candidate as `open_cube` would, with what was written since the last commit."""
        return _dataset(self.session.store)

    def commit(self, message: str) -> None:
        """Save what was written so far on the candidate branch."""
        group = self.group
        produced = group["time"][:][group["stream"][:] != FILL["stream"]]
        if len(produced):
            group.attrs.update(time_coverage(produced))
        if self.session.has_uncommitted_changes:
            self.session.commit(message)
            self.session = self.repo.writable_session(self.branch)


def begin(path: str | Path, grid: Grid, start: object, end: object, attrs: Mapping[str, str]) -> Candidate:
    """Begin a revision for the hours [start, end).

    Parameters
    ----------
    path : folder of the Icechunk repository; made when absent.
    grid : the run's grid; must be the cube's.
    start, end : whole hours, UTC, half open.
    attrs : global attributes that the run adds (title, lineage ...); ``flow_run_id`` names the candidate.

    Raises
    ------
    ProductError
        When another run is writing the cube, the cube is on another grid or begins after ``start``.
    """
    path, hours = Path(path), (to_hours(start), to_hours(end))
    if hours[0] >= hours[1]:
        raise ProductError(f"{path}: the run's start {start} must be before its end {end}")
    with ExitStack() as stack:
        lock = stack.enter_context(_lock(path))
        repo = icechunk.Repository.open_or_create(_storage(path))
        _clean(repo)
        base, run_id = repo.lookup_branch("main"), attrs.get("flow_run_id") or uuid4().hex
        published = _published(repo)
        repo.create_branch(f"candidate-{run_id}", base)
        session = repo.writable_session(f"candidate-{run_id}")
        revision = f"r{len(repo.list_tags()) + 1}"
        candidate = Candidate(path, grid, run_id, revision, hours, repo, base, published, session, lock)
        _lay_or_extend(candidate, attrs)
        stack.pop_all()
    return candidate


def _lock(path: Path) -> IO[str]:
    """Hold the cube's only writing place until the file is closed or the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = (path.parent / f".{path.name}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ProductError(f"{path}: another run is writing this cube; wait for it to end, or stop it") from error
    return file


def _clean(repo: icechunk.Repository) -> None:
    """Finish or undo what a killed run left: tag a published ``main``, drop stale candidates and their chunks."""
    tags, head = repo.list_tags(), repo.lookup_branch("main")
    if _published(repo) is not None and head not in {repo.lookup_tag(tag) for tag in tags}:
        repo.create_tag(f"r{len(tags) + 1}", head)
    stale = sorted(repo.list_branches() - {"main"})
    for branch in stale:
        log.info("dropping the unpublished candidate %s", branch)
        repo.delete_branch(branch)
    if stale:
        repo.garbage_collect(datetime.now(UTC))


def _published(repo: icechunk.Repository) -> zarr.Group | None:
    """Root group of ``main``, or None before the first publication."""
    store = repo.readonly_session("main").store
    try:
        return zarr.open_group(store, mode="r")
    except FileNotFoundError:
        return None


def _lay_or_extend(candidate: Candidate, attrs: Mapping[str, str]) -> None:
    """Make the candidate's time axis reach from the first day's midnight to the end of the run's last day."""
    first, last = candidate.hours[0] // BLOCK * BLOCK, -(-candidate.hours[1] // BLOCK) * BLOCK
    group, old = zarr.open_group(candidate.session.store, mode="a"), candidate.published
    if old is None:
        lay(group, candidate.grid.coords(), np.arange(first, last))
    else:
        _check_same(candidate, old)
        first = int(old["time"][0])
        if old["time"].shape[0] < last - first:
            extend(group, np.arange(first, last))
    group.attrs.update(_global_attrs(candidate, attrs))


def _check_same(candidate: Candidate, old: zarr.Group) -> None:
    """Raise when the run does not fit the published cube."""
    path, coords = candidate.path, candidate.grid.coords()
    for name in (*candidate.grid.spatial, "crs"):
        same = name in old and old[name].shape == coords[name].shape and np.array_equal(old[name][...], coords[name])
        if not same or plain(coords[name].attrs) != {**old[name].attrs}:
            raise ProductError(f"{path}: the cube is on another grid ('{name}' differs); keep the bbox, resolution and "
                               f"crs it was begun with, or write to another folder")
    begins = int(old["time"][0])
    if candidate.hours[0] < begins:
        found, first = (np.datetime64(hour, "h") for hour in (candidate.hours[0], begins))
        raise ProductError(f"{path}: the cube begins at {first} and cannot grow backwards; the run starts at {found}; "
                           f"write the whole period to another folder, earliest run first")


def _global_attrs(candidate: Candidate, attrs: Mapping[str, str]) -> dict[str, object]:
    """Return CF and ACDD attributes of the revision; the run's own win."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    first, last = (np.datetime64(hour, "h") for hour in candidate.hours)
    line = f"{now} aqnet run {candidate.run_id}: hours {first} to {last}, revision {candidate.revision}"
    earlier = candidate.published.attrs.get("history") if candidate.published is not None else None
    return {
        **_GLOBAL_ATTRS,
        **extent(candidate.grid.coords()),
        "date_created": now,
        **plain(attrs),
        "revision": candidate.revision,
        "history": f"{line}\n{earlier}" if earlier else line,
    }


def write_block(candidate: Candidate, block: xr.Dataset) -> None:
    """Write hours of one UTC day, rounded to 9 bits; of ``revision`` only the shape is read, its values are counted.

    Parameters
    ----------
    candidate : what `begin` returned.
    block : satisfies `contract.check_cube`, on the candidate's grid, consecutive hours within one day and the run.

    Raises
    ------
    ProductError
        When the block breaks the contract or lies elsewhere than the candidate.
    """
    check_cube(block, f"{candidate.path}: block")
    hours = _check_place(candidate, block)
    group = candidate.group
    first = int(hours[0] - group["time"][0])
    at = slice(first, first + len(hours))
    values = {spec.name: _stored(block[spec.name].values) for spec in FIELDS}
    values["revision"] = _revision(candidate.published, values, at)
    for name, array in values.items():
        group[name][at] = array


def _stored(values: NDArray[np.generic]) -> NDArray[np.generic]:
    return bitround(values) if values.dtype == np.float32 else values


def _check_place(candidate: Candidate, block: xr.Dataset) -> NDArray[np.int64]:
    """Hours of the block since 1970-01-01, after a check that block and candidate agree."""
    where, grid = f"{candidate.path}: block", candidate.grid
    for name, axis in zip(grid.spatial, (grid.y, grid.x), strict=True):
        if not np.array_equal(block[name], axis):
            raise ProductError(f"{where}: coordinate '{name}' is not the grid's")
    hours = block["time"].values.astype("datetime64[h]").astype("int64")
    first, last = candidate.hours
    if len(hours) == 0 or hours[0] < first or hours[-1] >= last or hours[0] // BLOCK != hours[-1] // BLOCK:
        raise ProductError(f"{where}: coordinate 'time' must be hours of one UTC day within the run; "
                           f"found {len(hours)} from {block['time'].values[:1]}")
    return hours


def _revision(old: zarr.Group | None, new: Mapping[str, NDArray[np.generic]], at: slice) -> NDArray[np.int32]:
    """Return the published revision of each hour, one more where any value differs; 1 where none was published."""
    revision = np.ones(at.stop - at.start, "int32")
    known = max(0, min(at.stop, old["time"].shape[0]) - at.start) if old is not None else 0
    if known:
        past = slice(at.start, at.start + known)
        same = np.ones(known, bool)
        for name, values in new.items():
            if name != "revision":
                same &= _equal_hours(old[name][past], values[:known])
        revision[:known] = np.where(same, old["revision"][past], old["revision"][past] + 1)
    return revision


def _equal_hours(old: NDArray[np.generic], new: NDArray[np.generic]) -> NDArray[np.bool_]:
    equal = old == new
    if old.dtype.kind == "f":
        equal |= np.isnan(old) & np.isnan(new)
    return equal.reshape(len(equal), -1).all(axis=1)


def publish(candidate: Candidate) -> str | None:
    """Make the candidate what readers see, in one step, and give the lock back.

    Returns
    -------
    The new revision's tag, or None when no hour differs from what is published: then nothing moves.

    Raises
    ------
    ProductError
        When ``main`` moved since the candidate began.
    """
    candidate.commit(f"aqnet run {candidate.run_id}")
    changed = _changed(candidate)
    if changed:
        _move_main(candidate)
        candidate.repo.create_tag(candidate.revision, candidate.repo.lookup_branch("main"))
    candidate.repo.delete_branch(candidate.branch)
    candidate.close()
    log.info("%s: %s", candidate.path, f"{changed} hours in {candidate.revision}" if changed else "nothing changed")
    return candidate.revision if changed else None


def _changed(candidate: Candidate) -> int:
    """Count the hours that differ from ``main``."""
    revision = candidate.group["revision"][:]
    if candidate.published is not None:
        old = candidate.published["revision"][:]
        revision[: len(old)] -= old
    return int(np.count_nonzero(revision))


def _move_main(candidate: Candidate) -> None:
    repo, head = candidate.repo, candidate.repo.lookup_branch(candidate.branch)
    try:
        repo.reset_branch("main", head, from_snapshot_id=candidate.base)
    except icechunk.IcechunkError as error:
        raise ProductError(f"{candidate.path}: main moved since run {candidate.run_id} began; run it again") from error


def open_cube(path: str | Path, revision: str | None = None) -> xr.Dataset:
    """Open the published cube, read-only and lazily; the view stays as it is while later revisions are published.

    Parameters
    ----------
    path : folder of the Icechunk repository.
    revision : tag such as ``r3``; the newest when None.

    Returns
    -------
    The cube. Hours never produced have NaN in the float fields, ``stream`` -1, ``revision`` 0,
    ``observation_count`` -1 and ``quality_flag`` 255.

    Raises
    ------
    ProductError
        When there is no cube, nothing is published or the revision is unknown.
    """
    repo = _open_repo(Path(path))
    if revision is not None and revision not in repo.list_tags():
        known = ", ".join(entry["revision"] for entry in history(path)) or "none"
        raise ProductError(f"{path}: no revision '{revision}'; published: {known}")
    session = repo.readonly_session(tag=revision) if revision else repo.readonly_session("main")
    try:
        return _dataset(session.store)
    except FileNotFoundError as error:
        raise ProductError(f"{path}: nothing is published yet; run `aqnet run` first") from error


def _open_repo(path: Path) -> icechunk.Repository:
    if not (path.is_dir() and icechunk.Repository.exists(_storage(path))):
        raise ProductError(f"{path}: no cube here; expected the folder of an Icechunk repository")
    return icechunk.Repository.open(_storage(path))


def _storage(path: Path) -> icechunk.Storage:
    """Storage on the local disk. Icechunk warns that it cannot guard concurrent commits there; `_lock` does."""
    icechunk.set_logs_filter("error")
    return icechunk.local_filesystem_storage(str(path))


def _dataset(store: icechunk.IcechunkStore) -> xr.Dataset:
    cube = xr.open_zarr(store, consolidated=False, chunks=None)
    for spec in FIELDS:
        cube[spec.name].attrs |= spec.attrs  # JSON keeps no dtype; CF wants flag values in the variable's own
    cube = cube.set_coords(set(cube.data_vars) - set(FIELD_NAMES))
    return xr.Dataset({name: cube[name] for name in FIELD_NAMES}, cube.coords, cube.attrs)


def history(path: str | Path) -> list[dict[str, str]]:
    """Published revisions, oldest first: ``revision``, ``snapshot``, ``published`` (UTC) and ``message``."""
    repo, entries = _open_repo(Path(path)), []
    for tag in sorted(repo.list_tags(), key=lambda tag: int(tag[1:])):
        info = next(iter(repo.ancestry(tag=tag)))
        when = info.written_at.strftime("%Y-%m-%dT%H:%M:%SZ")
        entries.append({"revision": tag, "snapshot": info.id, "published": when, "message": info.message})
    return entries
