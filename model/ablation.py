"""Parts of AQ-Net that can be taken out, so that training without each tells what it is worth.

A part is out while some of its weights keep values with which it does nothing. Training, compiled inference and
weights on disk are then those of the whole network, and a part starts from the same draw whichever other is out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from model.aqnet import AQNet, AQNetConfig
from model.kriging import BANDS, WHOLE
from model.windows import FEATURES, POLLUTANTS

#: Bias of a gate that is shut: its sigmoid is 0 in float32.
SHUT = -1e4

_ALL = slice(None)


class Held(NamedTuple):
    """Weights that keep a value: the name of a parameter, what of it, and the value (broadcast)."""

    name: str
    where: tuple[slice, ...]
    value: Tensor | float


def check(part: str) -> None:
    """Refuse a name that is not in `PARTS`; the empty name is that of the whole network.

    Raises
    ------
    ValueError
        Naming the parts there are.
    """
    if part and part not in PARTS:
        raise ValueError(f"training without a part: expected one of {', '.join(PARTS)}; found {part!r}")


def pin(network: AQNet, part: str) -> None:
    """Give the weights of a part the values that take it out, and their gradients, if any, 0; nothing for ''.

    To be called after a backward pass, so that a step is not shortened for their sake, and after the step.
    """
    check(part)
    with torch.no_grad():
        for name, where, value in PARTS[part](network) if part else ():
            parameter = network.get_parameter(name)
            parameter[where] = value
            if parameter.grad is not None:
                parameter.grad[where] = 0


# ---- where things are ----


def _inflow(columns: slice) -> Held:
    """Input features of the encoder, in the order of `model.windows.window`, are not read."""
    return Held("encoder.inflow.weight", (_ALL, columns), 0.0)


_OTHERS, _CYCLES = slice(0, 2 * (len(POLLUTANTS) - 1)), slice(2 * (len(POLLUTANTS) - 1), FEATURES)


def _head(config: AQNetConfig, *inputs: str) -> list[Held]:
    """Inputs of the head are not read; their places are those of `model.aqnet.Head.inputs`."""
    one = {"error": 1, "heard": 1, "level": 1}
    sizes = {"total": 1, "bands": BANDS - 1, **one, "embedding": config.embedding, "cycle": 2}
    ends = dict(zip(sizes, accumulate(sizes.values()), strict=True))
    return [Held("head.mlp.0.weight", (_ALL, slice(ends[name] - sizes[name], ends[name])), 0.0) for name in inputs]


def _layer(name: str) -> list[Held]:
    """A linear layer gives 0."""
    return [Held(f"{name}.weight", (_ALL,), 0.0), Held(f"{name}.bias", (_ALL,), 0.0)]


# ---- the parts ----


def _attention(network: AQNet) -> list[Held]:
    """What attention over the hours found is not read."""
    d = network.config.hidden
    return [Held("encoder.correct.0.weight", (_ALL, slice(2 * d, 3 * d)), 0.0)]


def _lstm(network: AQNet) -> list[Held]:
    """No memory: an hour's state is that of the hour's input alone."""
    d, held = network.config.hidden, []
    for way in ("encoder.forwards", "encoder.backwards"):
        forget = slice(d, 2 * d)  # torch has the gates as input, forget, cell, output
        held += [
            Held(f"{way}.weight_hh_l0", (_ALL,), 0.0),
            Held(f"{way}.weight_ih_l0", (forget,), 0.0),
            Held(f"{way}.bias_ih_l0", (forget,), SHUT),
            Held(f"{way}.bias_hh_l0", (forget,), 0.0),
        ]
    return held


def _cyclic(network: AQNet) -> list[Held]:
    """Neither the stations' hour and weekday nor the hour at the place are read."""
    return [_inflow(_CYCLES), *_head(network.config, "cycle")]


def _learned_knn(network: AQNet) -> list[Held]:
    """Attention over the nearest stations is their positive kriging weights."""
    return _layer("knn.score.2")


def _pollutants(network: AQNet) -> list[Held]:
    """PM2.5 is the only pollutant that is read."""
    return [_inflow(_OTHERS)]


def _embedding(network: AQNet) -> list[Held]:
    """The head reads no embedding of the stations nearby."""
    return _head(network.config, "embedding")


def _bands(network: AQNet) -> list[Held]:
    """All bands have the covariance of the whole value, so that their sum is kriging of the hour alone.

    Their variances then add up to that of the whole.
    """
    whole = {name: values[WHOLE].detach() for name, values in network.knn.kriging.named_parameters()}
    whole["log_scale"] = whole["log_scale"] - math.log(BANDS)
    return [Held(f"knn.kriging.{name}", (slice(0, WHOLE),), value) for name, value in whole.items()]


def _temporal_context(network: AQNet) -> list[Held]:
    """Other hours enter through gaps that are filled and, in the spread, the errors nearby; through nothing else."""
    heard = _head(network.config, "bands", "error", "heard")
    return [*_attention(network), *_lstm(network), *_bands(network), *heard]


def _second_stage(network: AQNet) -> list[Held]:
    """Kriging of the bands, and a normal of its variance scaled by the errors nearby; nothing learned on top of it.

    Steps of the second stage then change nothing that counts.
    """
    return [*_layer("encoder.correct.2"), *_layer("knn.score.2"), *_layer("head.mlp.4")]


#: What can be taken out, by name.
PARTS: dict[str, Callable[[AQNet], list[Held]]] = {
    "attention": _attention,
    "lstm": _lstm,
    "cyclic": _cyclic,
    "learned_knn": _learned_knn,
    "pollutants": _pollutants,
    "embedding": _embedding,
    "bands": _bands,
    "temporal_context": _temporal_context,
    "second_stage": _second_stage,
}
