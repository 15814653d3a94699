"""A time limit for what Icechunk asks of a bucket.

Icechunk's client tries a request again that was refused and gives up an answer that stops half-way, but waits for ever
for a server that takes a request and never answers. `limited` lets a repository give up; `Patient` does the same for
chunks, for which Zarr has no limit: its ``async.timeout`` is not that of arrays.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, TypeVar, cast

import icechunk
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

R = TypeVar("R")

#: Seconds after which a call is given up: more than all tries of a request take where the server answers.
PATIENCE = 300.0

#: Times that of calls that list or delete a whole store.
LONG, LONGER = {"garbage_collect"}, 12

_SILENT = "no answer for {:g} s"


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
        raise TimeoutError(_SILENT.format(seconds))
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


class Patient(WrapperStore[icechunk.IcechunkStore]):
    """A session's store, of which a chunk or a key that is asked for or given is waited for only so long."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """As Zarr's; TimeoutError when it does not come."""
        return await _soon(super().get(key, prototype, byte_range))

    async def set(self, key: str, value: Buffer) -> None:
        """As Zarr's; TimeoutError when it is not taken."""
        await _soon(super().set(key, value))

    async def exists(self, key: str) -> bool:
        """As Zarr's; TimeoutError when it is not said."""
        return await _soon(super().exists(key))

    async def delete(self, key: str) -> None:
        """As Zarr's; TimeoutError when it is not done."""
        await _soon(super().delete(key))

    _get_many = Store._get_many  # by `get`, one by one


async def _soon(one: Coroutine[Any, Any, R]) -> R:
    try:
        return await asyncio.wait_for(one, PATIENCE)
    except TimeoutError as error:
        raise TimeoutError(_SILENT.format(PATIENCE)) from error
