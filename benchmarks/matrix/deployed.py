"""The flow `hourly` with the points of the matrix, as a deployment of a Prefect site."""

from __future__ import annotations

from benchmarks.matrix import points

points.install()

from flows.hourly import hourly  # noqa: E402  the points come first

__all__ = ["hourly"]
