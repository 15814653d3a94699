"""Is everything there that the next run needs? Checks of environment, data and network, each with what to do.

`examine` changes nothing: it makes no folder, takes no lock and drops no leftovers. Prefect's server and the networks'
archives are asked once each, with a short timeout.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline import config as configuration
from pipeline.doctor import cube, environment, machine, observations, reach
from pipeline.doctor.check import Check, Look, Subject, failure, looked, ok
from pipeline.errors import ConfigError

__all__ = ["Check", "as_dict", "as_text", "examine", "failed"]

#: In the order in which they are shown. What waits for the network is begun first.
LOOKS: tuple[Look, ...] = (
    environment.python,
    environment.packages,
    environment.projections,
    environment.compiled_code,
    machine.threads,
    machine.memory,
    machine.clock,
    environment.weights,
    observations.files,
    observations.store,
    cube.output_folder,
    cube.space,
    cube.published,
    cube.lock,
    cube.leftovers,
    reach.archive,
    reach.prefect,
)
WAITING = (reach.archive, reach.prefect)


def examine(toml: Path | None = None, timeout: float = 3.0) -> list[Check]:
    """Look at everything, or without a configuration at what does not depend on one.

    Parameters
    ----------
    toml : configuration of the runs; the environment (``AQNET_*``) counts as in a run.
    timeout : seconds to wait for each answer from the network.
    """
    found, subject = _subject(toml, timeout)
    with ThreadPoolExecutor(len(WAITING)) as pool:
        asked = {look: pool.submit(looked, look, subject) for look in WAITING}
        checks = (asked[look].result() if look in asked else looked(look, subject) for look in LOOKS)
        return [found, *(check for each in checks for check in each)]


def _subject(toml: Path | None, timeout: float) -> tuple[Check, Subject]:
    """Read the configuration without touching its output folder; one of a schedule has no end, and ends now."""
    name, prefix = "configuration", configuration.ENV_PREFIX
    out = Path(os.environ.get(f"{prefix}OUT", configuration.DEFAULT_OUT))
    if toml is None and f"{prefix}INPUT" not in os.environ:
        found = "none given; `aqnet doctor CONFIG.toml` looks at its data, too"
        return ok(name, found), Subject(None, out, timeout)
    try:
        said = configuration.read_toml(toml) if toml else {}
        out = Path(os.environ.get(f"{prefix}OUT") or said.get("out", out))
        scheduled = "end" not in said and f"{prefix}END" not in os.environ
        with tempfile.TemporaryDirectory() as elsewhere:
            given = {"out": Path(elsewhere), **({"end": _next_hour()} if scheduled else {})}
            config = configuration.from_sources(toml, given).model_copy(update={"out": out})
    except (ConfigError, TypeError) as problem:
        advice = "mend it (docs/reference/configuration.md); checks of its data are left out"
        return failure(name, str(problem), advice), Subject(None, out, timeout)
    period = f"{config.start:%Y-%m-%dT%H} to {'now' if scheduled else f'{config.end:%Y-%m-%dT%H}'} UTC"
    return ok(name, f"{toml or 'environment'}: {config.source}, {period}, {config.domain}"), Subject(
        config, out, timeout, scheduled
    )


def _next_hour() -> datetime:
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    return now + timedelta(hours=1)


def failed(checks: Sequence[Check]) -> bool:
    """Whether anything has to be mended before the next run."""
    return any(check.status == "failure" for check in checks)


def as_dict(checks: Sequence[Check]) -> dict[str, Any]:
    """All checks, and how many there are of each status, ready for JSON."""
    counts = {status: sum(check.status == status for check in checks) for status in ("ok", "warning", "failure")}
    return {**counts, "checks": [asdict(check) for check in checks]}


def as_text(checks: Sequence[Check]) -> str:
    """Return a line a check, and below it what to do."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        mark = check.status if check.status == "ok" else check.status.upper()
        lines.append(f"{mark:7}  {check.name:{width}}  {check.found}")
        if check.advice:
            lines.append(f"{'':7}  {'':{width}}  -> {check.advice}")
    counts = as_dict(checks)
    return "\n".join([*lines, f"{counts['ok']} ok, {counts['warning']} warnings, {counts['failure']} failures"])
