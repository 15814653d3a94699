"""Fixtures that every test file shares: real data where it exists, one Prefect harness, fixed threads and seeds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from flows import environment

if TYPE_CHECKING:
    from pipeline.twin.simulate import Simulation

ROOT = Path(__file__).resolve().parents[1]

#: What a process of tests and the processes that it starts take, with room.
GIB_A_WORKER = 4.5

#: Files that take a minute and more, the longest first: they begin first, so that all processes end together.
LONGEST = (
    "docs",
    "matrix",
    "faults",
    "s3",
    "scheduled",
    "downloads",
    "secrets",
    "trace",
    "gate",
    "export",
    "flow",
    "credentials",
    "shards",
    "covariates",
    "store",
    "cli",
)

# Prefect reads its environment when it is first imported, by whichever test comes first.
environment.prepare()
os.environ.update(environment.COMMAND_LINE)

settings.register_profile(
    "aqnet", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("aqnet")


def pytest_xdist_auto_num_workers() -> int:
    """Files tested at a time: one more than there are cores, since tests wait for servers, where memory allows."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)) + 1, int(memory / GIB_A_WORKER)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    rank = {f"test_{name}.py": n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data beside the checkout (``../shared/data``); the test skips where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data of {folder}, which is not here")
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_bottleneck() -> None:
    """Compute means as users do: bottleneck, which xclim brings, sums in another order."""
    import pandas as pd
    import xarray as xr

    xr.set_options(use_bottleneck=False)
    pd.set_option("compute.use_bottleneck", False)


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Fix the number of threads: sums of floats then come out the same on every machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an untrained network, which starts near kriging: what a test of plumbing needs, and always there."""
    import torch

    from model import checkpoint
    from model.aqnet import AQNet, AQNetConfig

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    checkpoint.save(AQNet(AQNetConfig()), path, {"seed": 0})
    return path


@pytest.fixture(scope="session")
def small_simulation(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """Four SIMULATED days, from the last of a month, of 40 stations in 3 by 3 degrees."""
    from pipeline.twin.simulate import simulate

    out = tmp_path_factory.mktemp("simulated")
    return simulate(out, start="2019-11-30", days=4, bbox=(110.0, 36.0, 113.0, 39.0), n_stations=40)


@pytest.fixture(scope="session")
def prefect_harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One ephemeral Prefect server with its own home for all flow runs of the session (starting it takes seconds)."""
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=90):
        yield
