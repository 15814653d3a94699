"""Weights on disk: exact round trip, one-line refusal of anything else, no pickle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model import checkpoint
from model.aqnet import AQNet, AQNetConfig

TINY = AQNetConfig(
    near=4,
    lead_hours=6,
    tail_hours=6,
    history=3,
    hidden=8,
    attention_heads=2,
    embedding=2,
    head_hidden=8,
    mean=(1.5,) * 6,
)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[AQNet, Path]:
    torch.manual_seed(1)
    network, path = AQNet(TINY), tmp_path / "deep" / "weights.safetensors"
    checkpoint.save(network, path, {"seed": 1, "history": [{"step": 1}]})
    return network, path


def refused(path: Path) -> str:
    """Message of the ValueError, which must be one line that names the file."""
    with pytest.raises(ValueError, match="weights") as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_round_trip_is_exact_and_ready_to_estimate(saved: tuple[AQNet, Path]):
    network, path = saved
    found = checkpoint.load(path)
    assert found.config == TINY
    assert not found.training
    assert found.state_dict().keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_the_same_network_makes_the_same_bytes_and_leaves_no_other_file(saved: tuple[AQNet, Path], tmp_path: Path):
    network, path = saved
    again = tmp_path / "again.safetensors"
    checkpoint.save(network, again, {"seed": 1, "history": [{"step": 1}]})
    assert again.read_bytes() == path.read_bytes()
    assert again.with_suffix(".json").read_text() == path.with_suffix(".json").read_text()
    assert sorted(p.name for p in path.parent.iterdir()) == ["weights.json", "weights.safetensors"]


def test_json_says_sizes_training_and_digest(saved: tuple[AQNet, Path]):
    path = saved[1]
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["config"]["lead_hours"] == 6
    assert described["training"] == {"seed": 1, "history": [{"step": 1}]}
    assert described["sha256"] == checkpoint.digest(path)


def test_tampered_weights_are_refused(saved: tuple[AQNet, Path]):
    path = saved[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    load_file(path)  # still a good safetensors file
    assert "SHA-256 expected" in refused(path)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_missing_file_is_refused(saved: tuple[AQNet, Path], suffix: str):
    saved[1].with_suffix(suffix).unlink()
    refused(saved[1])


@pytest.mark.parametrize("garbage", [b"", b"not weights", b"\x80\x04pickle." * 9, bytes(64)])
def test_garbage_is_refused(saved: tuple[AQNet, Path], garbage: bytes):
    saved[1].write_bytes(garbage)
    refused(saved[1])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"config": {"sizes": 3}}', '{"config": {}}'])
def test_a_json_that_describes_no_network_is_refused(saved: tuple[AQNet, Path], text: str):
    saved[1].with_suffix(".json").write_text(text)
    refused(saved[1])


@pytest.mark.parametrize("content", [b'{"config": [1]}', b'{"config": 1}', b"\xff\xfe"])
def test_a_json_of_other_types_is_refused(saved: tuple[AQNet, Path], content: bytes):
    saved[1].with_suffix(".json").write_bytes(content)
    refused(saved[1])


def test_a_json_with_other_sizes_is_refused(saved: tuple[AQNet, Path]):
    described = saved[1].with_suffix(".json")
    described.write_text(described.read_text().replace('"hidden": 8', '"hidden": 16'))
    refused(saved[1])


def test_a_pickle_is_never_opened(saved: tuple[AQNet, Path], tmp_path: Path):
    """torch.save writes a pickle that could run anything; such a file is garbage here."""
    fired = tmp_path / "fired"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(fired),)

    torch.save({"weight": Bomb()}, saved[1])
    refused(saved[1])
    assert not fired.exists()


def test_shipped_weights_load_where_they_are():
    """Those that estimates are made with, and the three seeds that are evaluated."""
    evaluated = sorted(checkpoint.SHIPPED.glob("*.safetensors"))
    assert len(evaluated) == 3
    for path in (checkpoint.DEFAULT, *evaluated):
        assert checkpoint.load(path).config.near > 0
