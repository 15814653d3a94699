"""Training of AQ-Net on the loss that it is judged by: the error at stations whose values it does not see.

Two stages. First the covariances of the kriging layers are fitted: the error at every station when its whole city is
left out, and when it alone is left out, follows from one matrix inverse (Dubrule 1983, doi:10.1007/BF01033240), so that
all stations are judged in each step. Then the rest of the network is trained on top of them: each step hides some
cities and some single stations from everything, thins out the others, and asks for the hidden ones; so the network
meets a new layout every time and learns short and long distances alike.

Shapes: S stations, Q queries, T output hours, B bands, N levels.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import ablation
from model.aqnet import AQNet, AQNetConfig, bands_of, fill
from model.geometry import distance_matrix
from model.infer import DAY
from model.kriging import MODES, WHOLE, Geometry, Kriging, band_rows
from model.layout import surroundings
from model.windows import (
    LEVELS,
    POLLUTANTS,
    Observations,
    Window,
    cyclic,
    from_z,
    normalisation,
    terrain_features,
    to_z,
    window,
)

log = logging.getLogger("aqnet")

#: Training is repeatable on a given machine with this many threads.
THREADS = 1


@dataclass(frozen=True)
class Recipe:
    """How to train. Everything that can change the weights, but the data and the seed, stands here."""

    covariance_steps: int = 120
    covariance_rate: float = 0.08
    covariance_hours: int = 64  # a step
    steps: int = 300
    windows: int = 3  # a step
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    hidden_cities: tuple[float, float] = (0.05, 0.2)  # share of the cities hidden in a step
    hidden_stations: float = 0.08  # share of the other stations
    thin: float = 0.5  # share of steps in which stations are left out besides
    thinned: tuple[float, float] = (0.0, 0.5)  # share of the stations then left out
    other_pollutants: float = 0.75  # share of windows that see them; the rest see PM2.5 alone
    linear: float = 25.0  # ug m-3 of quantile loss that count as much as one unit of z
    mean: float = 0.1  # weight of the squared error of the mean
    averaged: float = 0.3  # last share of the steps over which weights are averaged
    without: str = ""  # a part that is taken out, see `model.ablation.PARTS`

    def __post_init__(self) -> None:
        ablation.check(self.without)


@dataclass(frozen=True)
class Split:
    """What may be learned from: `train` is a slice of the record's hours, `city` (S,) labels."""

    train: slice
    city: NDArray[np.str_]


@dataclass
class Trained:
    """The network, and how it got there (one entry a hundred steps)."""

    network: AQNet
    history: list[dict[str, float]] = field(default_factory=list)
    recipe: dict[str, object] = field(default_factory=dict)


def train(
    observations: Observations,
    split: Split,
    seed: int,
    recipe: Recipe = Recipe(),
    covariances: Mapping[str, Tensor] | None = None,
) -> Trained:
    """Train on the stations and hours of a split.

    Parameters
    ----------
    observations : record of the *visible* stations only; nothing of a hidden station may be in it.
    split : hours to train on, and the stations' cities.
    seed : of weights, windows and hidden stations; the same seed gives the same weights on the same machine.
    covariances : state of the kriging layer as the first stage left it for the same stations, hours and seed; it is
        then not run again.

    Raises
    ------
    ValueError
        When no more stations are left to train on than attention looks at, or the hours are too few for a window.
    """
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    mean, std = normalisation(observations.values[:, split.train])
    network = AQNet(AQNetConfig(mean=mean, std=std))
    task = _Task(network, observations, split, np.random.default_rng(seed), recipe)
    result = Trained(network, recipe=asdict(recipe))
    if covariances is None:
        for mode in MODES:
            task.fit_bands(mode)
        task.fit_whole()
    else:
        network.knn.kriging.load_state_dict(covariances)
    task.rng = np.random.default_rng([seed, 2])
    began = time.perf_counter()
    for step, loss in enumerate(_steps(task), start=1):
        if step % 100 == 0 or step == recipe.steps:
            result.history.append({"step": step, "loss": loss})
            log.info("step %d: loss %.4f, %.0f s", step, loss, time.perf_counter() - began)
    network.requires_grad_(True).eval()
    return result


def _steps(task: _Task) -> Iterator[float]:
    """Take the steps of the second stage, yielding a running mean of the loss; leave the averaged weights."""
    network, recipe = task.network, task.recipe
    network.knn.kriging.requires_grad_(False)
    ablation.pin(network, recipe.without)
    learned = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=max(recipe.steps, 2), pct_start=0.16
    )
    average = torch.optim.swa_utils.AveragedModel(network)
    running = float("nan")
    for step in range(recipe.steps):
        loss = task.draw()
        optimiser.zero_grad()
        loss.backward()
        ablation.pin(network, recipe.without)
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        schedule.step()
        ablation.pin(network, recipe.without)
        if step >= min((1 - recipe.averaged) * recipe.steps, recipe.steps - 1):
            average.update_parameters(network)
        running = loss.item() if running != running else 0.98 * running + 0.02 * loss.item()
        yield running
    network.load_state_dict(average.module.state_dict())
    ablation.pin(network, recipe.without)


class _Task:
    """Draws training steps from a record."""

    def __init__(
        self, network: AQNet, observations: Observations, split: Split, rng: np.random.Generator, recipe: Recipe
    ) -> None:
        self.network, self.observations, self.split, self.rng, self.recipe = network, observations, split, rng, recipe
        config, o = network.config, observations
        if len(split.city) <= config.near:
            raise ValueError(f"training: expected more than {config.near} stations; found {len(split.city)}")
        self.length = config.lead_hours + DAY + config.tail_hours
        if split.train.stop - split.train.start <= self.length:
            found = split.train.stop - split.train.start
            raise ValueError(f"training: expected more than {self.length} hours; found {found}")
        self.blocks = [np.flatnonzero(split.city == name) for name in np.unique(split.city)]
        if len(self.blocks) < 2:
            raise ValueError(f"training: expected stations of two or more cities; found {len(self.blocks)}")
        self.between = torch.from_numpy(distance_matrix(o.lon, o.lat, o.lon, o.lat)).float()
        self.terrain = terrain_features(o)
        self.truth = torch.from_numpy(np.ascontiguousarray(o.values[POLLUTANTS.index("pm2p5")].T)).float()  # (S, T)

    # ---- first stage ----

    def fit_bands(self, mode: str) -> None:
        """Fit the covariances of a mode's bands, and the scale of their variances."""
        self._fit(band_rows(mode), *self._parts(mode), mode)

    def fit_whole(self) -> None:
        """Fit the covariance of the whole value, by which stations judge one another."""
        parts, valid = self._parts("interim")
        self._fit([WHOLE], parts.sum(0, keepdim=True), valid, "whole")

    @torch.no_grad()
    def _parts(self, mode: str) -> tuple[Tensor, Tensor]:
        """Bands (B, S, T) of the training hours, gaps filled, and where they were observed (S, T)."""
        alone = surroundings(self.network.knn.kriging, self.between, self.terrain).alone
        hours, lead = self.split.train, self.network.config.lead_hours
        every, parts, valid = np.arange(len(self.between)), [], []
        for start in range(hours.start, hours.stop, 24 * DAY):
            stop = min(start + 24 * DAY, hours.stop)
            span = slice(max(start - lead, hours.start), min(stop + lead, hours.stop))
            read = window(self.observations, span, every, self.network.config.mean, self.network.config.std)
            filled, _ = fill(read, alone, two_sided=mode == "final")
            own = slice(start - span.start, stop - span.start)
            parts.append(bands_of(filled, read.valid.any(0), mode)[:, own].permute(2, 0, 1))
            valid.append(read.valid[:, own])
        return torch.cat(parts, dim=2), torch.cat(valid, dim=1)

    def _fit(self, rows: list[int], parts: Tensor, valid: Tensor, name: str) -> None:
        """Fit some rows of the kriging parameters to parts (R, S, T) that add up to z."""
        kriging, recipe = self.network.knn.kriging, self.recipe
        learned = [p for key, p in kriging.named_parameters() if key != "log_scale"]
        optimiser = torch.optim.Adam(learned, lr=recipe.covariance_rate)
        steps = recipe.covariance_steps
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, recipe.covariance_rate, total_steps=max(steps, 2), pct_start=0.21
        )
        observed = valid.any(0).nonzero()[:, 0].numpy()
        for _ in range(steps):
            hours = torch.from_numpy(self.rng.choice(observed, min(recipe.covariance_hours, len(observed))))
            loss = self._left_out_loss(kriging, rows, parts[:, :, hours].double(), valid[:, hours])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        self._scale(kriging, rows, parts[:, :, observed[::23]].double(), valid[:, observed[::23]])
        log.info("covariances, %s: loss %.4f", name, loss.item() if steps else float("nan"))

    def _left_out_loss(self, kriging: Kriging, rows: list[int], parts: Tensor, valid: Tensor) -> Tensor:
        """Error at every station when its city is left out, and when it alone is."""
        system, z = kriging.system(self.between, self.terrain, rows).precision, parts.sum(0)
        alone = (system @ parts) / system.diagonal(dim1=1, dim2=2)[..., None]
        total = torch.zeros((), dtype=torch.float64)
        for residual in (leave_out(system, parts, self.blocks)[0].sum(0), alone.sum(0)):
            off = (from_z(z - residual) - from_z(z))[valid]
            total = total + residual[valid].abs().mean()
            total = total + (off.abs().mean() + 0.3 * off.pow(2).mean().sqrt()) / self.recipe.linear
        return total

    @torch.no_grad()
    def _scale(self, kriging: Kriging, rows: list[int], parts: Tensor, valid: Tensor) -> None:
        """Scale the variances so that those of each band, and of their sum, are those of the residuals."""
        residual, unit = leave_out(kriging.system(self.between, self.terrain, rows).precision, parts, self.blocks)
        each = (residual**2)[:, valid].mean(1) / unit.mean(1)
        total = residual.sum(0)[valid].pow(2).mean() / (each[:, None] * unit).sum(0).mean()
        kriging.log_scale[rows] = (each * total).log().float()

    # ---- second stage ----

    def draw(self) -> Tensor:
        """Loss of one step: a few windows of the same stations."""
        seen, queries = self._partition()
        mode = MODES[int(self.rng.integers(len(MODES)))]
        between, terrain = self.between[seen][:, seen], self.terrain[seen]
        around = surroundings(self.network.knn.kriging, between, terrain)
        geometry = Geometry(self.between[queries][:, seen], between, self.terrain[queries], terrain)
        index = geometry.distance.topk(min(self.network.config.near, len(seen)), largest=False)[1]
        weights = self.network.knn(geometry, index, mode)
        losses = []
        for _ in range(self.recipe.windows):
            hours, read = self._window(seen, mode)
            cycle = cyclic(self.observations.hours[hours], self.observations.lon[queries], 24.0)
            quantiles, mean = self.network(self.network.encoder(read, around, mode), index, weights, cycle)
            y = self.truth[queries][:, hours]
            losses.append(loss(quantiles, mean, torch.nan_to_num(y), torch.isfinite(y), self.recipe))
        return torch.stack(losses).mean()

    def _window(self, seen: NDArray[np.int64], mode: str) -> tuple[slice, Window]:
        """Hours of a random day, and the window around it that a mode reads."""
        config, train = self.network.config, self.split.train
        start = int(self.rng.integers(train.start, train.stop - self.length))
        day = slice(start + config.lead_hours, start + config.lead_hours + DAY)
        stop = day.stop + (config.tail_hours if mode == "final" else 0)
        read = window(self.observations, slice(start, stop), seen, config.mean, config.std)
        if self.rng.random() > self.recipe.other_pollutants:
            read = read._replace(features=without_others(read.features))
        return day, read

    def _partition(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Stations that a step sees, and those that it asks for: whole cities and single ones."""
        recipe, rng, city = self.recipe, self.rng, self.split.city
        names = rng.permutation(np.unique(city))
        away = np.isin(city, names[: max(1, round(rng.uniform(*recipe.hidden_cities) * len(names)))])
        single = ~away & (rng.random(len(city)) < recipe.hidden_stations)
        seen = ~away & ~single
        if rng.random() < recipe.thin:
            seen &= rng.random(len(city)) > rng.uniform(*recipe.thinned)
        if seen.sum() <= self.network.config.near:
            seen = ~single
            seen[rng.permutation(np.flatnonzero(away))[: max(1, len(city) // 10)]] = False
        return np.flatnonzero(seen), np.flatnonzero((away | single) & ~seen)


def without_others(features: Tensor) -> Tensor:
    """Features (..., F) of a window in which PM2.5 is the only pollutant."""
    features = features.clone()
    features[..., : 2 * (len(POLLUTANTS) - 1)] = 0
    return features


def leave_out(system: Tensor, parts: Tensor, blocks: list[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Residuals (R, S, T) of parts (R, S, T) at stations left out by blocks, and their variances (R, S).

    With Q the kriging precision (R, S, S), the residuals of a block g are inverse(Q[g, g]) (Q x)[g] and their
    covariance is inverse(Q[g, g]) (Dubrule 1983, doi:10.1007/BF01033240). Blocks of one size are solved together.
    """
    product, residual = system @ parts, torch.empty_like(parts)
    variance = torch.empty(parts.shape[:2], dtype=parts.dtype)
    for size in sorted({len(block) for block in blocks}):
        index = torch.from_numpy(np.stack([block for block in blocks if len(block) == size]))  # (G, n)
        inverse = torch.linalg.inv(system[:, index[:, :, None], index[:, None, :]])  # (R, G, n, n)
        residual = residual.index_copy(1, index.flatten(), (inverse @ product[:, index]).flatten(1, 2))
        variance = variance.index_copy(1, index.flatten(), inverse.diagonal(dim1=2, dim2=3).flatten(1, 2))
    return residual, variance


def loss(quantiles: Tensor, mean: Tensor, truth: Tensor, known: Tensor, recipe: Recipe) -> Tensor:
    """Quantile loss of z and of PM2.5, and squared error of the mean scaled to the same size.

    `quantiles` (Q, T, N) and `mean` (Q, T) are in z; `truth` (Q, T) is in ug m-3.
    """
    top = 13.0  # 2,200 ug m-3; keeps a stray early step finite
    linear = pinball(truth, from_z(quantiles.clamp(max=top))) / recipe.linear
    level = 20 + truth[known].sum() / known.sum().clamp(min=1)
    squared = (from_z(mean.clamp(max=top)) - truth) ** 2 / (recipe.linear * level)
    each = pinball(to_z(truth), quantiles) + linear + recipe.mean * squared
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
    place = {name: getattr(o, name)[stations] for name in ("lon", "lat", "elevation")}
    relief = None if o.relief is None else o.relief[stations]
    return replace(o, values=o.values[:, :, stations], relief=relief, **place)
