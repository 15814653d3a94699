"""Training of the shipped weights from the CNEMC record: `aqnet train`."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from model import calibration, checkpoint
from model import train as training
from pipeline.evaluation import calibrate, evaluate, folds
from pipeline.evaluation.evaluate import Splits, cities, read_record, take

log = logging.getLogger("aqnet")


def train(
    source_path: Path,
    stations: Path,
    splits: Path,
    out: Path,
    seed: int,
    steps: int | None = None,
    everything: bool = False,
    work: Path | None = None,
    number: int = 10,
) -> Path:
    """Train on the visible stations and training hours of the public split, or on everything; write the weights.

    Hidden stations are taken out of the record before anything is learned, normalisation included; validation and test
    hours are never read.

    Parameters
    ----------
    source_path, stations : CNEMC files and station list, as `pipeline.sources.read` takes them.
    splits : splits.json.
    out : folder for the weights and the JSON that describes them: ``aqnet-seed<seed>.safetensors``, or
        ``aqnet.safetensors`` of everything.
    seed : the same seed gives the same weights on the same machine and package versions.
    steps : shorter training, for tests; None is the recipe's.
    everything : all stations and hours, hidden ones and test hours included: for production, never for scores.
    work : folder of the folds by which intervals are calibrated (`calibrate`); without it they are not.
    number : of folds of each protocol.

    Returns
    -------
    Path
        Of the weights.

    Raises
    ------
    InputError
        When the station list has no cities: they are what training leaves out.
    """
    split = Splits.read(splits)
    record, codes = read_record(source_path, stations, split)
    index = np.arange(len(codes)) if everything else np.flatnonzero(np.isin(codes, split.visible))
    visible = training.visible_only(record, index)
    recipe = training.Recipe() if steps is None else training.Recipe(steps=steps, covariance_steps=steps)
    hours = slice(0, split.hours if everything else split.train_end)
    city = cities(stations, codes)
    own = np.where(city == "", codes, city)[index]
    result = training.train(visible, training.Split(hours, own), seed, recipe)
    if work is not None:
        learned = take(visible, hours)
        widen = calibrate.calibrate(learned, codes[index], city[index], work, number, folds.networks(recipe))
        calibration.calibrated(result.network, widen)
    path = out / ("aqnet.safetensors" if everything else f"aqnet-seed{seed}.safetensors")
    described = {"seed": seed, "recipe": result.recipe, "history": result.history}
    described |= {"stations": len(index), "hours": hours.stop, "everything": everything}
    described |= evaluate.digests(source_path, [stations, splits], split)
    checkpoint.save(result.network, path, described)
    log.info("wrote %s (SHA-256 %s)", path, checkpoint.digest(path))
    return path
