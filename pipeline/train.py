"""Training of the shipped weights from the CNEMC record: `aqnet train`."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from model import checkpoint
from model import train as training
from pipeline import evaluate
from pipeline.errors import InputError
from pipeline.evaluate import Splits, read_record

log = logging.getLogger("aqnet")


def train(source_path: Path, stations: Path, splits: Path, out: Path, seed: int, steps: int | None = None) -> Path:
    """Train on the visible stations and training hours of the public split; write ``aqnet-seed<seed>.safetensors``.

    Hidden stations are taken out of the record before anything is learned, normalisation included; test hours are
    never read by training or by early stopping.

    Parameters
    ----------
    source_path, stations : CNEMC files and station list, as `pipeline.sources.read` takes them.
    splits : splits.json.
    out : folder for the weights and the JSON that describes them.
    seed : the same seed gives the same weights on the same machine and package versions.
    steps : shorter training, for tests; None is the recipe's.

    Returns
    -------
    Path
        Of the weights.

    Raises
    ------
    InputError
        When the station list has no cities: they are what validation holds out.
    """
    split = Splits.read(splits)
    record, codes = read_record(source_path, stations, split)
    index = np.flatnonzero(np.isin(codes, split.visible))
    visible = training.visible_only(record, index)
    recipe = training.Recipe() if steps is None else training.Recipe(steps=steps)
    hours = slice(0, split.train_end), slice(split.train_end, split.test_start)
    result = training.train(visible, training.Split(*hours, _cities(stations, codes[index])), seed, recipe)
    path = out / f"aqnet-seed{seed}.safetensors"
    described = {"seed": seed, "recipe": result.recipe, "history": result.history}
    described |= {"visible_stations": len(index), "train_hours": split.train_end}
    described |= evaluate.digests(source_path, [stations, splits], split)
    checkpoint.save(result.network, path, described)
    log.info("wrote %s (SHA-256 %s)", path, checkpoint.digest(path))
    return path


def _cities(stations: Path, codes: NDArray[np.str_]) -> NDArray[np.str_]:
    listed = pd.read_csv(stations, dtype=str)
    if "city" not in listed.columns:
        raise InputError(f"{stations}: column 'city' is missing; found {', '.join(listed.columns)}")
    return listed.set_index("code")["city"].reindex(codes).fillna("").to_numpy(str)
