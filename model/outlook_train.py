"""Training of the outlook mode: first the forecasts at stations, then the kNN between them.

The first part learns from issue times of the training hours, at random stations with a random part of the cities
unseen; the coefficients of its damped persistence come from least squares, and the network corrects from there. The
second part holds the forecaster fixed, hides cities and stations in turn, and learns to forecast at them from the rest.
Both stop by the validation hours. No target reaches beyond the slice of hours it belongs to.

Shapes as in `model.outlook`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.outlook import Layout, Outlook, OutlookConfig, OutlookNet, gather
from model.outlook_infer import layout_of
from model.outlook_inputs import DECAYS, HISTORY, HORIZON, Inputs, contexts, decays, read, record_of
from model.train import pinball
from model.windows import LEVELS, Float, Observations, Points, cyclic

log = logging.getLogger("aqnet")

Index = NDArray[np.int64]

#: Leads that validation looks at, hours.
CHECKED = (1, 2, 4, 6, 9, 12, 16, 20, 24, 30, 36, 42, 48, 60, 72, 90, 108, 126, 147, 168)

#: Training is repeatable on a given machine with this many threads.
THREADS = 1

_TOP = 7.5  # exp(7.5) = 1,800 ug m-3; keeps a stray early step finite


@dataclass(frozen=True)
class OutlookRecipe:
    """How to train. Everything that can change the weights, but the data and the seed, stands here."""

    steps: int = 400
    issues: int = 6  # a step
    stations: int = 56  # forecast an issue time
    leads: int = 20  # a step
    keep: tuple[float, float] = (0.6, 1.0)  # share of the cities whose history a step sees
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    linear: float = 1.0  # weight of the quantile loss in ug m-3, over 30
    mean: float = 0.15  # weight of the squared error of the mean
    backbone_issues: int = 700
    ridge: float = 300.0  # of the decays up to 12 h; the slower ones have few independent cases, and get more
    check_every: int = 100
    check_step: int = 31  # hours between the issue times that validation looks at
    folds: int = 12  # of hidden cities and, every second one, of hidden stations
    fold_issues: int = 30
    knn_steps: int = 2000
    knn_learning_rate: float = 5e-3
    knn_queries: int = 64  # a step
    hidden_share: float = 0.2


@dataclass
class TrainedOutlook:
    """The network at its best validation scores, and how it got there (one entry a check)."""

    network: OutlookNet
    history: list[dict[str, float]] = field(default_factory=list)
    recipe: dict[str, object] = field(default_factory=dict)


def train(
    observations: Observations,
    train_hours: slice,
    validation_hours: slice,
    city: NDArray[np.str_],
    seed: int,
    recipe: OutlookRecipe = OutlookRecipe(),
    parts: dict[str, bool] | None = None,
) -> TrainedOutlook:
    """Train on the visible stations.

    Parameters
    ----------
    observations : record of the *visible* stations only; nothing of a hidden station may be in it.
    train_hours, validation_hours : slices of the record; targets of an issue time lie in one of them as a whole.
    city : (S,) labels.
    seed : of weights and draws; the same seed gives the same weights on the same machine.
    parts : of `OutlookConfig` to switch off: ``cyclic``, ``attention``, ``lstm``.

    Raises
    ------
    ValueError
        When the training or validation hours hold no issue time.
    """
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    mean, std = scaling(observations.values[:, train_hours])
    network = OutlookNet(OutlookConfig(mean=mean, std=std, **(parts or {})))
    result = TrainedOutlook(network, recipe=asdict(recipe))
    task = _Task(network, observations, train_hours, validation_hours, city, np.random.default_rng(seed), recipe)
    task.fit_backbone()
    _descend(network, task, recipe.steps, recipe.learning_rate, recipe.check_every, result)
    calibrate(network, task)
    if recipe.knn_steps:
        between = _Between(task)
        _descend(network, between, recipe.knn_steps, recipe.knn_learning_rate, 4 * recipe.check_every, result)
        calibrate(network, between)
    network.eval()
    return result


def scaling(values: Float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of log(value + 1) of each pollutant, (P, T, S); defaults for one never measured."""
    logs = [np.log1p(part[np.isfinite(part)].clip(min=0)) for part in values]
    usual = zip(logs, OutlookConfig.mean, OutlookConfig.std, strict=True)
    found = [(float(x.mean()), float(x.std())) if len(x) else (mean, std) for x, mean, std in usual]
    mean, std = zip(*found, strict=True)
    return mean, std


@torch.no_grad()
def validate(network: OutlookNet, task: _Task | _Between) -> float:
    """Loss over the validation hours."""
    every = [
        loss(*network.distribution(made, task.between), truth, known, task.recipe)
        for made, truth, known in task.checked()
    ]
    return float(torch.stack(every).mean())


@torch.no_grad()
def calibrate(network: OutlookNet, task: _Task | _Between) -> None:
    """Give the distribution the shape that the errors have in the validation hours, in units of its own scales.

    The steps between quantiles become those of the standardised errors; the median stays at the centre.
    """
    found = []
    for forecast, truth, known in task.checked():
        error = truth - forecast.centre
        found.append((error / torch.where(error < 0, forecast.below, forecast.above).exp())[known])
    quantiles = np.quantile(torch.cat(found).numpy(), LEVELS)
    quantiles[LEVELS.index(0.5)] = 0.0
    steps = torch.from_numpy(np.diff(quantiles)).float().clamp(min=1e-3)
    network.shape[int(task.between)] = (steps / network.normal_steps).log()


def _descend(
    network: OutlookNet,
    task: _Task | _Between,
    steps: int,
    rate: float,
    check_every: int,
    result: TrainedOutlook,
) -> None:
    """Take the training steps of a task; keep the weights with the best validation score, the start among them."""
    parameters = task.parameters()
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=task.recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=warm_up(steps))
    best, kept, running = validate(network, task), [p.detach().clone() for p in parameters], float("nan")
    for step in range(1, steps + 1):
        network.train()
        loss = task.draw()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        running = loss.item() if running != running else 0.97 * running + 0.03 * loss.item()
        if step % check_every == 0 or step == steps:
            score = validate(network, task)
            result.history.append({"step": step, "loss": running, "validation": score})
            log.info("step %d: loss %.4f, validation %.4f", step, running, score)
            if score < best:
                best, kept = score, [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)


def warm_up(steps: int) -> float:
    """Share of the steps over which the learning rate rises: a tenth, but two steps where there are few."""
    return max(0.1, min(0.75, 2 / steps))


class _Task:
    """Draws issue times of the training hours and scores those of the validation hours."""

    between = False

    def __init__(
        self,
        network: OutlookNet,
        observations: Observations,
        train_hours: slice,
        validation_hours: slice,
        city: NDArray[np.str_],
        rng: np.random.Generator,
        recipe: OutlookRecipe,
    ) -> None:
        self.network, self.observations, self.city, self.rng, self.recipe = network, observations, city, rng, recipe
        self.record = record_of(observations, network.config.mean, network.config.std)
        self.issues = np.arange(train_hours.start + HISTORY, train_hours.stop - HORIZON + 1)
        self.checks = np.arange(validation_hours.start, validation_hours.stop - HORIZON + 1, recipe.check_step)
        for name, issues in (("training", self.issues), ("validation", self.checks)):
            if not len(issues):
                raise ValueError(f"{name}: expected more than {HORIZON} hours, and {HISTORY} before them; found fewer")
        o = observations
        self.contexts = contexts(o.lon, o.lat, o.lon, o.lat)

    def parameters(self) -> list[torch.nn.Parameter]:
        """Those of the network at stations; least squares has the last word on the damped persistence."""
        forecaster = self.network.forecaster
        found = [p for p in forecaster.parameters() if p is not forecaster.beta and p is not forecaster.season]
        return [*found, self.network.shape]

    def inputs(self, issue: int, seen: Index, targets: Index, lead: Tensor) -> Inputs:
        """Inputs at targets (positions in `seen`) of an issue time."""
        context = self.contexts[:, torch.from_numpy(seen[targets])][:, :, torch.from_numpy(seen)]
        return read(self.record, issue, seen, targets, context, lead)

    def truth(self, issue: int, stations: Index, lead: Tensor) -> tuple[Tensor, Tensor]:
        """log(PM2.5 + 1) (N, T) at the leads, and where it is known."""
        hour, at = issue + lead - 1, torch.from_numpy(stations)[:, None]
        return self.record.z[at, hour], self.record.valid[at, hour] > 0

    def sample(self, lead: Tensor, issues: int, stations: int) -> tuple[Inputs, Tensor, Tensor]:
        """Inputs and truth of random stations at some issue times."""
        drawn = []
        for issue in self.rng.choice(self.issues, issues, replace=False):
            seen = np.flatnonzero(self._kept())
            targets = self.rng.choice(len(seen), min(stations, len(seen)), replace=False)
            drawn.append((self.inputs(int(issue), seen, targets, lead), *self.truth(int(issue), seen[targets], lead)))
        inputs, truth, known = zip(*drawn, strict=True)
        return stacked(inputs), torch.cat(truth), torch.cat(known)

    def _kept(self) -> NDArray[np.bool_]:
        """Stations of a random share of the cities."""
        cities = np.unique(self.city)
        kept = cities[self.rng.random(len(cities)) < self.rng.uniform(*self.recipe.keep)]
        mask = np.isin(self.city, kept)
        return mask if mask.any() else ~mask

    def leads(self) -> Tensor:
        """Random leads, near ones more often."""
        chance = 1 / np.sqrt(np.arange(1, HORIZON + 1) + 3.0)
        drawn = self.rng.choice(HORIZON, self.recipe.leads, replace=False, p=chance / chance.sum())
        return torch.from_numpy(np.sort(drawn) + 1)

    @torch.no_grad()
    def fit_backbone(self) -> None:
        """Least squares of the damped persistence: coefficients of anomalies x decays and of the season."""
        forecaster = self.network.forecaster
        size = forecaster.beta.numel() + 1
        gram, right = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        for _ in range(self.recipe.backbone_issues):
            x, truth, known = self.sample(self.leads(), 1, 2 * self.recipe.stations)
            basis = torch.einsum("nk,tj->ntkj", x.anomalies, decays(x.lead)).flatten(2)
            rows = torch.cat([basis, x.season[..., None]], dim=-1)[known]
            gram += (rows.T @ rows).double()
            right += (rows.T @ (truth - x.base)[known]).double()
        slow = torch.tensor(DECAYS).double().clamp(12, 120) / 12
        penalty = self.recipe.ridge * torch.cat([(slow**2).repeat(len(forecaster.beta)), slow[:1]])
        solved = torch.linalg.solve(gram + penalty.diag(), right).float()
        forecaster.beta.copy_(solved[:-1].view(-1, len(DECAYS)))
        forecaster.season.copy_(solved[-1])

    def draw(self) -> Tensor:
        """Loss of a random step."""
        x, truth, known = self.sample(self.leads(), self.recipe.issues, self.recipe.stations)
        quantiles, mean = self.network.distribution(self.network.forecaster(x), between=False)
        return loss(quantiles, mean, truth, known, self.recipe)

    @torch.no_grad()
    def checked(self) -> Iterator[tuple[Outlook, Tensor, Tensor]]:
        """Forecasts of the validation hours' issue times, the truth, and where it is known."""
        every, lead = np.arange(len(self.city)), torch.tensor(CHECKED)
        self.network.eval()
        for issue in self.checks:
            forecast = self.network.forecaster(self.inputs(int(issue), every, every, lead))
            yield forecast, *self.truth(int(issue), every, lead)


@dataclass(frozen=True)
class _Fold:
    """Forecasts made without some stations, and what came to pass at these.

    `channels` of the kept stations, (S, I, T) each; `index` (Q, M) neighbours of each hidden station among them;
    `truth`, `known` (Q, I, T); `cycle` (Q, I, T, 2); `lead` (T,).
    """

    channels: Outlook
    index: Tensor
    layout: Layout
    truth: Tensor
    known: Tensor
    cycle: Tensor
    lead: Tensor


class _Between:
    """Draws forecasts at stations hidden in turn, the forecaster held fixed."""

    between = True

    def __init__(self, task: _Task) -> None:
        self.task, self.network, self.recipe, self.rng = task, task.network, task.recipe, task.rng
        issues = [self.rng.choice(task.issues, self.recipe.fold_issues) for _ in range(self.recipe.folds)]
        self.folds = [self._fold(at, self._hidden(n), task.leads()) for n, at in enumerate(issues)]
        self.checks = [self._fold(task.checks[::2], self._hidden(n), torch.tensor(CHECKED)) for n in range(2)]

    def parameters(self) -> list[torch.nn.Parameter]:
        """Those of the kNN; the row of `shape` for stations gets no gradient here."""
        return [*self.network.knn.parameters(), self.network.shape]

    def _hidden(self, n: int) -> Index:
        """Hide a share of the cities, or of the stations every second time."""
        task, share = self.task, self.recipe.hidden_share
        cities = np.unique(task.city)
        chosen = self.rng.choice(cities, max(1, round(share * len(cities))), replace=False)
        mask = np.isin(task.city, chosen) if n % 2 == 0 else self.rng.random(len(task.city)) < share
        mask[self.rng.integers(len(mask))] = True
        return np.flatnonzero(mask)

    @torch.no_grad()
    def _fold(self, issues: Index, hidden: Index, lead: Tensor) -> _Fold:
        task, o = self.task, self.task.observations
        seen = np.setdiff1d(np.arange(len(task.city)), hidden)
        self.network.eval()
        made = [self.network.forecaster(task.inputs(int(issue), seen, np.arange(len(seen)), lead)) for issue in issues]
        truth, known = zip(*(task.truth(int(issue), hidden, lead) for issue in issues), strict=True)
        hours = o.hours[issues][:, None] + lead.numpy() - 1
        cycle = cyclic(hours.ravel(), o.lon[hidden], 24.0).view(len(hidden), *hours.shape, 2)
        stations, points = (Points(o.lon[part], o.lat[part], o.elevation[part]) for part in (seen, hidden))
        index, layout = layout_of(stations, points, self.network.config)
        channels = Outlook(*(torch.stack(part, 1) for part in zip(*made, strict=True)))
        return _Fold(
            channels, torch.from_numpy(index), layout, torch.stack(truth, 1), torch.stack(known, 1), cycle, lead
        )

    def draw(self) -> Tensor:
        """Loss of random hidden stations and issue times of a fold."""
        fold = self.folds[self.rng.integers(len(self.folds))]
        count = min(self.recipe.knn_queries, len(fold.index))
        queries = torch.from_numpy(self.rng.choice(len(fold.index), count, replace=False))
        issues = torch.from_numpy(self.rng.choice(fold.truth.shape[1], min(4, fold.truth.shape[1]), replace=False))
        return self._loss(fold, queries, issues)

    @torch.no_grad()
    def checked(self) -> Iterator[tuple[Outlook, Tensor, Tensor]]:
        """Forecasts at a part of the cities and at a part of the stations, the truth, and where it is known."""
        for fold in self.checks:
            yield self._forecast(fold, torch.arange(fold.truth.shape[0]), torch.arange(fold.truth.shape[1]))

    def _loss(self, fold: _Fold, queries: Tensor, issues: Tensor) -> Tensor:
        made, truth, known = self._forecast(fold, queries, issues)
        return loss(*self.network.distribution(made, between=True), truth, known, self.recipe)

    def _forecast(self, fold: _Fold, queries: Tensor, issues: Tensor) -> tuple[Outlook, Tensor, Tensor]:
        weights = self.network.knn.weigh(Layout(*(part[queries] for part in fold.layout)))
        channels = Outlook(*(part[:, issues].flatten(1) for part in fold.channels))
        kriged, attended = gather(channels, fold.index[queries], weights)
        cycle, truth, known = (part[queries][:, issues].flatten(1, 2) for part in (fold.cycle, fold.truth, fold.known))
        lead = fold.lead.repeat(len(issues))
        return self.network.knn.combine(weights, kriged, attended, lead, cycle), truth, known


def stacked(inputs: tuple[Inputs, ...]) -> Inputs:
    """Put targets of several issue times with the same leads together."""
    parts = zip(*inputs, strict=True)
    return Inputs(*(p[0] if name == "lead" else torch.cat(p) for name, p in zip(Inputs._fields, parts, strict=True)))


def loss(quantiles: Tensor, mean: Tensor, truth: Tensor, known: Tensor, recipe: OutlookRecipe) -> Tensor:
    """Quantile loss in log and linear space, and squared error of the mean scaled to the same size.

    `quantiles` (N, T, R) and `truth`, `mean` (N, T) are in z; the linear parts are in ug m-3 over 30.
    """
    y = truth.expm1()
    linear = pinball(y, quantiles.clamp(max=_TOP).expm1()) / 30
    squared = (mean.clamp(max=_TOP).expm1() - y) ** 2 / (30 * (20 + y[known].sum() / known.sum().clamp(min=1)))
    each = pinball(truth, quantiles) + recipe.linear * linear + recipe.mean * squared
    return each[known].sum() / known.sum().clamp(min=1)
