"""A Prefect server with its database, work pool and worker on loopback, as an operator sets it up; all end with it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

POSTGRES = Path("/usr/lib/postgresql/15/bin")
BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Service:
    """A program that stays: what starts it, and its process, in a session of its own."""

    words: list[str]
    folder: Path
    environment: dict[str, str] = field(repr=False)
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, as a service manager does again after it died; its log goes on."""
        with self.log.open("a") as out:
            self.process = subprocess.Popen(
                self.words,
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self, children: bool = False) -> None:
        """SIGKILL; to its children, too, as a container or systemd does."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                (os.killpg if children else os.kill)(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def stop(self) -> None:
        """End it, then what it started."""
        if self.process is not None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            self.kill(children=True)


@dataclass(frozen=True)
class Site:
    """A server under way: the folder that its flows run in, its API, the environment of its clients, its process."""

    folder: Path
    api: str
    environment: dict[str, str] = field(repr=False)
    server: Service

    def wait(self) -> None:
        """Wait until the server answers."""
        wait(lambda: _healthy(self.api), 600, f"the server; see {self.server.log}")

    def prefect(self, *words: str) -> str:
        """Run a `prefect` command in the folder; what it printed."""
        return run([str(BIN / "prefect"), *words], self.folder, self.environment)

    def post(self, path: str, body: object) -> Any:
        """Ask the API; again where its database is busy, as it says with 503."""
        for pause in (1, 5, 20, 0):
            answer = httpx.post(f"{self.api}/{path}", json=body, timeout=60)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(pause)
        answer.raise_for_status()
        return answer.json()

    def runs(self, flow: str, state: str | None = None) -> list[dict[str, Any]]:
        """Flow runs of a flow, at most 200, by expected start."""
        wanted: dict[str, Any] = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_ASC"}
        if state:
            wanted["flow_runs"] = {"state": {"type": {"any_": [state]}}}
        found: list[dict[str, Any]] = self.post("flow_runs/filter", wanted)
        return found

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment, such as ``hourly/hourly``."""
        answer = httpx.get(f"{self.api}/deployments/name/{name}", timeout=60)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def pause(self, deployment: str) -> None:
        """Stop the schedules that a deployment has."""
        found = self.deployment(deployment)
        for one in found["schedules"]:
            answer = httpx.patch(
                f"{self.api}/deployments/{found['id']}/schedules/{one['id']}", json={"active": False}, timeout=60
            )
            answer.raise_for_status()

    def schedule(self, deployment: str, at: dict[datetime, dict[str, Any]]) -> None:
        """Give a deployment a schedule of one run for each of some times, with parameters of its own."""
        schedules = [
            {"schedule": {"rrule": f"RDATE:{time:%Y%m%dT%H%M%SZ}", "timezone": "UTC"}, "parameters": given}
            for time, given in at.items()
        ]
        self.post(f"deployments/{self.deployment(deployment)['id']}/schedules", schedules)


def run(words: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command; stop with its output when it fails."""
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def has_postgres() -> bool:
    """Whether PostgreSQL can be started here: its programs are there, and a user that is not root."""
    return (POSTGRES / "initdb").exists() and (os.getuid() != 0 or shutil.which("runuser") is not None)


@contextmanager
def serving(folder: Path, work: Path, postgres: bool = True) -> Iterator[Site]:
    """Start database and server; the work pool ``aqnet`` is made.

    Parameters
    ----------
    folder : for homes, database and logs.
    work : folder that flows run in.
    postgres : database; SQLite when False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    api = f"http://127.0.0.1:{port}/api"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment |= {
        "PREFECT_HOME": str(folder / "home"),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONUNBUFFERED": "1",
    }
    server = environment | {"PREFECT_SERVER_UI_API_URL": api}
    # in memory, as Prefect has them, leases die with the server, and slots of concurrency limits stay taken for ever
    server["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] = "prefect.server.concurrency.lease_storage.filesystem"
    with ExitStack() as stack:
        if postgres:
            server["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = stack.enter_context(_database(folder / "database"))
        words = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        service = stack.enter_context(process(words, work, server, folder / "server.log"))
        site = Site(work, api, environment | {"PREFECT_API_URL": api}, service)
        site.wait()
        site.prefect("work-pool", "create", "aqnet", "--type", "process")
        yield site


@contextmanager
def working(site: Site, log: Path) -> Iterator[Service]:
    """Start a worker of the pool, as the guide does."""
    words = [str(BIN / "prefect"), "worker", "start", "--pool", "aqnet", "--limit", "1"]
    with process(words, site.folder, site.environment | {"PREFECT_WORKER_QUERY_SECONDS": "2"}, log) as worker:
        yield worker


@contextmanager
def process(words: list[str], folder: Path, environment: dict[str, str], log: Path) -> Iterator[Service]:
    """A program for a block; it and its children end with it."""
    log.unlink(missing_ok=True)
    started = Service(words, folder, environment, log)
    started.start()
    try:
        yield started
    finally:
        started.stop()


def wait(done: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something is so."""
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise SystemExit(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.5)


def _healthy(api: str) -> bool:
    try:
        return httpx.get(f"{api}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _database(folder: Path) -> Iterator[str]:
    """A PostgreSQL cluster of its own on a loopback port; its URL."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    as_user: list[str] = []
    if os.getuid() == 0:
        shutil.chown(folder, pwd.getpwnam("postgres").pw_uid)
        as_user = ["runuser", "-u", "postgres", "--"]
    port, data = _free_port(), folder / "data"
    run([*as_user, str(POSTGRES / "initdb"), "-D", str(data), "-A", "trust", "-U", "prefect", "-E", "UTF8"], folder)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    control = [*as_user, str(POSTGRES / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log")]
    run([*control, "-o", options, "start"], folder)
    try:
        client = [str(POSTGRES / "psql"), "-h", "127.0.0.1", "-p", str(port), "-U", "prefect", "-d", "postgres", "-c"]
        run([*client, "create database prefect"], folder)
        run([*client[:-3], "-d", "prefect", "-c", "create extension pg_trgm"], folder)
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect"
    finally:
        run([*control, "-m", "fast", "stop"], folder)
