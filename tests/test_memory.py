"""The peak is that of the stage, not of the process so far."""

import subprocess
import sys

from pipeline import memory

#: In a process of its own: here, what other tests have freed may be used again without the process growing.
CODE = """
import numpy as np
from pipeline import memory
memory.reset_peak()
print(memory.peak_mib())
big = np.ones((200, 1024, 128))  # 200 MiB
print(memory.peak_mib())
del big
memory.reset_peak()
print(memory.peak_mib())
"""


def test_the_peak_rises_with_an_array_and_falls_with_a_reset() -> None:
    text = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True).stdout
    before, full, after = map(float, text.split())
    assert 190 < full - before < 220
    if memory._CLEAR.exists():  # Linux can start a new peak
        assert after < before + 20
    else:
        assert after >= full
