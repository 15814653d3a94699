"""Training of AQ-Net on the loss that it is judged by: the error at stations whose values it does not see.

Each step draws windows of the training hours. In each, a random part of the stations is dropped, some stations become
queries, and around each query everything within a random radius is hidden too; so the network meets a new layout every
time and learns short and long distances alike. Stations of some cities are held out altogether for validation.

Shapes: S stations, Q queries, T output hours, N levels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.aqnet import AQNet, AQNetConfig
from model.geometry import distance_matrix
from model.infer import DAY, geometry_of
from model.windows import LEVELS, POLLUTANTS, Observations, cyclic, normalisation, window

log = logging.getLogger("aqnet")

#: Training is repeatable on a given machine with this many threads.
THREADS = 2


@dataclass(frozen=True)
class Recipe:
    """How to train. Everything that can change the weights, but the data and the seed, stands here."""

    steps: int = 1200
    windows: int = 2  # a step
    queries: int = 96  # a window
    learning_rate: float = 3e-3
    weight_decay: float = 1e-3
    keep: tuple[float, float] = (0.25, 1.0)  # share of the stations a window sees
    near: float = 0.4  # share of queries that hide nothing but themselves
    radius: tuple[float, float] = (3.0, 200.0)  # km hidden around the others, log-uniform
    other_pollutants: float = 0.7  # share of windows that see them; the rest see PM2.5 alone
    linear: float = 1.0  # weight of the quantile loss in ug m-3, over 30
    mean: float = 0.15  # weight of the squared error of the mean
    check_every: int = 100
    held_out: float = 0.1  # share of the cities for validation


@dataclass(frozen=True)
class Split:
    """What may be learned from: `train` and `validation` are slices of the record's hours, `city` (S,) labels."""

    train: slice
    validation: slice
    city: NDArray[np.str_]


@dataclass
class Trained:
    """The network at its best validation score, and how it got there (one entry a check)."""

    network: AQNet
    history: list[dict[str, float]] = field(default_factory=list)
    recipe: dict[str, object] = field(default_factory=dict)


def train(observations: Observations, split: Split, seed: int, recipe: Recipe = Recipe()) -> Trained:
    """Train on the stations and hours of a split.

    Parameters
    ----------
    observations : record of the *visible* stations only; nothing of a hidden station may be in it.
    split : hours to train on and to stop by, and the stations' cities.
    seed : of weights, windows and held-out cities; the same seed gives the same weights on the same machine.

    Raises
    ------
    ValueError
        When fewer stations are left to train on than the network has neighbours, when the hours to train or validate
        on are too few for one window, or when the held-out cities have no PM2.5 in them.
    """
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    mean, std = normalisation(observations.values[:, split.train])
    network = AQNet(AQNetConfig(mean=mean, std=std))
    task = _Task(network, observations, split, np.random.default_rng(seed), recipe)
    best, result = float("inf"), Trained(network, recipe=asdict(recipe))
    began = time.perf_counter()
    for step, loss in enumerate(_steps(network, task, recipe), start=1):
        if step % recipe.check_every == 0 or step == recipe.steps:
            score = task.validate()
            result.history.append({"step": step, "loss": loss, "validation": score})
            log.info("step %d: loss %.4f, validation %.4f, %.0f s", step, loss, score, time.perf_counter() - began)
            if score < best:
                best, kept = score, {name: t.clone() for name, t in network.state_dict().items()}
    network.load_state_dict(kept)
    network.eval()
    return result


def _steps(network: AQNet, task: _Task, recipe: Recipe) -> Iterator[float]:
    """Take the training steps, yielding a running mean of the loss."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1
    )
    running = float("nan")
    for _ in range(recipe.steps):
        loss = torch.stack([task.draw() for _ in range(recipe.windows)]).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        running = loss.item() if running != running else 0.98 * running + 0.02 * loss.item()
        yield running


class _Task:
    """Draws training windows and scores the held-out cities."""

    def __init__(
        self, network: AQNet, observations: Observations, split: Split, rng: np.random.Generator, recipe: Recipe
    ) -> None:
        self.network, self.observations, self.split, self.rng, self.recipe = network, observations, split, rng, recipe
        cities = rng.permutation(np.unique(split.city))
        held = np.isin(split.city, cities[: max(1, round(recipe.held_out * len(cities)))])
        self.learn, self.judge = np.flatnonzero(~held), np.flatnonzero(held)
        if len(self.learn) <= network.config.neighbours:
            expected = network.config.neighbours
            raise ValueError(f"training: expected more than {expected} stations; found {len(self.learn)}")
        for name, hours in (("training", split.train), ("validation", split.validation)):
            if hours.stop - hours.start <= network.config.lead_hours + DAY:
                found, least = hours.stop - hours.start, network.config.lead_hours + DAY
                raise ValueError(f"{name}: expected more than {least} hours; found {found}")
        o = observations
        self.between = torch.from_numpy(distance_matrix(o.lon, o.lat, o.lon, o.lat)).float()
        self.height = torch.from_numpy(np.asarray(o.elevation, np.float32) / 1000)

    def draw(self) -> Tensor:
        """Loss of one random window."""
        recipe, rng = self.recipe, self.rng
        length = self.network.config.lead_hours + DAY
        start = int(rng.integers(self.split.train.start, self.split.train.stop - length))
        seen = self.learn[rng.random(len(self.learn)) < rng.uniform(*recipe.keep)]
        if len(seen) <= self.network.config.neighbours:
            seen = self.learn
        queries = rng.choice(self.learn, min(recipe.queries, len(self.learn)), replace=False)
        low, high = np.log(recipe.radius)
        radius = np.exp(rng.uniform(low, high, len(queries)))
        radius[rng.random(len(queries)) < recipe.near] = -1.0
        hours = slice(start, start + length)
        alone = rng.random() > recipe.other_pollutants
        quantiles, mean, enough = self._forward(hours, seen, queries, radius, alone)
        truth, known = self._truth(hours, queries)
        return loss(quantiles, mean, truth, known & enough[:, None], recipe)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean quantile loss of log(PM2.5 + 1) at the held-out cities over every second day of validation hours."""
        total, count = 0.0, 0
        lead = self.network.config.lead_hours
        self.network.eval()
        for start in range(self.split.validation.start, self.split.validation.stop - lead - DAY + 1, 2 * DAY):
            hours = slice(start, start + lead + DAY)
            quantiles, _, _ = self._forward(hours, self.learn, self.judge, np.full(len(self.judge), -1.0), False)
            truth, known = self._truth(hours, self.judge)
            total += pinball(truth, quantiles)[known].sum().item()
            count += int(known.sum())
        self.network.train()
        if not count:
            raise ValueError("validation: expected PM2.5 at the stations of the held-out cities; found none")
        return total / count

    def _forward(
        self,
        hours: slice,
        seen: NDArray[np.int64],
        queries: NDArray[np.int64],
        radius: NDArray[np.float64],
        alone: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantiles of z (Q, T, N), log(mean + 1) (Q, T), and whether enough stations lie beyond the radius (Q,)."""
        o, config = self.observations, self.network.config
        inputs = window(o, hours, seen, config.mean, config.std)
        if alone:
            P = len(POLLUTANTS)
            features = inputs.features.clone()
            features[..., 1:P] = features[..., P + 1 : 2 * P] = 0
            inputs = inputs._replace(features=features)
        channels = self.network.encoder(inputs)
        nearest, km, enough = self._neighbours(seen, queries, radius)
        chosen = torch.from_numpy(seen)
        geometry = geometry_of(
            nearest, km, self.between[chosen][:, chosen], self.height[chosen], self.height[torch.from_numpy(queries)]
        )
        output = o.hours[hours][config.lead_hours :]
        cycle = cyclic(output, o.lon[queries], 24.0)
        quantiles, mean = self.network(channels, nearest, geometry, cycle)
        return quantiles, mean, enough

    def _neighbours(
        self, seen: NDArray[np.int64], queries: NDArray[np.int64], radius: NDArray[np.float64]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Nearest seen stations beyond the radius, never the query: index into `seen` (Q, K), km, enough (Q,)."""
        away = self.between[torch.from_numpy(queries)][:, torch.from_numpy(seen)].clone()
        hidden = (away <= torch.from_numpy(radius)[:, None]) | torch.from_numpy(queries[:, None] == seen[None])
        away[hidden] = float("inf")
        km, index = away.topk(self.network.config.neighbours, largest=False)
        enough = torch.isfinite(km).all(dim=1)
        return index, torch.where(torch.isfinite(km), km, 1e4), enough

    def _truth(self, hours: slice, queries: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """log(PM2.5 + 1) (Q, T), and where it is known."""
        values = torch.from_numpy(self.observations.values[0, hours][self.network.config.lead_hours :][:, queries].T)
        known = torch.isfinite(values)
        return torch.where(known, values, 0.0).clamp(min=0).log1p(), known


def loss(quantiles: Tensor, mean: Tensor, truth: Tensor, known: Tensor, recipe: Recipe) -> Tensor:
    """Quantile loss in log and linear space, and squared error of the mean scaled to the same size.

    `quantiles` (Q, T, N) and `truth`, `mean` (Q, T) are in z; the linear parts are in ug m-3 over 30.
    """
    top = 7.5  # exp(7.5) = 1,800 ug m-3; keeps a stray early step finite
    y = truth.expm1()
    linear = pinball(y, quantiles.clamp(max=top).expm1()) / 30
    squared = (mean.clamp(max=top).expm1() - y) ** 2 / (30 * (20 + y[known].sum() / known.sum().clamp(min=1)))
    each = pinball(truth, quantiles) + recipe.linear * linear + recipe.mean * squared
    return each[known].sum() / known.sum().clamp(min=1)


def pinball(truth: Tensor, quantiles: Tensor) -> Tensor:
    """Quantile loss (Koenker & Bassett 1978) summed over `LEVELS` with the widths of their cells: half the CRPS."""
    levels = torch.tensor(LEVELS)
    width = torch.from_numpy(np.gradient(np.array(LEVELS))).float()
    error = truth[..., None] - quantiles
    return (torch.maximum(levels * error, (levels - 1) * error) * width).sum(-1)


def visible_only(observations: Observations, stations: NDArray[np.int64]) -> Observations:
    """Select stations of a record by index."""
    o = observations
    return replace(
        o, values=o.values[:, :, stations], lon=o.lon[stations], lat=o.lat[stations], elevation=o.elevation[stations]
    )
