"""Reads bytes in another process, so that a C library that crashes, hangs or eats memory on damaged bytes harms no one.

HDF5 trusts lengths and offsets inside a file: of files with a few flipped bits about 1 in 200 sets it into an endless
loop, and some end the process (docs/adr/0011). One worker does that work for the whole run. It comes from a fork server
that has the reader loaded already, so that a new one after a crash takes milliseconds, and no process with threads
(torch's, say) is ever forked. It counts its own processor time, and so ends even where its parent was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from pebble import ProcessExpired, ProcessPool

from pipeline.errors import InputError

Result = TypeVar("Result")

#: Processor seconds for one file, and those added for each byte of it.
TIMEOUT, TIMEOUT_PER_BYTE = 10, 1e-6

#: Bytes of memory (address space) that one file may take.
MEMORY = 4 << 30

#: Times the processor seconds that may pass on the clock: for a reader that sleeps, or a busy machine.
_PATIENCE = 10

#: Modules whose functions are called; loaded once.
PRELOAD = ("pipeline.sources.timeseries",)

_LOCK = threading.Lock()


def run(function: Callable[[str, bytes], Result], where: str, data: bytes) -> Result:
    """Call ``function(where, data)`` in the worker and return what it returns.

    Parameters
    ----------
    function : function of a module; what it returns or raises is pickled.
    where : name of the file, for errors.
    data : bytes of the file.

    Raises
    ------
    InputError
        What `function` raises as such; and when it takes more than `TIMEOUT` or `MEMORY`, or its process dies.
    """
    try:
        return _ask(function, where, data)
    except RuntimeError:  # pebble's: the pool itself is broken, its fork server ended by someone
        with _LOCK:
            _pool.cache_clear()
        return _ask(function, where, data)


def _ask(function: Callable[[str, bytes], Result], where: str, data: bytes) -> Result:
    seconds = int(TIMEOUT + TIMEOUT_PER_BYTE * len(data))
    with _LOCK:
        pool = _pool(os.getpid())
    try:
        return pool.schedule(_timed, args=(seconds, function, where, data), timeout=_PATIENCE * seconds).result()
    except MemoryError as error:
        limit = f"{MEMORY / 2**30:.0f} GiB"
        raise InputError(f"{where}: expected a file that is read in {limit} of memory; found more") from error
    except (TimeoutError, ProcessExpired) as error:
        slow = isinstance(error, TimeoutError) or -(error.exitcode or 0) == signal.SIGXCPU
        found = f"one that takes more than {seconds} s" if slow else "one that crashes its reader"
        raise InputError(f"{where}: expected a whole file; found {found}; fetch it anew") from error


@lru_cache(maxsize=1)
def _pool(_process: int) -> ProcessPool:
    """The pool of this process; a forked child makes its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    return ProcessPool(max_workers=1, initializer=_limit, initargs=(MEMORY,), context=context)


def _limit(memory: int) -> None:
    """Bound the worker's memory to what it has and `memory` bytes more; its C libraries' messages go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    size = Path("/proc/self/statm")
    if size.exists():  # Linux
        most = int(size.read_text().split()[0]) * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _timed(seconds: int, function: Callable[[str, bytes], Result], where: str, data: bytes) -> Result:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, hard))
    try:
        return function(where, data)
    except MemoryError as error:  # NumPy's own cannot be pickled
        raise MemoryError(str(error)) from None
