"""Shipped weights on a record they were not trained on, beside kriging fitted there: `aqnet evaluate --source`.

Stations are left out in folds as in `folds`, but the network stays as it is and learns nothing of the record.
The baselines are fitted anew to the other stations of each fold.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import checkpoint, infer
from model.windows import Observations
from pipeline import sources
from pipeline.errors import InputError
from pipeline.evaluation import evaluate, folds
from pipeline.evaluation.assess import Assessment
from pipeline.evaluation.folds import NETWORKS, Method, Protocol
from pipeline.harmonise import to_cube
from pipeline.sources import BBox

log = logging.getLogger("aqnet")

#: What the network is set against; `idw_k8_p1` needs no fit, kriging is fitted to each fold's other stations.
REFERENCES = ("idw_k8_p1", "log_kriging")


def transfer(
    source: str,
    path: Path,
    stations: Path | None,
    period: tuple[np.datetime64, np.datetime64],
    out_dir: Path,
    work: Path,
    protocol: Protocol,
    bbox: BBox | None = None,
    outside: BBox | None = None,
    weights: Path = checkpoint.DEFAULT,
) -> Assessment:
    """Leave stations out of a record and estimate them with the weights as they are; write ``transfer.json``, ``.md``.

    Parameters
    ----------
    source, path, stations : as `pipeline.sources.read` takes them.
    period : first hour and the hour after the last, UTC.
    out_dir : folder for the files and a picture.
    work : folder of finished folds, see `pipeline.evaluation.folds.run`.
    protocol : what goes to a fold as one; cities need a column `city` in the station list.
    bbox : stations wanted, degrees; None takes all.
    outside : stations in this box are left aside, for instance where the weights were trained.

    Raises
    ------
    InputError
        When there are fewer stations, or cities, than folds.
    """
    record, codes, labels = _read(source, path, stations, period, bbox, outside)
    cities = _cities(stations, labels) if protocol.leave == "city" else np.full(len(codes), "")
    if (units := len(np.unique(np.where(cities == "", codes, cities)))) < protocol.folds:
        raise InputError(f"{path}: expected {protocol.folds} or more to leave out; found {units}; take fewer --folds")
    methods = {name: folds.baselines()[name] for name in REFERENCES} | _shipped(weights)
    pooled = folds.run(record, codes, cities, protocol, methods, work)
    found = pooled.assess(list(NETWORKS), REFERENCES)
    about = asdict(protocol) | {"source": source, "start": str(period[0]), "end": str(period[1])}
    about |= {"stations": len(codes), "bbox": bbox, "outside": outside, "weights_digest": checkpoint.digest(weights)}
    folds.write({f"transfer_{source}": found}, about, out_dir, [*REFERENCES, *NETWORKS], "transfer")
    return found


def _read(
    source: str,
    path: Path,
    stations: Path | None,
    period: tuple[np.datetime64, np.datetime64],
    bbox: BBox | None,
    outside: BBox | None,
) -> tuple[Observations, NDArray[np.str_], NDArray[np.str_]]:
    """Record of the stations wanted, their names, and their codes without the network's."""
    cube = to_cube(sources.read(source, path, stations, *period, bbox, truncated="keep"), *period)
    reports = np.isfinite(cube["pm2p5"].values).any(axis=0)
    if outside is not None:
        west, south, east, north = outside
        lon, lat = cube["lon"].values, cube["lat"].values
        reports &= ~((lon >= west) & (lon <= east) & (lat >= south) & (lat <= north))
    names = cube["station"].values.astype(str)[reports]
    record = evaluate.record_of(cube.isel(station=np.flatnonzero(reports)))
    return record, names, np.array([name.partition(":")[2] for name in names])


def _cities(stations: Path | None, codes: NDArray[np.str_]) -> NDArray[np.str_]:
    if stations is None:
        raise InputError("leaving out cities needs a station list with a column 'city'; found no station list")
    return evaluate.cities(stations, codes)


def _shipped(weights: Path) -> dict[str, Method]:
    """The network as it is, in both modes."""
    key = folds.network_key() + checkpoint.digest(weights)
    fixed = {name: infer.estimator(weights, mode) for name, mode in NETWORKS.items()}
    return {name: Method(partial(_same, method), f"{key} {name}", True) for name, method in fixed.items()}


def _same(method: evaluate.Estimator, _others: Observations, _cities: object, _seed: int) -> evaluate.Estimator:
    return method
