"""Every fault of the matrix by name, in the order in which they are played."""

from __future__ import annotations

from benchmarks.matrix import faults, site_faults, store_faults, worker_faults
from benchmarks.matrix.faults import Fault

FAULTS: dict[str, Fault] = {
    "kill -9 of the run": faults.Kill(),
    "disk full": faults.DiskFull(),
    "read-only store": faults.ReadOnly(),
    "S3 500s": store_faults.Errors(),
    "S3 time-outs": store_faults.TimeOuts(),
    "corrupted input": faults.Corrupted(),
    "two runs at once": faults.TwoRuns(),
    "clock jump": faults.ClockJump(),
    "store conflict: main moved": faults.MainMoved(),
    "store conflict: no lock": faults.NoLock(),
    "kill -9 of `aqnet run`": faults.KillWhole(),
    "kill -9 of a Dask worker": worker_faults.KillDask(),
    "kill -9 of the Prefect worker": site_faults.KillWorker(),
    "kill -9 of the Prefect server": site_faults.KillServer(),
}
