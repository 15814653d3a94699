"""Which run made a published hour: its configuration, its input digests and its weights.

A run leaves them as metadata of the commits of its revision, inside the repository of the cube (`record`), so that they
are there as long as the values are. For a revision without such metadata `products/run.json` and `lineage.json` beside
the cube tell it, as far as they are of the same run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from pipeline import output
from pipeline.config import RunConfig, naive
from pipeline.contract import HOUR
from pipeline.cube import reader, write
from pipeline.errors import ConfigError, ProductError
from pipeline.location import S3, Location

#: Name under which the metadata of a commit holds what made it.
KEY = "aqnet_run"

#: Fields of a run that `aqnet trace` takes other values for: where things lie now.
OVERRIDES = ("source", "input", "stations", "weights", "outlook_weights")


@dataclass(frozen=True)
class Made:
    """What made an hour.

    Attributes
    ----------
    run_id, revision : of the run that last wrote the hour, as far as the traced revision goes.
    config : its configuration as JSON; empty where it was not kept.
    inputs : SHA-256 of its input files by name.
    weights : SHA-256 of the weights, those of the outlook for an outlook hour.
    state : ingest and digest of the observation store, where there was one.
    code : version of the code.
    """

    run_id: str
    revision: str
    config: dict[str, Any]
    inputs: dict[str, str]
    weights: str
    state: dict[str, str]
    code: str


def record(
    run_id: str, config: RunConfig, inputs: Mapping[str, str], weights: str, outlook: str | None = None
) -> dict[str, Any]:
    """Metadata of a run's commits, ready for JSON: configuration, input digests and the digests of both weights."""
    made = {"run_id": run_id, "config": config.model_dump(mode="json"), "inputs": dict(sorted(inputs.items()))}
    return {KEY: made | {"weights": weights, "outlook_weights": outlook}}


def made_by(cube: Location, revision: str | None, hour: np.datetime64, ahead: bool) -> Made:
    """Find the run that made an hour of a revision.

    Parameters
    ----------
    cube : folder of the Icechunk repository.
    revision : tag such as ``r3``; the newest when None.
    hour : start of the hour, UTC.
    ahead : whether the hour is an outlook.

    Raises
    ------
    ProductError
        When no revision says that its run wrote the hour.
    """
    for entry in _revisions(cube, revision):
        tag, kept = entry["revision"], entry["metadata"].get(KEY)
        start, end, last = _hours(kept["config"]) if kept else _said(reader.open_cube(cube, tag).attrs)
        if (end <= hour < last) if ahead else (start <= hour < end):
            return _made(cube, tag, reader.open_cube(cube, tag).attrs, kept, ahead)
    raise ProductError(f"{cube}: expected a revision whose run wrote {hour}; found none that says so")


def _revisions(cube: Location, revision: str | None) -> Iterator[dict[str, Any]]:
    """A revision, or a held candidate, and the revisions before it, newest first, each read when it is asked for."""
    held = [entry for entry in reader.held(cube) if entry["revision"] == revision]
    yield from held
    yield from reader.backwards(cube, None if held else revision)


def _hours(config: Mapping[str, Any]) -> tuple[np.datetime64, np.datetime64, np.datetime64]:
    """First hour, hour after the last, and hour after the last of the outlook."""
    start, end = (naive(pd.Timestamp(config[name]).to_pydatetime().astimezone(UTC)) for name in ("start", "end"))
    return start, end, end + config.get("outlook_hours", 0) * HOUR


def _said(attrs: Mapping[str, Any]) -> tuple[np.datetime64, np.datetime64, np.datetime64]:
    """As `_hours`, from the newest line of the history; no hours where it has none."""
    line = write.HISTORY_LINE.search(str(attrs.get("history", "")).partition("\n")[0])
    if line is None:
        return (np.datetime64("1970-01-01", "h"),) * 3
    start, end = np.datetime64(line["first"], "h"), np.datetime64(line["end"], "h")
    return start, end, np.datetime64(line["outlook"] or line["end"], "h")


def _made(cube: Location, tag: str, attrs: Mapping[str, Any], kept: Mapping[str, Any] | None, ahead: bool) -> Made:
    run_id = str(attrs.get("flow_run_id", ""))
    kept = kept or _beside(cube, run_id)
    weights = str(attrs.get("outlook_weights_digest" if ahead else "weights_digest", ""))
    state = {name: str(value) for name, value in attrs.items() if name.startswith("observation_store_")}
    config, inputs, code = (
        dict(kept.get("config", {})),
        dict(kept.get("inputs", {})),
        str(attrs.get("code_version", "")),
    )
    return Made(run_id, tag, config, inputs, weights, state, code)


def _beside(cube: Location, run_id: str) -> dict[str, Any]:
    """Configuration and inputs from the files beside the cube, where they are of this run."""
    if isinstance(cube, S3):
        return {}
    report, lineage = (_json(cube.parent / output.PRODUCTS / name) for name in (output.REPORT, output.LINEAGE))
    found: dict[str, Any] = {}
    if report.get("run_id") == run_id:
        found["config"] = report["config"]
    if lineage.get("flow_run_id") == run_id:
        found["inputs"] = lineage["inputs"]
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def config_of(
    made: Made, cube: Location, overrides: Mapping[str, Path | str | None], found: Mapping[str, Any]
) -> RunConfig:
    """Configuration of the run that made an hour, with what lies elsewhere now.

    Parameters
    ----------
    made : from `made_by`.
    cube : folder of the repository; relative paths of a run are looked for from here, too.
    overrides : some of `OVERRIDES`; None where not given.
    found : what the cube itself tells of a run whose configuration was not kept: bbox, stream, start and end.

    Raises
    ------
    ConfigError
        When neither the run nor the overrides say what was read, or it is not there any more.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if not made.config and not {"source", "input"} <= set(given):
        raise ConfigError(
            f"{cube}: the configuration of run {made.run_id} (revision {made.revision}) was not kept; say --source and"
            " --input (and --stations, --weights where they were not the usual ones)"
        )
    values = {"outlook_hours": 0, "outlook_weights": None} | (made.config or dict(found))
    for name in ("input", "stations", "weights", "outlook_weights"):
        values[name] = _there(values.get(name), cube, values.get("out"))
    values["covariates"] = [
        c | {"path": _there(c["path"], cube, values.get("out"))} for c in values.get("covariates", ())
    ]
    try:
        return RunConfig(**(values | given))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "run"
        reason = first["ctx"]["error"] if "ctx" in first and "error" in first["ctx"] else first["msg"]
        raise ConfigError(
            f"--{name}: of run {made.run_id}, which made the hour: {reason}; say where it is now"
        ) from None


def _there(path: str | Path | None, cube: Location, out: str | None) -> Path | None:
    """A path of a run, taken from where the run was started when it is not found from here."""
    if path is None:
        return None
    path = Path(path)
    if isinstance(cube, S3):
        return path
    folder, parts = cube.resolve().parent, Path(out or "").parts
    if path.exists() or path.is_absolute() or folder.parts[len(folder.parts) - len(parts) :] != parts:
        return path
    moved = Path(*folder.parts[: len(folder.parts) - len(parts)]) / path
    return moved if moved.exists() else path
