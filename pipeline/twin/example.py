"""The embedded default of ``aqnet run``: a SIMULATED week through the whole pipeline, scored against its truth."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from model import baseline
from model.windows import LEVELS, POLLUTANTS, Estimate, Observations, Points
from pipeline import config, report, score, stages
from pipeline.analyse import QUANTILES
from pipeline.cube import reader
from pipeline.evaluation import evaluate
from pipeline.grid import Grid, relief
from pipeline.pages import maps
from pipeline.twin import simulate
from pipeline.twin.simulate import Simulation

logger = logging.getLogger("aqnet")

DAYS = 7

#: Hours from one scored hour to the next: kriging takes its time, and in a week 7 meets every hour of the day once.
EVERY = 7

#: Picture of the estimate beside the truth, in the output folder.
PICTURE = "simulated-truth.png"

#: Options that go with the embedded default.
OWN_OPTIONS = {"out"}

#: What AQ-Net is set beside: name in the table -> `model.baseline.METHODS`.
BASELINES = {"Inverse distance": "idw_k8_p1", "Kriging": "log_kriging"}


def wanted(config_toml: Path | None, options: Mapping[str, object]) -> bool:
    """Whether nothing says what to run: no file, no option but the output folder, no input in the environment."""
    given = {name for name, value in options.items() if value is not None} - OWN_OPTIONS
    return config_toml is None and not given and f"{config.ENV_PREFIX}INPUT" not in os.environ


def prepare(out: Path) -> tuple[config.RunConfig, Simulation]:
    """Simulate a week into ``out/simulated``; return the run over it, and where the simulation lies."""
    config.check_writable(out)
    made = simulate.simulate(out / "simulated", days=DAYS)
    fields = {
        "source": "cnemc",
        "input": made.archive,
        "stations": made.stations,
        "start": str(made.start),
        "end": str(made.end),
        "bbox": made.bbox,
        "resolution": 0.1,
        "out": out,
        "domain": "simulated",
        "title": simulate.SIMULATED,
    }
    return config.from_sources(None, fields), made


def against_truth(run: stages.Run, simulation: Simulation) -> pd.DataFrame:
    """Score AQ-Net's published cube and two baselines on every land cell of the simulated truth, `EVERY` hours.

    Draws estimate and truth of the dirtiest hour side by side, too.
    """
    truth = simulate.read_truth(simulation.truth)
    cube = reader.open_cube(run.candidate.path).sel(time=truth["time"]).load()
    picture = maps.summary_figure(cube, run.config.out / PICTURE, run.observed[0], truth)
    run.files["map beside truth"] = picture
    scored, land = slice(None, None, EVERY), run.grid.land
    cube, truth = cube.isel(time=scored), truth.isel(time=scored)
    quantiles = np.stack([cube[name].values[:, land] for name in QUANTILES])
    network = score.Prediction(cube["pm2p5"].values[:, land], quantiles, tuple(QUANTILES.values()))
    baselines = _baselines(run.grid, run.observed[0].isel(time=scored))
    return score.table({"AQ-Net": network} | baselines, truth.values[:, land])


def _baselines(grid: Grid, observed: xr.DataArray) -> dict[str, score.Prediction]:
    """Inverse distance, and kriging with the run's own variogram, at the land cells; each hour by its own PM2.5."""
    land = grid.land.ravel()
    values = np.full((len(POLLUTANTS), *observed.shape), np.nan, "float32")
    values[POLLUTANTS.index("pm2p5")] = observed.values
    hours = observed["time"].values.astype("datetime64[h]").astype("int64")
    lon, lat, elevation = (observed[name].values for name in ("lon", "lat", "elevation"))
    seen = Observations(hours, values, lon, lat, elevation, relief(lon, lat))
    points = Points(*(axis[land] for axis in grid.points()))
    methods = baseline.METHODS | {"log_kriging": evaluate.own_kriging(seen)}
    found = {}
    for label, name in BASELINES.items():
        logger.info("estimating by %s, to compare", label.lower())
        estimate = methods[name](seen, points)
        found[label] = score.Prediction(estimate.mean, _published(estimate), tuple(QUANTILES.values()))
    return found


def _published(estimate: Estimate) -> NDArray[np.floating] | None:
    """The quantiles that the cube holds: CRPS compares methods by the same levels only."""
    at = [LEVELS.index(level) for level in QUANTILES.values()]
    return None if estimate.quantiles is None else estimate.quantiles[at]


def as_text(scores: pd.DataFrame) -> str:
    """The table for a terminal, with what it is."""
    about = f"SIMULATED data: scores against the simulated truth on every land cell, every {EVERY} hours (ug m-3)"
    return f"{about}\n\n{score.markdown(scores[list(report.COLUMNS)])}"
