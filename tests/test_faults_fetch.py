"""Kills: `aqnet fetch` is stopped with SIGKILL at seeded moments; nothing half is seen, and the next run completes.

Beside that, a fetch is ended before single steps of it on the disk.

`make test` kills twice, in a first fetch and while corrections come in, and ends at one step in three; with
`AQNET_TEST_ALL_FAULTS=1` it kills fifty times and ends at every step.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.fetch import Limits, Query, fetch, read_manifest
from pipeline.fetch.web import Web
from tests import servers
from tests.servers import MODIFIED, Archive

#: Rounds, each with a new version of every file in the archive, and kills in each.
ROUNDS, KILLS = (10, 5) if os.environ.get("AQNET_TEST_ALL_FAULTS") else (2, 1)

HOURS = 24
DAY = datetime.now(UTC).date() - timedelta(days=1)  # recent, so that files are asked for again
FOLDER = f"/airnow/{DAY:%Y/%Y%m%d}"


def version(number: int) -> dict[str, bytes]:
    """Every file of a day as it is in a round; hour 7 is a gap."""
    rng = random.Random(number)
    lines = (
        f"{DAY:%m/%d/%y}|00:00|{code:09}|SITE|-4|PM2.5|UG/M3|{rng.uniform(0, 99):.1f}|Agency\n" for code in range(10**6)
    )
    files = {
        f"{FOLDER}/HourlyData_{DAY:%Y%m%d}{hour:02}.dat": rng.randrange(100, 400) for hour in range(HOURS) if hour != 7
    }
    made = {path: "".join(next(lines) for _ in range(count)).encode() for path, count in files.items()}
    return made | {f"{FOLDER}/monitoring_site_locations.dat": f"1|PM2.5|{number}\n".encode() * 500}


def start(archive: Archive, out: Path) -> subprocess.Popen[str]:
    words = ["fetch", "airnow", "--start", f"{DAY}", "--end", f"{DAY + timedelta(days=1)}", "--out", str(out)]
    code = "from pipeline.cli import main; main()"
    command = [sys.executable, "-c", code, *words, "--base-url", archive.url, "--rate", "10000"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def complete(archive: Archive, out: Path) -> None:
    archive.pause = 0
    process = start(archive, out)
    printed, log = process.communicate()
    assert process.returncode == 0, log
    assert "1 not in the archive" in printed


def kill(archive: Archive, out: Path, size: int, after: float) -> bool:
    """Kill once the server has sent `size` bytes and `after` seconds went by; False if the run ended before that."""
    archive.pause, end = 0.001, archive.sent + size
    process = start(archive, out)
    while archive.sent < end and process.poll() is None:
        time.sleep(0.0005)
    time.sleep(after)
    process.kill()
    process.communicate()
    return process.returncode == -9


def visible(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("[!.]*") if path.name != "manifest.jsonl"}


def noted(out: Path) -> dict[str, dict[str, Any]]:
    """The manifest without the times of the fetch itself."""
    return {name: asdict(entry) | {"retrieved": ""} for name, entry in read_manifest(out).items()}


def check_nothing_half(out: Path, versions: list[dict[str, bytes]]) -> None:
    """Every file that is seen is one of the archive's, whole, and what the manifest holds is on disk."""
    found = visible(out)
    for name, data in found.items():
        assert data in [files[f"{FOLDER}/{name}"] for files in versions], name
    for name, entry in read_manifest(out).items():
        digest = "" if entry.status == "absent" else hashlib.sha256(found[name]).hexdigest()
        assert (entry.sha256, entry.bytes) == (digest, len(found.get(name, b""))), name


def missing(out: Path, files: dict[str, bytes]) -> int:
    """Bytes that the folder lacks of a version."""
    found = visible(out) if out.exists() else {}
    return sum(len(data) for path, data in files.items() if found.get(path.rsplit("/", 1)[-1]) != data)


def test_a_killed_fetch_leaves_nothing_half_and_the_next_one_completes(tmp_path: Path) -> None:
    rng, out, kills, ended = random.Random(20261125), tmp_path / "killed", 0, 0
    versions: list[dict[str, bytes]] = []
    with servers.serving(Archive()) as archive:
        for number in range(ROUNDS):
            versions.append(version(number))
            archive.files = versions[-1]
            archive.modified = dict.fromkeys(archive.files, MODIFIED + 60 * number)
            killed_here = 0
            while killed_here < KILLS:
                size = int(rng.random() * missing(out, archive.files) / 2)
                if kill(archive, out, size, rng.uniform(0, 0.03)):
                    killed_here += 1
                    if out.exists():
                        check_nothing_half(out, versions)
                else:
                    ended += 1
            kills += killed_here
            complete(archive, out)
            whole = tmp_path / f"undisturbed{number}"
            complete(archive, whole)
            assert visible(out) == visible(whole)
            assert noted(out) == noted(whole)
            assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    resumed = sum(request.code == 206 for request in archive.seen)
    print(f"{kills} kills, {resumed} downloads resumed, {ended} runs ended before their kill")
    assert kills == ROUNDS * KILLS


# ---- every step ----

#: What a fetch does to the disk, beside writing to files that no one sees.
STEPS = ("replace", "fsync", "unlink")
STRIDE = 1 if os.environ.get("AQNET_TEST_ALL_FAULTS") else 3


def ended_at(step: int, asked: Query, out: Path) -> bool:
    """Fetch in a process that ends, cleaning nothing up, before its `step`-th step; False if it had fewer steps."""
    pid = os.fork()
    if pid == 0:
        count = itertools.count(1)

        def counted(real: Any) -> Any:
            return lambda *args, **more: os._exit(9) if next(count) == step else real(*args, **more)

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            quickly(asked, out)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return code == 9


def quickly(asked: Query, out: Path) -> None:
    fetch(asked, out, web=Web(Limits(rate=1e9), sleep=lambda _: None))


def test_a_fetch_may_end_before_any_of_its_steps(tmp_path: Path) -> None:
    hour = datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC)
    versions, before = [version(0), version(1)], tmp_path / "before"
    before.mkdir()
    with servers.serving(Archive()) as archive:
        asked = Query("airnow", hour, hour + timedelta(hours=1), base_url=archive.url)
        for number, files in enumerate(versions):  # a first fetch, then a correction
            archive.files, archive.modified = files, dict.fromkeys(files, MODIFIED + 60 * number)
            whole = tmp_path / f"undisturbed{number}"
            quickly(asked, whole)
            for step in itertools.count(1, STRIDE):
                out = tmp_path / f"{number}-{step}"
                shutil.copytree(before, out)
                if not ended_at(step, asked, out):
                    break
                check_nothing_half(out, versions[: number + 1])
                quickly(asked, out)
                assert visible(out) == visible(whole)
                assert noted(out) == noted(whole)
                assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
            assert step > 15
            before = whole
