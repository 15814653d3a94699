"""Kills of the Prefect worker and of the Prefect server while a deployment's run is at a stage.

One server (SQLite) and one worker serve all cells; what was killed is started again at once, as a service manager does.
The flow is `hourly` of `prefect.yaml`'s making, with its pictures and its concurrency limits.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from numpy.random import Generator

from benchmarks import prefect_site
from benchmarks.matrix import child, points, scene
from benchmarks.matrix.faults import KILLED, Fault
from benchmarks.matrix.scene import Place, Reference
from benchmarks.prefect_site import BIN, ROOT, Service, Site

#: Seconds that a run may take: the slot of one that died is free after its lease, 300 s, and some.
PATIENCE = 480.0

_ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

_CONFIG = """source = "store"
input = "{input}"
start = {start}
bbox = [{bbox}]
resolution = 0.25
outlook_hours = {outlook}
domain = "matrix"
out = "{out}"
"""

_DEPLOYMENT = """name: matrix
deployments:
  - name: matrix
    entrypoint: benchmarks.matrix.deployed.hourly
    parameters: {config: schedule.toml}
    work_pool: {name: aqnet}
    concurrency_limit: {limit: 1, collision_strategy: ENQUEUE}
"""


class Deployed(child.Run):
    """A run of the deployment, which a worker makes."""

    def __init__(self, site: Site, folder: Path, identity: str) -> None:
        self.site, self.log, self.identity = site, folder / "log", identity

    @property
    def pid(self) -> int:
        """Process of the flow, once it reached its point."""
        return points.reached(self.log.parent) or 0

    @property
    def state(self) -> dict[str, Any]:
        """State that the server knows; none while it is away."""
        try:
            answer = httpx.get(f"{self.site.api}/flow_runs/{self.identity}", timeout=20)
            answer.raise_for_status()
        except httpx.HTTPError:
            return {}
        return answer.json()["state"] or {}

    @property
    def status(self) -> int | None:
        """0 when it completed, 1 when it ended otherwise, `KILLED` when its process is gone and nobody noticed."""
        time.sleep(0.3)  # who waits for it asks often
        gone = bool(self.pid) and not _lives(self.pid)
        kind = self.state.get("type")
        if kind in _ENDED:
            return int(kind != "COMPLETED")
        return KILLED if gone and kind is not None else None

    def kill(self) -> None:
        """SIGKILL, to the flow's process."""
        if self.status is None and self.pid:
            os.kill(self.pid, 9)

    def sweep(self) -> None:
        """Leave worker and server to the next cell."""

    def end(self, patience: float = PATIENCE) -> int:
        """Wait for the end."""
        return super().end(patience)

    def said(self) -> str:
        """Its state."""
        return f"{self.state.get('name')}: {self.state.get('message') or ''}"


def _lives(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


class Scheduled(Place):
    """A place that a deployment's runs make, from an observation store."""

    @property
    def config(self) -> Path:
        """Configuration of its runs."""
        return self.folder / "schedule.toml"

    def fill(self) -> None:
        """Copy the first day, and say where it lies."""
        shutil.copytree(self.reference.first, self.out)
        box, start = ", ".join(map(str, scene.BBOX)), self.reference.days[0]
        given = {"input": self.reference.folder / "observations", "start": start, "bbox": box, "out": self.out}
        self.config.write_text(_CONFIG.format(outlook=scene.OUTLOOK_HOURS, **given))


class SiteFault(Fault):
    """Something of a Prefect site is killed; cells share the site and are played where it was started.

    A flow run may fail, for Prefect's client does not try again to connect; the next run must make what is missing.
    """

    alone, here, told, ends = True, True, False, (0, 1, KILLED)

    @contextmanager
    def shared(self, folder: Path) -> Iterator[None]:
        """Server, worker, deployment, and what its undisturbed runs make of both days."""
        home = folder / "site"
        shutil.rmtree(home, ignore_errors=True)
        work = home / "work"
        work.mkdir(parents=True)
        (work / "prefect.yaml").write_text(_DEPLOYMENT)
        (work / "schedule.toml").touch()
        with _importing(), prefect_site.serving(home / "prefect", work, postgres=False) as site:
            site.prefect("gcl", "create", "aqnet-matrix", "--limit", "1")
            site.prefect("--no-prompt", "deploy", "--all")
            with prefect_site.working(site, home / "worker.log") as worker:
                SiteFault.site, SiteFault.worker = site, worker
                _undisturbed(site, folder)
                yield

    site: Site
    worker: Service

    def place(self, folder: Path, reference: Reference) -> Place:
        """With the observation store."""
        return Scheduled(folder, replace(reference, folder=reference.folder / "scheduled"))

    def start(self, place: Place, name: str) -> child.Run:
        """Let the deployment make the second day."""
        (place.folder / "reached").unlink(missing_ok=True)  # of the run before
        return _run(self.site, place, 2)

    def said(self) -> str:
        """The slots of the concurrency limits that are taken after the run."""
        found = self.site.post("v2/concurrency_limits/filter", {})
        return f"{self.what}, slots taken: " + ", ".join(f"{one['name']} {one['active_slots']:g}" for one in found)

    what = ""


class KillServer(SiteFault):
    """SIGKILL to the server, which comes back after some seconds."""

    def disturb(self, run: child.Run, rng: Generator) -> None:
        """Kill it and start it again."""
        time.sleep(rng.uniform(0, 0.3))
        self.site.server.kill(children=True)
        away = rng.uniform(0, 5)
        time.sleep(away)
        self.site.server.start()
        self.site.wait()
        self.what = f"away for {away:.0f} s and its start"


class KillWorker(SiteFault):
    """SIGKILL to the worker: alone, or with its flow run, as containers and systemd end what a service started."""

    def disturb(self, run: child.Run, rng: Generator) -> None:
        """Kill it and start it again."""
        time.sleep(rng.uniform(0, 0.3))
        whole = rng.random() < 0.5
        self.worker.kill()
        if whole:
            run.kill()
        self.worker.start()
        self.what = "with its flow run" if whole else "alone"


@contextmanager
def _importing() -> Iterator[None]:
    """Let flow runs find the module of the deployment."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def _undisturbed(site: Site, folder: Path) -> None:
    """Let the deployment make the first day, then the second, as what the cells are compared with."""
    made = Reference(folder / "scheduled")
    if (made.folder / "ready").exists():
        return
    shutil.rmtree(made.folder, ignore_errors=True)
    shutil.copytree(folder / "record", made.record)
    words = [
        "ingest",
        "cnemc",
        "--input",
        str(made.record / "archive"),
        "--stations",
        str(made.record / "stations.csv"),
    ]
    prefect_site.run([str(BIN / "aqnet"), *words, "--store", str(made.folder / "observations")], made.folder)
    made.first.mkdir()
    place = Scheduled(made.folder / "made", made)
    place.disk.mkdir(parents=True)
    for period, out in ((1, made.first), (2, made.second)):
        place.fill() if period == 1 else None
        run = _run(site, place, period)
        if run.end():
            raise RuntimeError(f"an undisturbed run failed: {run.said()}")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(place.out, out)
    (made.folder / "ready").touch()


def _run(site: Site, place: Place, period: int) -> Deployed:
    """Start a run of the deployment at the end of a period."""
    now = datetime.fromisoformat(place.reference.days[period]).replace(tzinfo=UTC)
    body = {
        "parameters": {"config": str(place.folder / "schedule.toml"), "now": now.isoformat()},
        "job_variables": {"env": {points.FOLDER: str(place.folder), "OMP_NUM_THREADS": "1"}},
        "state": {"type": "SCHEDULED"},
    }
    made = site.post(f"deployments/{site.deployment('hourly/matrix')['id']}/create_flow_run", body)
    (place.folder / "flow-run.json").write_text(json.dumps(made))
    return Deployed(site, place.folder, made["id"])
