"""The observations that the next run reads: files of its period, or the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.doctor.check import Check, Subject, failure, ok, warning
from pipeline.doctor.locks import describe, holder
from pipeline.errors import AqnetError

#: Networks publish an hour within two or three.
LATE = np.timedelta64(6, "h")


def files(subject: Subject) -> Iterator[Check]:
    """Look for files of the period, as their names tell it, and for the site list."""
    from pipeline import sources
    from pipeline.config import naive

    config, name = subject.config, "observations"
    if config is None or config.source == "store":
        return
    start, end = naive(config.start), naive(config.end)
    advice = f"fetch them (docs/how-to/fetch-observations.md), or set `input` right; found by name in {config.input}"
    try:
        spec = sources.find(config.source)
        members = sources.find_members(spec, config.input, start, end, config.stations)
        sources.site_list(spec, config.input, config.stations)
    except AqnetError as problem:
        yield failure(name, str(problem), advice)
        return
    spans = [span for member in members if (span := spec.span(member.base))]
    found = f"{len(members)} files of {config.source} for {start} to {end} UTC"
    last = max((span[1] for span in spans), default=None)
    if last is not None and last < end:
        yield warning(name, f"{found}, but none reaches beyond {last}", advice)
    else:
        yield ok(name, found)


def store(subject: Subject) -> Iterator[Check]:
    """Open the observation store: its manifest, and every file that the manifest counts on."""
    from pipeline.store import layout

    config, name = subject.config, "store"
    if config is None or config.source != "store":
        return
    advice = "restore it (docs/how-to/runbook.md), or ingest the raw files anew into an empty folder"
    try:
        manifest = layout.require(config.input)
    except AqnetError as problem:
        yield failure(name, str(problem), advice)
        return
    wanted = [path for part in manifest.partitions for path in (part.observations, part.contested) if path]
    lost = [path for path in [*wanted, *manifest.files.values()] if not (config.input / path).is_file()]
    if lost:
        yield failure(name, f"{config.input}: {len(lost)} files of {len(wanted)} are gone, such as {lost[0]}", advice)
        return
    last = _last(config.input)
    found = (
        f"{config.input}: ingest {manifest.ingest}, {len(wanted)} files, last hour {'none' if last is None else last}"
    )
    if last is None or (subject.scheduled and np.datetime64("now") - last > LATE):
        yield warning(name, found, "nothing new has come in: look at what fetches and ingests (docs/how-to/runbook.md)")
    else:
        yield ok(name, found)
    yield from _writer(config.input)


def _writer(path: Path) -> Iterator[Check]:
    held = holder(path)
    if held is not None:
        yield warning("store lock", f"held by {describe(held)}", "an ingest is running: wait for it to end")


def _last(path: Path) -> np.datetime64 | None:
    """Last hour that a store has, of the last month of any network."""
    import pyarrow.parquet as pq

    from pipeline.store import layout

    partitions = layout.load(path).partitions
    month = max((part.month for part in partitions), default=None)
    last = [pq.read_table(path / part.observations, columns=["time"]) for part in partitions if part.month == month]
    times = [table["time"].to_numpy().max() for table in last if len(table)]
    return np.datetime64(max(times), "h") if times else None
