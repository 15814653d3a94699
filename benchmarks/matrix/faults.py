"""Faults of the place a run works in, brought about while the run waits at a point, and lifted after its end."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import zarr
from numpy.random import Generator

from benchmarks.matrix import child, points
from benchmarks.matrix.scene import Place, Reference
from pipeline import output
from pipeline.cube import repository

KILLED = -9

#: File that tells a preloaded libfaketime by how much the clock is wrong.
CLOCK = "FAKETIME_TIMESTAMP_FILE"

#: Seconds after which all processes know a new clock: they look once a second, for looking at every call is slow.
CACHED = 2.5

#: libfaketime, as Debian's package has it.
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


class Fault:
    """A fault that does nothing; others say what they do where.

    Attributes
    ----------
    stages : of `points.POINTS`, where it is brought about.
    ends : exit statuses that the disturbed run may have.
    """

    stages: tuple[str, ...] = tuple(points.POINTS)
    ends: tuple[int, ...] = (0, 1)

    #: Whether a run that fails must say why in one line of the command line.
    told: bool = True
    #: Whether its cells are played one at a time, after all others.
    alone: bool = False
    #: Whether they are played in the process that has what they share.
    here: bool = False

    def shared(self, folder: Path) -> AbstractContextManager[None]:
        """What all its cells need while they are played, such as a server."""
        return nullcontext()

    def place(self, folder: Path, reference: Reference) -> Place:
        """Where a cell is played."""
        return Place(folder, reference)

    def start(self, place: Place, name: str) -> child.Run:
        """Start the run that is disturbed, or the one that recovers."""
        return child.forked(place.words, place.folder, place.folder / f"{name}.log", place.environment)

    def said(self) -> str:
        """What was done, where that is drawn."""
        return ""

    def prepare(self, place: Place) -> None:
        """Make the place ready, before anything lies in it."""

    def inject(self, place: Place, rng: Generator) -> None:
        """Bring it about; the run waits."""

    def disturb(self, run: child.Run, rng: Generator) -> None:
        """Disturb the run itself, once it goes on."""

    def lift(self, place: Place) -> None:
        """End it, as an operator would."""

    def tear_down(self, place: Place) -> None:
        """Leave nothing behind."""

    def problems(self, place: Place) -> list[str]:
        """What is wrong beside the run, its readers and what it left."""
        return []


class Kill(Fault):
    """SIGKILL: at once, or up to 0.3 s later."""

    ends = (KILLED, 0)

    def disturb(self, run: child.Run, rng: Generator) -> None:
        """Kill it."""
        if rng.random() < 0.7:
            time.sleep(rng.uniform(0, 0.3))
        run.kill()


class KillWhole(Kill):
    """SIGKILL to the process of a whole `aqnet run`, Prefect and pictures included."""

    stages = ("ingest", "analyse", "validate", "publish: main moves", "publish: downloads")

    def start(self, place: Place, name: str) -> child.Run:
        """Start it with a Prefect of its own."""
        home = {"PREFECT_HOME": str(place.folder / "prefect")}
        return child.whole(place.words, place.folder, place.folder / f"{name}.log", home)


class DiskFull(Fault):
    """The disk of the output folder, a tmpfs, has a few kilobytes left, or none."""

    size = "40m"

    def prepare(self, place: Place) -> None:
        """Mount a small disk."""
        place.disk.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", str(place.disk))

    def inject(self, place: Place, rng: Generator) -> None:
        """Fill it."""
        filler = place.disk / "filler"
        block, free = bytes(1 << 16), 0 if rng.random() < 0.5 else int(rng.integers(0, 64)) * 4096
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(block)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            os.truncate(filler, max(0, file.tell() - free))

    def lift(self, place: Place) -> None:
        """Make room."""
        (place.disk / "filler").unlink()

    def tear_down(self, place: Place) -> None:
        """Take the disk away."""
        _mount("-l", str(place.disk), command="umount")


class ReadOnly(Fault):
    """The output folder becomes read-only, as a disk does that the kernel no longer trusts."""

    def inject(self, place: Place, rng: Generator) -> None:
        """Lay a read-only mount of the folder over it."""
        _mount("--bind", str(place.out), str(place.out))
        _mount("-o", "remount,bind,ro", str(place.out))

    def lift(self, place: Place) -> None:
        """Take it away."""
        _mount("-l", str(place.out), command="umount")


class Corrupted(Fault):
    """An input file changes while the run reads it: cut short, overwritten, emptied, or in place of it another one."""

    def inject(self, place: Place, rng: Generator) -> None:
        """Damage the archive of the month that the run makes."""
        file = place.record / "archive" / "china_sites_201912.zip"
        data = file.read_bytes()
        at = int(rng.integers(0, len(data) - 64))
        kinds: list[Callable[[], bytes]] = [
            lambda: data[: len(data) // 2],
            lambda: data[:at] + rng.bytes(64) + data[at + 64 :],
            lambda: b"",
            lambda: (place.record / "archive" / "china_sites_201911.zip").read_bytes(),
        ]
        file.write_bytes(kinds[int(rng.integers(len(kinds)))]())

    def lift(self, place: Place) -> None:
        """Fetch the file again."""
        name = "archive/china_sites_201912.zip"
        (place.record / name).write_bytes((place.reference.record / name).read_bytes())


class TwoRuns(Fault):
    """A second run of the same hours is started into the same folder; whichever is second waits or says so."""

    ends = (0,)

    def inject(self, place: Place, rng: Generator) -> None:
        """Start it, and give it time to come to the lock."""
        self._second = child.forked(place.words, place.folder / "second", place.folder / "second.log")
        time.sleep(rng.uniform(0.2, 1.5))

    def problems(self, place: Place) -> list[str]:
        """Say how it ended, unless well or by the lock."""
        status, said = self._second.end(), self._second.said()
        if status == 0 or (status == 1 and "another run is writing this cube" in said):
            return []
        return [f"the second run ended with {status}: {said.strip().splitlines()[-1:]}"]


class ClockJump(Fault):
    """The clock of the run jumps forward or backward, minutes to days, and what was written keeps its times.

    Needs a preloaded libfaketime, which all processes of the cell have.
    """

    alone = True
    jumps = (timedelta(minutes=-7), timedelta(minutes=-30), timedelta(days=-2), timedelta(hours=1), timedelta(days=400))

    @contextmanager
    def shared(self, folder: Path) -> Iterator[None]:
        """Start processes under libfaketime from here on."""
        if not Path(FAKETIME).exists():
            raise SystemExit(f"expected libfaketime at {FAKETIME} for clock jumps (Debian: apt-get install faketime)")
        before = dict(os.environ)
        os.environ |= {CLOCK: str(folder / "clock"), "LD_PRELOAD": FAKETIME}
        os.environ |= {"FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
        set_clock(0)
        yield
        for name in set(os.environ) - set(before):
            del os.environ[name]

    def inject(self, place: Place, rng: Generator) -> None:
        """Let the clock jump. The kernel's stays, so times of files written so far jump the other way instead."""
        jump = self.jumps[int(rng.integers(len(self.jumps)))].total_seconds()
        set_clock(jump)
        _shift_times(place.out, -jump)
        points.pause(CACHED)

    def lift(self, place: Place) -> None:
        """Set the clock right."""
        set_clock(0)
        points.pause(CACHED)


def set_clock(seconds: float) -> None:
    """Let the clock of all processes under libfaketime be wrong by so much."""
    file = Path(os.environ[CLOCK])
    part = file.with_suffix(".part")
    part.write_text(f"{seconds:+.0f}\n")
    part.rename(file)


def _shift_times(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*"):
        found = path.stat()
        os.utime(path, (found.st_atime + seconds, found.st_mtime + seconds))


_BEFORE = tuple(points.POINTS)[: tuple(points.POINTS).index("publish: main moved")]


class MainMoved(Fault):
    """Somebody else, who does not know the lock, publishes a revision between base and publication."""

    stages, ends = _BEFORE, (1,)

    def inject(self, place: Place, rng: Generator) -> None:
        """Commit to main and tag it."""
        repo = repository.open_existing(place.cube)
        session = repo.writable_session("main")
        zarr.open_group(session.store, mode="r+").attrs.update(revision="r2", revision_reason="somebody else")
        repo.create_tag("r2", session.commit("somebody else", {"reason": "somebody else"}))


class NoLock(Fault):
    """Another host, to which the lock does not reach, makes the same hours at the same time."""

    def inject(self, place: Place, rng: Generator) -> None:
        """Take the lock file away, as if it had never been seen, and let a second run do as it likes."""
        (place.out / f".{output.CUBE}.lock").unlink()
        self._second = child.forked(place.words, place.folder / "second", place.folder / "second.log")
        end = time.monotonic() + rng.choice((rng.uniform(0.2, 3), 20))  # it waits itself where the first one publishes
        while self._second.status is None and time.monotonic() < end:
            time.sleep(0.05)

    def problems(self, place: Place) -> list[str]:
        """Say how it ended, unless with 0 or 1."""
        status, said = self._second.end(), self._second.said()
        return (
            [] if status in (0, 1) else [f"the other host's run ended with {status}: {said.strip().splitlines()[-1:]}"]
        )


def _mount(*words: str, command: str = "mount") -> None:
    subprocess.run([command, *words], check=True, capture_output=True, text=True)
