"""What readers see of a cube: its newest revision or an older one, lazily, and the list of revisions; needs no lock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import icechunk
import xarray as xr

from pipeline.contract import FIELD_NAMES, FIELDS
from pipeline.cube import patience, repository
from pipeline.errors import ProductError
from pipeline.location import Location, located


def open_cube(path: str | Location, revision: str | None = None) -> xr.Dataset:
    """Open the published cube, read-only and lazily; the view stays as it is while later revisions are published.

    Parameters
    ----------
    path : folder or ``s3://`` address of the Icechunk repository.
    revision : tag such as ``r3``, or a held candidate's branch; the newest revision when None.

    Returns
    -------
    The cube. Hours never produced have NaN in the float fields, ``stream`` -1, ``revision`` 0,
    ``observation_count`` -1 and ``quality_flag`` 255.

    Raises
    ------
    ProductError
        When there is no cube, nothing is published or the revision is unknown.
    """
    repo = repository.open_existing(located(path))
    session = repo.readonly_session("main") if revision is None else _session_of(repo, path, revision)
    try:
        return dataset(session)
    except FileNotFoundError as error:
        raise ProductError(f"{path}: nothing is published yet; run `aqnet run` first") from error


def _session_of(repo: icechunk.Repository, path: str | Location, revision: str) -> icechunk.Session:
    if revision.startswith(repository.HELD) and revision in repo.list_branches():
        return repo.readonly_session(revision)
    if (snapshot := repository.tagged(repo, revision)) is None:
        raise ProductError(f"{path}: no revision '{revision}'; published: {repository.names(repo)}")
    return repo.readonly_session(snapshot_id=snapshot)


def dataset(session: icechunk.Session) -> xr.Dataset:
    """The cube that a session sees, lazily, as `open_cube` returns it."""
    cube = xr.open_zarr(patience.Patient(session.store), consolidated=False, chunks=None)
    for spec in FIELDS:
        cube[spec.name].attrs |= spec.attrs  # JSON keeps no dtype; CF wants flag values in the variable's own
    cube = cube.set_coords(set(cube.data_vars) - set(FIELD_NAMES))
    cube.attrs.pop("zarr_conventions", None)  # of the store, and no attribute that NetCDF can hold
    return xr.Dataset({name: cube[name] for name in FIELD_NAMES}, cube.coords, cube.attrs)


def history(path: str | Location, count: int | None = None) -> list[dict[str, Any]]:
    """Published revisions, oldest first: ``revision``, ``snapshot``, ``published`` (UTC), ``message``, ``metadata``.

    All of them, or those of the last `count` numbers: each is a file to read, and an hourly cube has thousands a year.
    """
    return [_listed(entry) for entry in repository.published(repository.open_existing(located(path)), count)]


def backwards(path: str | Location, revision: str | None = None) -> Iterator[dict[str, Any]]:
    """Published revisions from `revision` (the newest) back, as `history`, each read when it is asked for."""
    repo = repository.open_existing(located(path))
    yield from map(_listed, repository.backwards(repo, int(revision[1:]) if revision else None))


def held(path: str | Location) -> list[dict[str, Any]]:
    """Candidates that the release gate stopped, oldest first, as `history`; ``revision`` is the branch."""
    return [_listed(entry) for entry in repository.held(repository.open_existing(located(path)))]


def _listed(entry: repository.Entry) -> dict[str, Any]:
    return {
        "revision": entry.name,
        "snapshot": entry.snapshot,
        "published": entry.written.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "message": entry.message,
        "metadata": dict(entry.metadata),
    }
