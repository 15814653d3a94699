"""The peak is that of the stage, not of the process so far."""

import numpy as np
import pytest

from pipeline import memory


def test_the_peak_rises_with_an_array_and_falls_with_a_reset() -> None:
    memory.reset_peak()
    before = memory.peak_mib()
    big = np.ones((200, 1024, 128))  # 200 MiB
    assert memory.peak_mib() > before + 190
    del big
    if not memory._CLEAR.exists():
        pytest.skip("this system cannot reset a peak")
    memory.reset_peak()
    assert memory.peak_mib() < before + 100
