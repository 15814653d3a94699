"""A time limit for what Icechunk asks of a bucket.

Icechunk's client tries a request again that was refused and gives up an answer that stops half-way, but waits for ever
for a server that takes a request and never answers. `limited` lets a repository give up; Zarr's own limit does the same
for chunks (`limit_zarr`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar, cast

import icechunk
import zarr

R = TypeVar("R")

#: Seconds after which a call is given up: more than all tries of a request take where the server answers.
PATIENCE = 300.0

#: Times that of calls that list or delete a whole store.
LONG, LONGER = {"garbage_collect"}, 12


def limit_zarr() -> None:
    """Let Zarr give up chunks, too; in this process."""
    zarr.config.set({"async.timeout": PATIENCE})


def within(seconds: float, function: Callable[..., R], *given: Any, **named: Any) -> R:
    """Call a function in a thread and wait for it only so long; a call that is given up stays behind, harmless.

    Raises
    ------
    TimeoutError
        When it has not returned in time.
    """
    results: list[R] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function(*given, **named))
        except BaseException as error:  # raised where it was called
            errors.append(error)

    thread = threading.Thread(target=call, name=__name__, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise TimeoutError(f"no answer for {seconds:g} s")
    return results[0]


def limited(repo: icechunk.Repository) -> icechunk.Repository:
    """Return the repository with every call, those of its sessions too, under a time limit."""
    return cast(icechunk.Repository, _Limited(repo))


class _Limited:
    """A repository or session whose calls are limited."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return partial(_call, PATIENCE * (LONGER if name in LONG else 1), found) if callable(found) else found


def _call(seconds: float, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
    found = within(seconds, function, *given, **named)
    if isinstance(found, icechunk.Session) and not isinstance(found, icechunk.ForkSession):  # forks travel to workers
        return _Limited(found)
    return _each(found) if isinstance(found, Iterator) else found


def _each(found: Iterator[R]) -> Iterator[R]:
    """What an iterator gives, each under the limit, for each may be a request."""
    end: Any = object()
    while (one := within(PATIENCE, next, found, end)) is not end:
        yield one
