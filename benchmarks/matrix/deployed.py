"""The flow `hourly` with the points of the matrix, as a deployment of a Prefect site."""

from __future__ import annotations

from functools import partial

from benchmarks.matrix import points

points.install()

from prefect.concurrency.sync import concurrency  # noqa: E402  the points come first

from flows import scheduled  # noqa: E402
from flows.hourly import hourly  # noqa: E402

scheduled.concurrency = partial(concurrency, lease_duration=60)  # in place of 300 s: the shortest that Prefect takes

__all__ = ["hourly"]
