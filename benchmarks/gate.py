"""The release gate on SIMULATED networks: clean runs must pass it, runs on spoiled input must be stopped.

Each trial simulates three days of its own seed. The first two are published; the third is run on the input as it is, or
on input (or weights) with one planted defect. `make gate` prints a row a trial and defect: what stopped the run.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from pipeline import output, sources, stages
from pipeline.config import RunConfig
from pipeline.errors import AqnetError
from pipeline.twin.simulate import simulate

BBOX = (110.0, 36.0, 113.0, 39.0)
#: Hours that are published first, and those of the run that is judged, UTC.
EARLIER = (np.datetime64("2019-12-01T00"), np.datetime64("2019-12-03T00"))
JUDGED = (EARLIER[1], np.datetime64("2019-12-04T00"))

Spoil = Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]


@dataclass(frozen=True)
class Network:
    """One simulated network: its observations as a StationTable, and the folder of its runs."""

    seed: int
    table: pd.DataFrame
    folder: Path

    def run(
        self,
        table: pd.DataFrame,
        hours: tuple[np.datetime64, np.datetime64],
        out: str = "out",
        weights: Path | None = None,
        reason: str | None = None,
    ) -> stages.Run:
        """Run the stages on a table of observations; what the gate stops raises."""
        path = self.folder / "observations.parquet"
        table.to_parquet(path)
        start, end = map(str, hours)
        where = {"bbox": BBOX, "resolution": 0.25, "out": self.folder / out}
        config = RunConfig(source="table", input=path, start=start, end=end, weights=weights, **where)  # type: ignore[arg-type]
        return stages.make(config, f"{out}-{start[:10]}", reason)

    def judged(self, table: pd.DataFrame, **how: object) -> stages.Run:
        """Run the third day over a copy of what is published."""
        trial = self.folder / "trial"
        shutil.rmtree(trial, ignore_errors=True)
        shutil.copytree(self.folder / "out", trial)
        return self.run(table, JUDGED, "trial", **how)  # type: ignore[arg-type]


def network(folder: Path, seed: int, stations: int = 60) -> Network:
    """Simulate a network and publish its first two days."""
    made = simulate(folder / "simulated", seed, str(EARLIER[0]), 3, BBOX, stations)
    lead = EARLIER[0] - np.timedelta64(96, "h")
    parts = sources.read("cnemc", made.archive, made.stations, lead, JUDGED[1], None)
    table = pd.concat(parts, ignore_index=True).drop(columns="source_file").astype({"station": str})
    found = Network(seed, table, folder)
    found.run(table, EARLIER)
    return found


# ---- defects ----


def shuffled(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Coordinates permuted among the stations."""
    places = table.groupby("station")[["lon", "lat"]].first()
    mixed = pd.DataFrame(places.to_numpy()[rng.permutation(len(places))], places.index, places.columns)
    return table.drop(columns=["lon", "lat"]).join(mixed, on="station")


def shuffled_values(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Every station's series under the identifier and at the place of another."""
    places = table.groupby("station")[["lon", "lat"]].first()
    names = dict(zip(places.index, places.index[rng.permutation(len(places))], strict=True))
    renamed = table["station"].map(names)
    return table.drop(columns=["lon", "lat"]).assign(station=renamed).join(places, on="station")


def late(hours: int) -> Spoil:
    """All times off by so many hours."""

    def spoil(table: pd.DataFrame, _: np.random.Generator) -> pd.DataFrame:
        return table.assign(time=table["time"] + pd.Timedelta(hours=hours))

    return spoil


def times(factor: float, since: np.datetime64 | None = None) -> Spoil:
    """PM2.5 in another unit, from some hour on."""

    def spoil(table: pd.DataFrame, _: np.random.Generator) -> pd.DataFrame:
        where = np.ones(len(table), bool) if since is None else (table["time"] >= since).to_numpy()
        return table.assign(pm2p5=np.where(where, table["pm2p5"] * factor, table["pm2p5"]).astype("float32"))

    return spoil


def halved(table: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Half the stations are silent in the hours of the run."""
    names = np.unique(table["station"])
    silent = rng.choice(names, len(names) // 2, replace=False)
    return table[~(table["station"].isin(silent) & (table["time"] >= JUDGED[0]))]


def truncated(table: pd.DataFrame, _: np.random.Generator) -> pd.DataFrame:
    """The input ends in the middle of the run's hours."""
    return table[table["time"] < JUDGED[0] + np.timedelta64(12, "h")]


#: Defect -> what spoils the input, and the checks either of which names the cause.
DEFECTS: dict[str, tuple[Spoil, set[str]]] = {
    "shuffled coordinates": (shuffled, {"places"}),
    "shuffled series": (shuffled_values, {"places"}),
    "clock 8 h late": (late(8), {"clock"}),
    "clock 8 h early": (late(-8), {"clock", "end of the input"}),
    "unit x 1000": (times(1000), {"level", "quality"}),
    "unit / 1000": (times(0.001), {"level", "quality"}),
    "unit x 2": (times(2), {"level"}),
    "unit / 2": (times(0.5), {"level"}),
    "unit x 2 in the new hours only": (times(2, JUDGED[0]), {"step of seam"}),
    "half the stations silent": (halved, {"stations"}),
    "input truncated": (truncated, {"end of the input"}),
}


@dataclass(frozen=True)
class Verdict:
    """What became of a run: `failed` checks with what they found; the wanted ones are among them or `passed`."""

    seed: int
    defect: str
    failed: dict[str, str]
    right: bool


def clean(base: Network) -> Verdict:
    """Run the third day as it is; right when nothing stops it."""
    return _verdict(base, "none", set(), base.table)


def spoiled(base: Network, defect: str) -> Verdict:
    """Run the third day on spoiled input; right when the gate stops it for a reason that names the cause."""
    spoil, wanted = DEFECTS[defect]
    return _verdict(base, defect, wanted, spoil(base.table, np.random.default_rng([base.seed, 7])))


def other_weights(base: Network, weights: Path, reason: str | None = None) -> Verdict:
    """Run the third day with other weights than the revision before; a reason leaves it to the scores to object."""
    name, wanted = (
        ("weights without a reason", {"weights"}) if reason is None else ("bad weights", {"kriging", "skill"})
    )
    return _verdict(base, name, wanted, base.table, weights=weights, reason=reason)


def _verdict(base: Network, defect: str, wanted: set[str], table: pd.DataFrame, **change: object) -> Verdict:
    stopped: dict[str, str] = {}
    try:
        base.judged(table, **change)
    except AqnetError as error:
        stopped = _failed(base.folder / "trial") or {"error": str(error)}
    return Verdict(base.seed, defect, stopped, bool(wanted & set(stopped)) if wanted else not stopped)


def _failed(out: Path) -> dict[str, str]:
    """What the report of a held run says of the checks that failed."""
    reports = [json.loads(path.read_text()) for path in (out / output.HELD).glob(f"*/{output.REPORT}")]
    return {check["name"]: check["found"] for said in reports for check in said["checks"] if check["passed"] is False}


# ---- the table ----


def trials(seeds: int, defects: int, weights: tuple[Path, Path]) -> Iterator[Verdict]:
    """Clean runs of so many seeds, and every defect in the first of them; ``weights`` are stale ones and bad ones."""
    for seed in range(1, seeds + 1):
        with TemporaryDirectory() as folder:
            base = network(Path(folder), seed)
            yield clean(base)
            if seed <= defects:
                yield from (spoiled(base, defect) for defect in DEFECTS)
                yield other_weights(base, weights[0])
                yield other_weights(base, weights[1], "retrained")


def shaken(path: Path, seed: int = 0) -> Path:
    """Save the shipped network with noise as large as its weights on them, as if trained on something else."""
    import torch

    from model import checkpoint

    network = checkpoint.load(checkpoint.DEFAULT)
    torch.manual_seed(seed)
    with torch.no_grad():
        for values in network.parameters():
            values += torch.randn_like(values) * values.std(unbiased=False).nan_to_num()
    checkpoint.save(network, path, {"seed": seed})
    return path


def main() -> None:
    """Print a row a trial, and how many clean runs passed and how many defects were stopped for the right reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="networks of which a clean run is judged")
    parser.add_argument("--defects", type=int, default=3, help="networks of them with every defect")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    with TemporaryDirectory() as folder:
        weights = shaken(Path(folder) / "shaken.safetensors")
        found = []
        for verdict in trials(asked.seeds, asked.defects, (weights, weights)):
            found.append(verdict)
            why = "; ".join(f"{name}: {text}" for name, text in verdict.failed.items()) or "published"
            print(f"{verdict.seed:4} {verdict.defect:32} {'right' if verdict.right else 'WRONG':6} {why}", flush=True)
    for name, rows in (
        ("clean", [v for v in found if v.defect == "none"]),
        ("spoiled", [v for v in found if v.defect != "none"]),
    ):
        print(f"{name}: {sum(v.right for v in rows)} of {len(rows)} right")


if __name__ == "__main__":
    main()
