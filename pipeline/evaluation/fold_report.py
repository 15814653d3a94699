"""The whole protocol of the folds, and its report: `aqnet evaluate --leave`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from model import space_time
from pipeline.evaluation import assess, calibrate, evaluate, folds
from pipeline.evaluation.assess import Assessment
from pipeline.evaluation.folds import Method, Protocol


def evaluate_folds(
    source_path: Path,
    stations: Path,
    splits: Path,
    out_dir: Path,
    work: Path,
    protocols: Sequence[Protocol],
    networks: Mapping[str, Method],
) -> dict[str, Assessment]:
    """Run protocols over all stations of the public split; write ``folds.json``, ``folds.md`` and pictures.

    The intervals of the networks in each fold are calibrated by the other folds, see `pipeline.evaluation.calibrate`.

    Parameters
    ----------
    source_path, stations, splits : as `pipeline.evaluation.evaluate.evaluate` takes them.
    out_dir : folder for the files.
    work : folder of finished folds, see `run`.
    networks : AQ-Net as it is trained for a fold, by name; they are set against the baselines.

    Returns
    -------
    dict
        ``leave_city_out`` and ``leave_station_out``, as far as asked for.
    """
    split = evaluate.Splits.read(splits)
    record, codes = evaluate.read_record(source_path, stations, split)
    cities = evaluate.cities(stations, codes)
    methods = folds.baselines() | dict(networks)
    judged = list(networks) or list(space_time.METHODS)
    found, about = {}, evaluate.digests(source_path, [stations, splits], split)
    for protocol in protocols:
        pooled = folds.run(record, codes, cities, protocol, methods, work)
        pooled = calibrate.cross_calibrated(pooled, networks)
        found[name := f"leave_{protocol.leave}_out"] = pooled.assess(judged)
        about[name] = asdict(protocol) | {"fold": dict(zip(codes.tolist(), pooled.fold.tolist(), strict=True))}
    folds.write(found, about, out_dir, [*assess.SHOWN, *networks], "folds")
    return found
