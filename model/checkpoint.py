"""Weights on disk: a safetensors state_dict and a JSON file beside it. Never a pickled class."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.aqnet import AQNet, AQNetConfig
from model.outlook import OutlookConfig, OutlookNet

Network = TypeVar("Network", AQNet, OutlookNet)

#: Production weights, trained on everything; and those that are evaluated, trained without hidden stations and hours.
DEFAULT = Path(__file__).parent / "weights" / "aqnet.safetensors"
SHIPPED = DEFAULT.parent / "evaluation"

#: Weights of the outlook; its default is seed 0, chosen before any of them was scored.
SHIPPED_OUTLOOK = DEFAULT.parent / "outlook"
DEFAULT_OUTLOOK = SHIPPED_OUTLOOK / "outlook-seed0.safetensors"


def save(network: AQNet | OutlookNet, path: Path, training: dict[str, object]) -> None:
    """Write `path` (safetensors) and `path` with suffix .json (sizes, normalisation, how it was trained)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary)
    temporary.chmod(0o644)  # safetensors leaves 0600, which a wheel would carry to every user
    os.replace(temporary, path)
    described = {"config": asdict(network.config), "training": training, "sha256": digest(path)}
    temporary.write_text(json.dumps(described, indent=1) + "\n")
    os.replace(temporary, path.with_suffix(".json"))


def load(path: Path = DEFAULT) -> AQNet:
    """Read weights of the analysis and return the network in evaluation mode.

    Raises
    ------
    ValueError
        One line naming the file when either file is missing or unreadable, or the weights are not the ones described.
    """
    return _read(path, "AQ-Net", lambda sizes: AQNet(AQNetConfig(**sizes)))


def load_outlook(path: Path = DEFAULT_OUTLOOK) -> OutlookNet:
    """Read weights of the outlook; as `load`."""
    return _read(path, "outlook", lambda sizes: OutlookNet(OutlookConfig(**sizes)))


def _read(path: Path, kind: str, build: Callable[[dict[str, Any]], Network]) -> Network:
    try:
        described = json.loads(path.with_suffix(".json").read_text())
        network = build({k: tuple(v) if isinstance(v, list) else v for k, v in described["config"].items()})
        network.load_state_dict(load_file(path))
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        found = str(error).partition("\n")[0]
        raise ValueError(f"{path}: expected {kind} weights with a .json beside them; found {found}") from error
    if described.get("sha256") != digest(path):
        raise ValueError(f"{path}: SHA-256 expected {described.get('sha256')}; found {digest(path)}")
    return network.eval()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
