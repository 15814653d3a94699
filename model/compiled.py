"""Compiled loops (numba): how they are compiled, the threads that share them out, and arithmetic for them.

Everything is float32. numba's own exponential would be a call for each number; those here are plain arithmetic, so that
a loop over them works on a vector register at a time.

Compiled code is kept beside its module, or in the user's cache folder when that cannot be written to (NUMBA_CACHE_DIR
sets another). numba looks at the date of the module alone: whoever changes this one must touch those that import it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numba import njit

Compiled = TypeVar("Compiled", bound=Callable[..., Any])
Result = TypeVar("Result")
f32, i32 = np.float32, np.int32

_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "nsz", "arcp"}, "error_model": "numpy"}


def compiled(function: Compiled) -> Compiled:
    """Compile at the first call; keep the result on disk where some folder can be written to."""
    try:
        made: Compiled = njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # numba found no such folder
        made = njit(**_OPTIONS)(function)
    return made


def in_threads(work: Callable[[slice], object], count: int, together: int) -> None:
    """Do `work` on slices of `count` things, multiples of `together` of them, in as many threads as torch uses."""
    threads = torch.get_num_threads()
    size = max(1, -(-count // (4 * threads * together))) * together
    slices = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    if threads == 1 or len(slices) == 1:
        for part in slices:
            work(part)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, slices))


def alone(work: Callable[[], Result]) -> Result:
    """Do `work` with torch keeping to this thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(threads)


@compiled
def aligned(rows, width):  # type: ignore[no-untyped-def]
    """Empty float32 array (rows, width) that begins on a cache line."""
    whole = np.empty(rows * width + 16, f32)
    first = (-whole.ctypes.data % 64) // 4
    return whole[first : first + rows * width].reshape(rows, width)


@compiled
def between(x, low, high):  # type: ignore[no-untyped-def]
    """X, but not outside low .. high."""
    return min(max(x, low), high)


@compiled
def exp(x):  # type: ignore[no-untyped-def]
    """e^x within 1e-7, without a call that would keep loops from being vectorised (Cephes expf, Moshier 1992)."""
    x = between(x, f32(-87), f32(88))
    power = i32(x * f32(1.4426950408889634) + f32(127.5))  # biased, rounded
    n = f32(power) - f32(127)
    r = x - n * f32(0.693359375) - n * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4) * r + f32(1.3981999507e-3)
    p = ((p * r + f32(8.3334519073e-3)) * r + f32(4.1665795894e-2)) * r + f32(1.6666665459e-1)
    p = (p * r + f32(5.0000001201e-1)) * r * r + r + f32(1)
    return p * i32(power << i32(23)).view(f32)


@compiled
def log(x):  # type: ignore[no-untyped-def]
    """Logarithm of x > 0 within 5e-7 (Cephes logf, Moshier 1992)."""
    bits = i32(f32(x).view(i32) - i32(0x3F3504F3))
    power = f32(i32(bits >> i32(23)))
    m = i32(i32(bits & i32(0x7FFFFF)) + i32(0x3F3504F3)).view(f32) - f32(1)
    p = (f32(7.0376836292e-2) * m + f32(-1.1514610310e-1)) * m + f32(1.1676998740e-1)
    p = ((p * m + f32(-1.2420140846e-1)) * m + f32(1.4249322787e-1)) * m + f32(-1.6668057665e-1)
    p = ((p * m + f32(2.0000714765e-1)) * m + f32(-2.4999993993e-1)) * m + f32(3.3333331174e-1)
    return m + (p * m * m * m + power * f32(-2.12194440e-4) - f32(0.5) * m * m) + power * f32(0.693359375)
