"""What gridded covariates gain, and what noise costs, on the SIMULATED field: ``python -m benchmarks.covariates``.

A quarter of the cities (boxes of half a degree) is hidden. Errors are those of the mean, ug m-3: at 1500 random cells
against the true field, and at the hidden stations against what they would have reported. Two days go first.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from model import background, infer
from model.windows import Estimate, Observations, Points
from pipeline import analyse, harmonise, qc, sources
from pipeline.grid import is_land, relief, terrain
from pipeline.twin import simulate
from pipeline.twin.truth import RandomField, Scale

Array = NDArray[np.float64]
BBOX, DAYS, FIRST, CELLS = (110.0, 33.0, 119.0, 41.0), 8, 48, 1500
KM = (11.1, 8.9)  # of a cell of 0.1 degrees


@dataclass(frozen=True)
class Twin:
    """A truth (T, Y, X) in ug m-3, the visible stations' record, and places: first cells, then hidden stations."""

    truth: Array
    lon: Array
    lat: Array
    record: Observations
    places: Points
    expected: Array  # (T, places)

    def at(self, field: Array, lon: Array, lat: Array) -> Array:
        """A field of the truth's grid at places, (T, places)."""
        where = [(lat - self.lat[0]) / 0.1, (lon - self.lon[0]) / 0.1]
        return np.stack([map_coordinates(hour, where, order=1, mode="nearest") for hour in field])


def twin(folder: Path, seed: int = 3) -> Twin:
    done = simulate.simulate(folder, seed, "2019-12-01", DAYS, BBOX, n_stations=180)
    truth = simulate.read_truth(done.truth)
    tables = sources.read("cnemc", done.archive, done.stations, done.start, done.end, done.bbox, "error")
    seen = analyse.observations(qc.flag(harmonise.to_cube(tables, done.start, done.end), done.start))
    rng = np.random.default_rng(0)
    box = np.unique(np.floor(np.stack([seen.lon, seen.lat], -1) / 0.5), axis=0, return_inverse=True)[1].ravel()
    hidden = np.isin(box, rng.permutation(box.max() + 1)[: (box.max() + 1) // 4])
    lon, lat = (axis.ravel() for axis in np.meshgrid(truth["lon"].values, truth["lat"].values))
    cells = rng.permutation(np.flatnonzero(is_land(lon, lat)))[:CELLS]
    x, y = np.append(lon[cells], seen.lon[hidden]), np.append(lat[cells], seen.lat[hidden])
    expected = np.append(truth.values.reshape(len(truth), -1)[:, cells], seen.values[0][:, hidden], axis=1)
    places = Points(x, y, terrain(x, y).astype(float), relief(x, y))
    return Twin(
        truth.values.astype(float), truth["lon"].values, truth["lat"].values, only(seen, ~hidden), places, expected
    )


def only(seen: Observations, chosen: NDArray[np.bool_]) -> Observations:
    part = {name: getattr(seen, name)[chosen] for name in ("lon", "lat", "elevation", "relief")}
    return replace(seen, values=seen.values[:, :, chosen], **part)


def smooth(field: Array, km: float) -> Array:
    return np.stack([gaussian_filter(hour, [km / d for d in KM], mode="nearest") for hour in field])


def noise(like: Array, seed: int, *scales: Scale) -> Array:
    field, out = RandomField(np.random.default_rng(seed), like.shape[1:], KM, scales), np.empty(like.shape)
    for hour in range(len(like)):
        out[hour] = field.value()
        field.advance(np.zeros(2))
    return out


def candidates(truth: Array) -> Iterator[tuple[str, list[list[Array]]]]:
    """Names and, for each repetition, the covariates that go in together."""
    log = np.log1p(truth)
    seeds = range(5)
    model = [smooth(log, 20) + noise(log, 10 + k, Scale(30, 0.06, 9, 0), Scale(300, 0.1, 40, 0)) for k in seeds]
    rough = [smooth(log, 20) + noise(log, 20 + k, Scale(8, 0.1, 9, 0)) for k in seeds]
    depth = [-0.6 * (log - smooth(log, 100)) + noise(log, 30 + k, Scale(20, 0.02, 9, 0)) for k in seeds]
    static = {
        km: [np.broadcast_to(noise(log[:1], 200 + km + k, Scale(km, 1, 9, 0)), log.shape) for k in range(10)]
        for km in (40, 100, 300)
    }
    hourly = [noise(log, 100 + k, Scale(30, 0.5, 9, 0), Scale(150, 0.5, 30, 0)) for k in range(10)]
    background_of = lambda field: np.cbrt(np.maximum(np.expm1(field), 0))  # noqa: E731
    yield "background, errors of 30 and 300 km", [[background_of(field)] for field in model]
    yield "background, errors of 8 km", [[background_of(field)] for field in rough]
    yield "mixing-depth-like feature", [[field] for field in depth]
    yield "background and two of noise", [[background_of(model[k]), hourly[k], static[40][k]] for k in seeds]
    yield "hourly noise, 30 and 150 km", [[field] for field in hourly]
    for km, fields in static.items():
        yield f"static noise, {km} km", [[field] for field in fields]


def errors(found: Estimate, at: Twin) -> Array:
    """RMSE at cells and at hidden stations."""
    squared = (found.mean - at.expected)[FIRST:] ** 2
    return np.sqrt([np.nanmean(squared[:, :CELLS]), np.nanmean(squared[:, CELLS:])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="weights of the network (the shipped ones)")
    parser.add_argument("--mode", choices=["interim", "final"], default="interim")
    options = parser.parse_args()
    torch.set_num_threads(1)
    network = analyse.load(options.weights).aqnet
    with tempfile.TemporaryDirectory() as folder:
        at = twin(Path(folder))
    plain = errors(infer.estimate(network, at.record, at.places, options.mode), at)
    print(
        f"SIMULATED; {options.mode}; RMSE without covariates {plain[0]:.2f} at cells, {plain[1]:.2f} at hidden stations"
    )
    print("\n| covariate | fields | cells: mean, worst | hidden stations: mean, worst |\n|---|---|---|---|")
    for name, repetitions in candidates(at.truth):
        change = np.array(
            [100 * (errors(_with(network, at, fields, options.mode), at) / plain - 1) for fields in repetitions]
        )
        cells = [f"{mean:+.2f} %, {worst:+.2f} %" for mean, worst in zip(change.mean(0), change.max(0), strict=True)]
        print(f"| {name} | {len(repetitions)} | {' | '.join(cells)} |", flush=True)


def _with(network: object, at: Twin, fields: list[Array], mode: str) -> Estimate:
    stations = np.stack([at.at(field, at.record.lon, at.record.lat) for field in fields])
    places = np.stack([at.at(field, at.places.lon, at.places.lat) for field in fields])
    known = background.Covariates(stations, lambda hours: places[:, hours])
    return background.estimate(network, at.record, at.places, known, mode)


if __name__ == "__main__":
    main()
