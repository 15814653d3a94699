"""What the outlook mode must beat: persistence, climatology, ridge, boosting, LSTM and PatchTST on lagged PM2.5.

Each is fitted to the training hours of the visible stations and chosen, where it has a choice, by the validation hours.
It forecasts z = log(PM2.5 + 1) of the 168 hours after an issue time from the 336 before it. `dressed` then gives every
one a distribution, from its own errors in the validation hours, and `spread` carries it to hidden stations by kriging,
with the same weights for all.

scikit-learn and transformers are development extras: they are imported where they are used.
Shapes: S stations, T hours, I issue times, N series, P = 168 leads, R levels, Q points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.baseline import CNEMC_2019_TERRAIN, krige
from model.geometry import distance_matrix, terrain_distance
from model.outlook_inputs import DAY, HISTORY, HORIZON
from model.outlook_train import warm_up
from model.windows import LEVELS, Observations, Points

Array = NDArray[np.float32]
Index = NDArray[np.int64]

#: (I,) issue times -> (I, S, 168) z.
Forecast = Callable[[Index], Array]

#: Lagged values of the boosting, hours before the issue time, and spans of its lagged means.
LAGS, MEANS = (1, 2, 3, 6, 12, 24, 48), (6, 24, 72, 168, 336)


@dataclass(frozen=True)
class Series:
    """What a baseline may learn from: `z` (S, T) log(PM2.5 + 1), NaN where missing, its `hours` since 1970, and the
    issue times whose forecasts lie in the training and in the validation hours.
    """  # noqa: D205

    z: Array
    hours: Index
    train: Index
    validation: Index

    def history(self, issues: Index) -> Array:
        """Hours before each issue time, (I, S, 336)."""
        return self.z[:, issues[:, None] + np.arange(-HISTORY, 0)].swapaxes(0, 1)

    def truth(self, issues: Index) -> Array:
        """Hours after each issue time, (I, S, 168)."""
        return self.z[:, issues[:, None] + np.arange(HORIZON)].swapaxes(0, 1)


def series(
    observations: Observations, train_end: int, test_start: int, train_step: int = 13, check_step: int = 31
) -> Series:
    """Log series of a record of visible stations, issue times `train_step` and `check_step` hours apart."""
    values = observations.values[0].T
    train = np.arange(HISTORY, train_end - HORIZON + 1, train_step)
    checks = np.arange(max(train_end, HISTORY), test_start - HORIZON + 1, check_step)
    return Series(np.log1p(values.clip(min=0)).astype(np.float32), observations.hours, train, checks)


def filled(history: Array) -> Array:
    """Put the last value before it in place of a missing one; before the first, the mean; 3.5 without any."""
    n = history.shape[-1]
    known = np.isfinite(history)
    at = np.maximum.accumulate(np.where(known, np.arange(n), -1), axis=-1)
    last = np.take_along_axis(history, at.clip(0), axis=-1)
    return np.where(at >= 0, last, level(history)[..., None]).astype(np.float32)


def level(history: Array) -> Array:
    """Mean of the known values along the last axis; 3.5 without any."""
    known = np.isfinite(history)
    count = known.sum(-1)
    return np.where(count > 0, np.where(known, history, 0).sum(-1) / np.maximum(count, 1), 3.5).astype(np.float32)


def pattern(history: Array) -> Array:
    """Mean of each hour of the day over the 14 days, (..., 24), the level where an hour was never seen.

    Position 0 is the hour of the day of the first hour of history, which is that of lead 1 too.
    """
    days = history.reshape(*history.shape[:-1], -1, DAY)
    known = np.isfinite(days)
    count = known.sum(-2)
    mean = np.where(known, days, 0).sum(-2) / np.maximum(count, 1)
    return np.where(count > 0, mean, level(history)[..., None]).astype(np.float32)


# ---- persistence and climatology ----


def persistence(data: Series, seed: int = 0) -> Forecast:
    """Last known value, at every lead."""

    def forecast(issues: Index) -> Array:
        return np.repeat(filled(data.history(issues))[..., -1:], HORIZON, axis=-1)

    return forecast


def damped_persistence(data: Series, seed: int = 0) -> Forecast:
    """Reference + w_h (last value - reference), w_h by least squares a lead.

    The reference is the mean of the last 14 days, that and its hour-of-day pattern, or the station's training mean:
    the one with the lowest error in the validation hours.
    """
    average = level(data.z[:, : _trained_until(data)])

    def towards_mean(history: Array) -> tuple[Array, Array]:
        flat = level(history)[..., None]
        return np.repeat(flat, HORIZON, -1), flat[..., 0]

    def towards_pattern(history: Array) -> tuple[Array, Array]:
        daily = pattern(history)
        return np.tile(daily, HORIZON // DAY), daily[..., -1]

    def towards_training(history: Array) -> tuple[Array, Array]:
        flat = np.broadcast_to(average, history.shape[:-1])
        return np.repeat(flat[..., None], HORIZON, -1), flat

    return _best(data, [_damped(data, r) for r in (towards_mean, towards_pattern, towards_training)])


def _damped(data: Series, reference: Callable[[Array], tuple[Array, Array]]) -> Forecast:
    """`reference` gives the reference at the leads (..., 168) and at the last hour (...)."""

    def parts(issues: Index) -> tuple[Array, Array]:
        history = data.history(issues)
        ahead, now = reference(history)
        return ahead, filled(history)[..., -1] - now

    ahead, anomaly = parts(data.train)
    excess = data.truth(data.train) - ahead
    known = np.isfinite(excess)
    product = np.where(known, excess * anomaly[..., None], 0).sum((0, 1))
    weight = (product / np.where(known, anomaly[..., None] ** 2, 0).sum((0, 1))).astype(np.float32)

    def forecast(issues: Index) -> Array:
        ahead, anomaly = parts(issues)
        return ahead + weight * anomaly[..., None]

    return forecast


def climatology(data: Series, seed: int = 0) -> Forecast:
    """Mean of the hour of the day: of the training hours or of the last 14 days, by the validation hours."""
    end = _trained_until(data)
    days = end // DAY
    trained = pattern(data.z[:, : days * DAY])  # position 0 is the hour of the day of the record's first hour

    def of_training(issues: Index) -> Array:
        hour = (issues[:, None] + np.arange(HORIZON)) % DAY
        return trained[:, hour].swapaxes(0, 1)

    def rolling(issues: Index) -> Array:
        return np.tile(pattern(data.history(issues)), HORIZON // DAY)

    return _best(data, [of_training, rolling])


def _trained_until(data: Series) -> int:
    """End of the hours that the training issue times see; the validation hours begin there or later."""
    return int(data.train[-1]) + HORIZON


def _best(data: Series, candidates: list[Forecast]) -> Forecast:
    """The candidate with the lowest mean absolute error of PM2.5 in the validation hours."""
    truth = np.expm1(data.truth(data.validation))
    errors = [np.nanmean(np.abs(np.expm1(forecast(data.validation)) - truth)) for forecast in candidates]
    return candidates[int(np.argmin(errors))]


# ---- regression on lagged PM2.5 ----


def ridge(
    data: Series, seed: int = 0, rows: int = 60_000, alphas: tuple[float, ...] = (1.0, 100.0, 3000.0)
) -> Forecast:
    """Ridge regression, one a lead, on the last day's hours, older means and the hour-of-day pattern."""
    from sklearn.linear_model import Ridge  # type: ignore[import-untyped]

    def features(issues: Index) -> Array:
        history = data.history(issues)
        full, daily = filled(history), pattern(history)
        older = full[..., : -2 * DAY].reshape(*full.shape[:-1], -1, DAY).mean(-1)
        recent = full[..., -2 * DAY : -DAY].reshape(*full.shape[:-1], -1, 3).mean(-1)
        parts = [full[..., -DAY:], recent, older, daily, _clock(data, issues, full.shape[1])]
        return np.concatenate(parts, axis=-1)

    inputs, truth = features(data.train), data.truth(data.train)
    inputs, truth = _some(inputs.reshape(-1, inputs.shape[-1]), truth.reshape(-1, HORIZON), rows, seed)

    def fit(alpha: float) -> Forecast:
        coefficients, intercepts = [], []
        for lead in range(HORIZON):
            known = np.isfinite(truth[:, lead])
            model = Ridge(alpha).fit(inputs[known], truth[known, lead])
            coefficients.append(model.coef_)
            intercepts.append(model.intercept_)
        weight, offset = np.stack(coefficients, -1), np.array(intercepts, np.float32)
        return lambda issues: (features(issues) @ weight + offset).astype(np.float32)

    return _best(data, [fit(alpha) for alpha in alphas])


def boosting(data: Series, seed: int = 0, rows: int = 600_000, trees: int = 150) -> Forecast:
    """Histogram gradient boosting on lags, lagged means, the pattern at the target hour, the lead and both hours."""
    from sklearn.ensemble import HistGradientBoostingRegressor  # type: ignore[import-untyped]

    lead = np.arange(1, HORIZON + 1, dtype=np.float32)

    def static(issues: Index) -> tuple[Array, Array]:
        history = data.history(issues)
        full = filled(history)
        lags = np.stack([full[..., -n] for n in LAGS], -1)
        means = np.stack([full[..., -n:].mean(-1) for n in MEANS], -1)
        return np.concatenate([lags, means, _clock(data, issues, full.shape[1])], -1), pattern(history)

    def table(issues: Index, leads: Index) -> Array:
        """Rows (I, S, leads, features)."""
        fixed, daily = static(issues)
        at = (leads - 1) % DAY
        hour = ((data.hours[issues][:, None] + leads - 1) % DAY).astype(np.float32)
        shape = (*fixed.shape[:2], len(leads))
        hourly = [daily[..., at], np.broadcast_to(lead[leads - 1], shape), np.broadcast_to(hour[:, None], shape)]
        wide = np.broadcast_to(fixed[:, :, None], (*shape, fixed.shape[-1]))
        return np.concatenate([wide, np.stack(hourly, -1)], axis=-1)

    rng = np.random.default_rng(seed)
    inputs, targets = [], []
    for chunk in np.array_split(data.train, max(len(data.train) // 16, 1)):
        leads = np.sort(rng.choice(HORIZON, 24, replace=False)) + 1
        x, y = table(chunk, leads), data.truth(chunk)[..., leads - 1]
        x, y = _some(x.reshape(-1, x.shape[-1]), y.reshape(-1, 1), rows * len(chunk) // len(data.train), seed)
        inputs.append(x[np.isfinite(y[:, 0])])
        targets.append(y[np.isfinite(y)])
    model = HistGradientBoostingRegressor(max_iter=trees, max_leaf_nodes=31, learning_rate=0.08, random_state=seed)
    model.fit(np.concatenate(inputs), np.concatenate(targets))

    def forecast(issues: Index) -> Array:
        every = np.arange(1, HORIZON + 1)
        made = [model.predict((x := table(i[None], every)).reshape(-1, x.shape[-1])) for i in issues]
        return np.stack(made).reshape(len(issues), -1, HORIZON).astype(np.float32)

    return forecast


def _clock(data: Series, issues: Index, stations: int) -> Array:
    """Sine and cosine of the hour of the day of the issue time, (I, S, 2)."""
    angle = 2 * np.pi * (data.hours[issues] % DAY) / DAY
    both = np.stack([np.sin(angle), np.cos(angle)], -1).astype(np.float32)
    return np.broadcast_to(both[:, None], (len(issues), stations, 2))


def _some(inputs: Array, truth: Array, rows: int, seed: int) -> tuple[Array, Array]:
    """At most `rows` random rows."""
    if len(inputs) <= rows:
        return inputs, truth
    chosen = np.random.default_rng(seed).choice(len(inputs), rows, replace=False)
    return inputs[chosen], truth[chosen]


# ---- networks without a neighbour ----


class Seq2Vec(nn.Module):
    """Plain LSTM over the hourly history; the last state gives all leads, as differences from the level."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, hidden, batch_first=True)
        self.out = nn.Linear(hidden + 1, HORIZON)

    def forward(self, past: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """(N, 336) z, 0 where not `known` -> (N, 168)."""
        middle = (past.sum(1) + 3.5) / (known.sum(1) + 1)
        state = self.lstm(torch.stack([(past - middle[:, None]) * known, known], dim=-1))[0][:, -1]
        return middle[:, None] + self.out(torch.cat([state, middle[:, None] - 3.5], dim=-1))


def lstm(data: Series, seed: int = 0, steps: int = 400, batch: int = 192) -> Forecast:
    """LSTM of `Seq2Vec`."""
    torch.manual_seed(seed)
    model = Seq2Vec()
    return _learned(data, model, lambda past, known: model(past, known), seed, steps, 2e-3, batch)


def patchtst(data: Series, seed: int = 0, steps: int = 600, batch: int = 192) -> Forecast:
    """PatchTST (Nie et al. 2023, arXiv 2211.14730) as transformers has it, instance-normalised, one channel."""
    from transformers import PatchTSTConfig, PatchTSTForPrediction

    torch.manual_seed(seed)
    config = PatchTSTConfig(
        num_input_channels=1,
        context_length=HISTORY,
        prediction_length=HORIZON,
        patch_length=16,
        patch_stride=8,
        d_model=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        ffn_dim=64,
        head_dropout=0.2,
        scaling="std",
        loss="mse",
    )
    model: Any = PatchTSTForPrediction(config)

    def call(past: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        made = model(past_values=past[..., None], past_observed_mask=known[..., None] > 0)
        found: torch.Tensor = made.prediction_outputs[..., 0]
        return found

    return _learned(data, model, call, seed, steps, 1e-3, batch)


def _learned(
    data: Series,
    model: nn.Module,
    call: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    seed: int,
    steps: int,
    rate: float,
    batch: int,
    check_every: int = 100,
) -> Forecast:
    """Fit a network of the history alone by absolute error of z; keep the weights that validate best."""
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=warm_up(steps))
    train = np.arange(data.train[0], data.train[-1] + 1)

    def forecast(issues: Index) -> Array:
        model.eval()
        with torch.no_grad():
            made = [call(*_masked(data.history(i[None])[0])).numpy() for i in issues]
        model.train()
        return np.stack(made)

    best, kept = np.inf, {}
    truth = np.expm1(data.truth(data.validation))
    for step in range(1, steps + 1):
        at, station = rng.choice(train, batch), rng.integers(len(data.z), size=batch)
        past = data.z[station[:, None], at[:, None] + np.arange(-HISTORY, 0)]
        ahead, known = _masked(data.z[station[:, None], at[:, None] + np.arange(HORIZON)])
        loss = ((call(*_masked(past)) - ahead).abs() * known).sum() / known.sum().clamp(min=1)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % check_every == 0 or step == steps:
            error = float(np.nanmean(np.abs(np.expm1(forecast(data.validation)) - truth)))
            if error < best:
                best, kept = error, {name: t.clone() for name, t in model.state_dict().items()}
    model.load_state_dict(kept)
    return forecast


def _masked(values: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """Values with 0 where missing, and 1 where known."""
    known = np.isfinite(values)
    return torch.from_numpy(np.where(known, values, 0).astype(np.float32)), torch.from_numpy(known).float()


METHODS: dict[str, Callable[..., Forecast]] = {
    "persistence": persistence,
    "damped_persistence": damped_persistence,
    "climatology": climatology,
    "ridge": ridge,
    "boosting": boosting,
    "lstm": lstm,
    "patchtst": patchtst,
}

#: Packages that some of them need beyond the project's own dependencies.
NEEDS = {"ridge": "sklearn", "boosting": "sklearn", "patchtst": "transformers"}


# ---- a distribution, and to hidden stations ----


@dataclass(frozen=True)
class Dress:
    """Errors of a forecast of z a lead: `quantiles` (168, R) at `LEVELS`, `growth` (168,) mean of exp(error),
    `variance` (168,), and `share` of the kriging variance that adds to it between stations.
    """  # noqa: D205

    quantiles: Array
    growth: Array
    variance: Array
    share: float = 0.0

    def __call__(self, z: Array, kriging: Array | float = 0.0) -> tuple[Array, Array]:
        """Mean (..., S, 168) and quantiles (R, ..., S, 168) of PM2.5 from z (..., S, 168).

        `kriging` (S,) is the variance of the kriged z; it widens the distribution about its median.
        """
        added = self.share * np.asarray(kriging, np.float32).reshape(-1, 1)  # (S, 1)
        middle = self.quantiles[:, LEVELS.index(0.5)]
        wider = np.sqrt(1 + added / self.variance)
        parts = [np.expm1(z + middle + wider * (self.quantiles[:, r] - middle)) for r in range(len(LEVELS))]
        mean = np.exp(z) * self.growth * np.exp(added / 2) - 1
        return mean.clip(min=0).astype(np.float32), np.stack(parts).clip(min=0).astype(np.float32)


def dress(z: Array, truth: Array) -> Dress:
    """Distribution of the errors truth - z of (I, S, 168) validation forecasts, NaN where the truth is missing."""
    error = (truth - z).reshape(-1, HORIZON)
    quantiles = np.nanquantile(error, LEVELS, axis=0).T
    found = quantiles, np.nanmean(np.exp(error.clip(-3, 3)), axis=0), np.nanvar(error, axis=0)
    return Dress(*(part.astype(np.float32) for part in found))


def dressed(forecast: Forecast, data: Series, place: Observations, folds: list[Index]) -> Dress:
    """Distribution of a forecast's errors in the validation hours, at stations and at stations withheld by `folds`."""
    z, truth = forecast(data.validation), data.truth(data.validation)
    found = dress(z, truth)
    return replace(found, share=kriging_share(found, z[::3], truth[::3], place, folds))


def kriging_share(found: Dress, z: Array, truth: Array, place: Observations, folds: list[Index]) -> float:
    """Share of the kriging variance in the extra error at stations withheld in turn; `z`, `truth` (I, S, 168)."""
    extra, variance = [], []
    for hidden in folds:
        kept = np.setdiff1d(np.arange(z.shape[1]), hidden)
        kriged, s2 = spread(z[:, kept], _of(place, kept), _of(place, hidden))
        extra.append(np.nanmean((truth[:, hidden] - kriged) ** 2 - found.variance))
        variance.append(s2.mean())
    return float(np.clip(np.mean(extra) / np.mean(variance), 0.0, 2.0))


def _of(place: Observations, stations: Index) -> Points:
    return Points(place.lon[stations], place.lat[stations], place.elevation[stations])


def spread(z: Array, stations: Points | Observations, points: Points, k: int = 48) -> tuple[Array, Array]:
    """Ordinary kriging of forecasts z (I, S, P) to points: (I, Q, P), and the variance (Q,) of an observation there."""
    factor = CNEMC_2019_TERRAIN.terrain_factor

    def km(a: Points | Observations, b: Points | Observations) -> NDArray[np.float64]:
        rise = np.asarray(a.elevation)[:, None] - np.asarray(b.elevation)[None]
        return terrain_distance(distance_matrix(a.lon, a.lat, b.lon, b.lat), rise, factor)

    issues, count, leads = z.shape
    flat = z.swapaxes(1, 2).reshape(-1, count).astype(np.float64)
    kriged, variance = krige(flat, km(stations, stations), km(points, stations), CNEMC_2019_TERRAIN, min(k, count))
    return kriged.reshape(issues, leads, -1).swapaxes(1, 2).astype(np.float32), variance[0].astype(np.float32)
