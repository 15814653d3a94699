"""What is asked over the network: the archive of the source, and Prefect's server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version

from pipeline.doctor.check import Check, Subject, failure, ok, warning

#: Seconds by which our clock may differ from a server's, whose answer is a second or two old.
DRIFT = 30
#: Networks that can be fetched from -> where.
ARCHIVES = {
    "airnow": "https://files.airnowtech.org/",
    "cnemc": "https://quotsoft.net/air/",
    "eea": "https://eeadmz1-downloads-api-appservice.azurewebsites.net/",
    "openaq": "https://api.openaq.org/",
    "prsa": "https://archive.ics.uci.edu/",
}


def archive(subject: Subject) -> Iterator[Check]:
    """Ask the archive of the configured network for its header."""
    import httpx

    name, config = "archive", subject.config
    address = ARCHIVES.get(config.source) if config else None
    if address is None:
        return
    try:
        answer = httpx.head(address, timeout=subject.timeout, follow_redirects=True)
    except httpx.HTTPError as error:
        found = f"{address}: {type(error).__name__}: {error}"
        yield warning(name, found, "runs read local files; only `aqnet fetch` needs it: look at network and proxy")
        return
    # Any answer proves that the server is there: several of these refuse HEAD, or a path without a file.
    if answer.status_code >= 500:
        yield warning(name, f"{address}: HTTP {answer.status_code}", "the archive has trouble; `aqnet fetch` later")
    else:
        yield ok(name, f"{address} answers (HTTP {answer.status_code})")
    yield from _drift(address, answer.headers.get("date"))


def _drift(address: str, date: str | None) -> Iterator[Check]:
    """Compare our clock with a server's."""
    try:
        theirs = parsedate_to_datetime(date or "")
    except ValueError:
        return
    off = (datetime.now(UTC) - theirs).total_seconds()
    if abs(off) > DRIFT:
        found = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} {address}"
        yield failure("clock drift", found, "set the clock (timedatectl set-ntp true)")
    else:
        yield ok("clock drift", f"within {DRIFT} s of {address}")


def prefect(subject: Subject) -> Iterator[Check]:
    """Ask Prefect's server whether it is well and of our version."""
    import httpx

    name, address = "prefect", os.environ.get("PREFECT_API_URL")
    if not address:
        yield ok(name, "PREFECT_API_URL is not set: each run starts a server of its own")
        return
    address = address.rstrip("/")
    advice = (
        "start the server (`prefect server start`), or unset PREFECT_API_URL (docs/how-to/runbook.md#lost-scheduler)"
    )
    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get("PREFECT_API_KEY")) else {}
    try:
        with httpx.Client(timeout=subject.timeout, headers=headers) as client:
            healthy = client.get(f"{address}/health").raise_for_status().json()
            theirs = client.get(f"{address}/admin/version").raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        yield failure(name, f"{address}: {type(error).__name__}: {error}", advice)
        return
    if healthy is not True:
        yield failure(name, f"{address}: health is {healthy!r}", advice)
    elif theirs != version("prefect"):
        yield warning(name, f"{address} has version {theirs}, we have {version('prefect')}", "install the same version")
    else:
        yield ok(name, f"{address} is well, version {theirs}")
