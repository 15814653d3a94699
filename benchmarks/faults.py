"""Faults of known kind and size, drawn with a seed and planted in real observations a few stations at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.random import Generator

from pipeline import qc
from pipeline.contract import POLLUTANTS
from pipeline.qc.alone import GAP_HOURS, MOVED_HOURS
from pipeline.qc.neighbours import LEAST, nearest_columns
from pipeline.qc.twins import WINDOW

#: Tries at drawing a place for a fault before the data is said not to allow it.
TRIES = 3000


@dataclass(frozen=True)
class Fault:
    """One planted fault: its kind, its size (0: the kind's own), and the values (hours, pollutants) a flag is due on.

    ``either`` is a second column whose flag would do: of two copies, it cannot always be told which is one.
    """

    kind: str
    size: float
    column: int
    due: slice
    names: tuple[str, ...]
    either: int | None = None


@dataclass
class Round:
    """Observations that faults are planted in: rows ``start`` to ``end`` of the cube are the week.

    ``values`` are planted in, ``original`` kept; ``touched`` marks what is not clean any more; ``free`` stations carry
    no fault yet; ``moves`` gives a column's row and place (lon, lat) from which on it stands elsewhere.
    """

    cube: xr.Dataset
    start: int
    end: int
    rng: Generator
    values: dict[str, np.ndarray] = field(init=False)
    original: dict[str, np.ndarray] = field(init=False)
    touched: dict[str, np.ndarray] = field(init=False)
    free: list[int] = field(init=False)
    neighboured: np.ndarray = field(init=False)
    faults: list[Fault] = field(default_factory=list)
    moves: dict[int, tuple[int, float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cube = self.cube.copy(deep=True)
        self.original = {name: self.cube[name].to_numpy().copy() for name in POLLUTANTS}
        self.values = {name: self.cube[name].to_numpy() for name in POLLUTANTS}
        self.touched = {name: np.zeros(series.shape, dtype=bool) for name, series in self.values.items()}
        reported = np.isfinite(self.original["pm2p5"][self.start : self.end]).mean(axis=0) > 0.5
        self.free = np.flatnonzero(reported).tolist()
        near = nearest_columns(self.cube)
        self.neighboured = (np.append(reported, False)[near]).sum(axis=1) >= LEAST + 1

    def plant(self, fault: Fault, hours: slice, names: tuple[str, ...] = ()) -> None:
        """Note a fault whose values of `hours` (of its own pollutants, or of `names`) were changed."""
        for name in names or fault.names:
            self.touched[name][hours, fault.column] = True
        self.faults.append(fault)

    def run(self, name: str, length: int, least: float = 0.0, whole: bool = True) -> tuple[int, slice]:
        """Draw a free station and hours of the week in which it reports a pollutant, `least` or more in the median."""
        for _ in range(TRIES):
            column = self.free[int(self.rng.integers(len(self.free)))]
            first = int(self.rng.integers(self.start, self.end - length + 1))
            held = self.original[name][first : first + length, column]
            known = np.isfinite(held) & (held > 0)
            if (known.all() if whole else known[0]) and np.median(held[known]) >= least:
                self.free.remove(column)
                return column, slice(first, first + length)
        raise SystemExit(f"planted faults: found no {length} hours of {name} of {least} or more at a free station")

    def place(self, column: int) -> tuple[float, float]:
        """Longitude and latitude of a column."""
        return float(self.cube["lon"].values[column]), float(self.cube["lat"].values[column])

    def distance(self, east: float, north: float) -> np.ndarray:
        """Kilometres of each station from a place, good enough to pick one by; (S,)."""
        lon, lat = self.cube["lon"].values, self.cube["lat"].values
        return 111.2 * np.hypot((lon - east) * np.cos(np.radians(north)), lat - north)


def _any(round_: Round) -> str:
    return str(round_.rng.choice(POLLUTANTS))


def plant_range(round_: Round, size: float) -> None:
    """-1 to -50, or 1.05 to 3 times the measuring range, for an hour of any pollutant. Due: that value."""
    name, rng = _any(round_), round_.rng
    column, hours = round_.run(name, 1)
    wrong = -rng.uniform(1, 50) if rng.random() < 0.5 else qc.MAXIMA[name] * rng.uniform(1.05, 3)
    round_.values[name][hours, column] = wrong
    round_.plant(Fault("range", size, column, hours, (name,)), hours)


def plant_zero_as_missing(round_: Round, size: float) -> None:
    """0 for one to six hours of any pollutant. Due: those values."""
    name = _any(round_)
    column, hours = round_.run(name, int(round_.rng.integers(1, 7)))
    round_.values[name][hours, column] = 0
    round_.plant(Fault("zero_as_missing", size, column, hours, (name,)), hours)


def plant_flat_line(round_: Round, size: float) -> None:
    """A value held 6 to 24 hours longer than the N hours nature may hold it, any pollutant. Due: from the N-th on."""
    name = _any(round_)
    column, hours = round_.run(name, max(n for _, n in qc.FLAT_HOURS[name]) + 24)
    value = round_.original[name][hours.start, column]
    needed = [n for level, n in qc.FLAT_HOURS[name] if value > level][-1]
    hours = slice(hours.start, hours.start + needed + int(round_.rng.integers(6, 25)))
    round_.values[name][hours, column] = value
    round_.plant(Fault("flat_line", size, column, slice(hours.start + needed - 1, hours.stop), (name,)), hours)


def plant_spike(round_: Round, size: float) -> None:
    """PM2.5 of one or two hours times 5 to 10 (20 or more), one in four divided by it (60 or more). Due: those values.

    With a size, one hour times exactly that, or divided by it where negative.
    """
    _multiply(round_, "spike", size, 1 if size else int(round_.rng.integers(1, 3)), (5, 10), (20, 60), 0.25)


def plant_gross(round_: Round, size: float) -> None:
    """PM2.5 of 6 to 48 hours times 6 (median 30 or more), one in two divided by 6 (60 or more). Due: those values.

    With a size, 12 hours times exactly that, or divided by it where negative. Stations with neighbours only.
    """
    _multiply(round_, "gross", size, 12 if size else int(round_.rng.integers(6, 49)), (6, 6), (30, 60), 0.5)


def _multiply(
    round_: Round,
    kind: str,
    size: float,
    length: int,
    factors: tuple[float, float],
    least: tuple[float, float],
    share_down: float,
) -> None:
    down = size < 0 if size else bool(round_.rng.random() < share_down)
    factor = abs(size) or float(np.exp(round_.rng.uniform(*np.log(factors))))
    column, hours = round_.run("pm2p5", length, least[down])
    while kind == "gross" and not round_.neighboured[column]:
        column, hours = round_.run("pm2p5", length, least[down])
    held = round_.original["pm2p5"][hours, column]
    round_.values["pm2p5"][hours, column] = np.round(held / factor if down else held * factor)
    round_.plant(Fault(kind, size, column, hours, ("pm2p5",)), hours)


def plant_isolated(round_: Round, size: float) -> None:
    """A station set down 130 km or more from any other. Due: every PM2.5 value of the week."""
    column, _ = round_.run("pm2p5", 1)
    for _ in range(TRIES):
        east, north = round_.rng.uniform(80, 135), round_.rng.uniform(20, 50)
        if round_.distance(east, north).min() > 130:
            break
    round_.cube["lon"].values[column], round_.cube["lat"].values[column] = east, north
    fault = Fault("isolated", size, column, slice(round_.start, round_.end), ("pm2p5",))
    round_.plant(fault, slice(None), POLLUTANTS)


def plant_gap(round_: Round, size: float) -> None:
    """Nothing at all for 8 to 72 hours from a station that reported. Due: from the sixth hour on."""
    column, hours = round_.run("pm2p5", int(round_.rng.integers(8, 73)), whole=False)
    for name in POLLUTANTS:
        round_.values[name][hours, column] = np.nan
    due = slice(hours.start + GAP_HOURS - 1, hours.stop)
    round_.plant(Fault("gap", size, column, due, ("pm2p5",)), hours, POLLUTANTS)


def plant_pm10_below_pm2p5(round_: Round, size: float) -> None:
    """PM10 of an hour at 0.2 to 0.75 of a PM2.5 of 50 or more. Due: that PM10."""
    column, hours = round_.run("pm2p5", 1, 50)
    while np.isnan(round_.original["pm10"][hours, column]).any():
        column, hours = round_.run("pm2p5", 1, 50)
    wrong = round_.original["pm2p5"][hours, column] * round_.rng.uniform(0.2, 0.75)
    round_.values["pm10"][hours, column] = np.round(wrong)
    round_.plant(Fault("pm10_below_pm2p5", size, column, hours, ("pm10",)), hours)


def plant_duplicate_station(round_: Round, size: float) -> None:
    """All of another station's values, near or far, for 48 to 120 hours. Due: one of the two, from the 24th hour on."""
    column, hours = round_.run("pm2p5", int(round_.rng.integers(48, 121)), whole=False)
    far = round_.distance(*round_.place(column))
    near = [other for other in round_.free if far[other] < 100]
    among = near if near and round_.rng.random() < 0.5 else round_.free
    other = among[int(round_.rng.integers(len(among)))]
    round_.free.remove(other)
    for name in POLLUTANTS:
        round_.values[name][hours, column] = round_.original[name][hours, other]
    due = slice(hours.start + WINDOW - 1, hours.stop)
    round_.plant(Fault("duplicate_station", size, column, due, ("pm2p5",), other), hours, POLLUTANTS)


def plant_moved(round_: Round, size: float) -> None:
    """Coordinates that change by 1.5 to 50 km. Due: the 48 hours from then on."""
    column, hours = round_.run("pm2p5", MOVED_HOURS)
    km, bearing = np.exp(round_.rng.uniform(*np.log((1.5, 50)))), round_.rng.uniform(0, 2 * np.pi)
    lon, lat = round_.place(column)
    east = lon + km * np.sin(bearing) / 111.2 / np.cos(np.radians(lat))
    round_.moves[column] = (hours.start, east, lat + km * np.cos(bearing) / 111.2)
    round_.plant(Fault("moved", size, column, hours, ("pm2p5",)), slice(hours.start, None), POLLUTANTS)


def plant_unit_jump(round_: Round, size: float) -> None:
    """One to twelve hours of any pollutant times or divided by 1000, unrounded. Due: those values."""
    name = _any(round_)
    column, hours = round_.run(name, int(round_.rng.integers(1, 13)))
    round_.values[name][hours, column] *= np.float32(1000 if round_.rng.random() < 0.5 else 1e-3)
    round_.plant(Fault("unit_jump", size, column, hours, (name,)), hours)


def plant_time_shift(round_: Round, size: float) -> None:
    """All pollutants 3 to 12 hours late or early, days before the week too. Due: every PM2.5 value of the week.

    With a size, exactly that many hours late.
    """
    column, _ = round_.run("pm2p5", 1)
    late = int(size) or int(round_.rng.integers(3, 13)) * (1 if round_.rng.random() < 0.5 else -1)
    for name in POLLUTANTS:
        round_.values[name][:, column] = np.roll(round_.original[name][:, column], late)
    fault = Fault("time_shift", size, column, slice(round_.start, round_.end), ("pm2p5",))
    round_.plant(fault, slice(None), POLLUTANTS)


#: Kind -> what plants one fault of it in a round.
KINDS: dict[str, Callable[[Round, float], None]] = {
    name.removeprefix("plant_"): function for name, function in list(globals().items()) if name.startswith("plant_")
}
