"""The known PM2.5 field of the twin experiment: SIMULATED, never a measurement.

``log(PM2.5 + 1)`` is a sum of a season, a diurnal cycle in local solar time, terrain, cities, and Gaussian random
fields of several correlation lengths that fade and are carried by a slowly turning wind. The field lives on a fine
lattice, one hour at a time; a sparse bilinear matrix takes it to any points, so that grid and stations see one truth.

Lengths are km on the plane that is true to scale at the domain's central latitude. ``l`` is log(PM2.5 + 1), PM2.5 in
ug m-3. The constants were tuned on the real network (``docs/explanation/simulation.md``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import fft, sparse
from scipy.ndimage import gaussian_filter

from pipeline.errors import ConfigError
from pipeline.grid import Grid, is_land, terrain

Float = NDArray[np.float64]
Bbox = tuple[float, float, float, float]

KM_PER_DEGREE = 111.2
#: Spacing of the lattice (degrees): half the shortest correlation length.
LATTICE_DEGREES = 0.05
#: Periodic fields are made this much wider (km) than the domain, so that opposite edges are unrelated.
PADDING_KM = 800.0

#: Annual mean of ``l`` on flat open land, and half the difference between mid-January and mid-July.
BASE, SEASONAL_AMPLITUDE = 3.55, 0.50
#: Change of ``l`` a km of elevation; change per km that a place lies below its surroundings (60 km).
TERRAIN_SLOPE, BASIN_SLOPE, BASIN_KM = -0.40, 0.15, 60.0
#: ``l`` levels off towards this value (900 ug m-3): an episode saturates.
CEILING = 6.8


@dataclass(frozen=True)
class Scale:
    """One Gaussian random field: covariance ``variance exp(-d^2 / 2 length_km^2)``.

    It forgets itself with an e-folding time of `memory_h` hours while it moves with a share `drift` of the wind:
    synoptic structures travel, town-sized ones stay where emissions and terrain hold them.
    """

    length_km: float
    variance: float
    memory_h: float
    drift: float


SCALES = (
    Scale(350, 0.07, 2000, 0.0),  # regions that emit more
    Scale(450, 0.40, 60, 1.0),
    Scale(120, 0.14, 18, 0.7),
    Scale(40, 0.06, 9, 0.2),
    Scale(12, 0.05, 8, 0.0),
)


@dataclass
class _Modes:
    """The Fourier modes of one `Scale` that carry variance; ``state`` is the one thing that changes."""

    scale: Scale
    where: tuple[NDArray[np.intp], NDArray[np.intp]]  # row, column in the half spectrum, each (modes,)
    wave: Float  # rad/km east and north, (modes, 2)
    amplitude: Float  # in units of l, (modes,)
    state: NDArray[np.complex128] = field(init=False)  # E|state|^2 = 1, (modes,)

    def advance(self, rng: np.random.Generator, moved_km: Float) -> None:
        """Go on by one hour: fade, move by ``drift * moved_km`` (a phase), and renew what has faded."""
        keep = np.exp(-1 / self.scale.memory_h)
        phase = np.exp(-1j * self.scale.drift * (self.wave @ moved_km))
        self.state = keep * phase * self.state + np.sqrt(1 - keep**2) * _complex_normal(rng, len(phase))


def _complex_normal(rng: np.random.Generator, count: int) -> NDArray[np.complex128]:
    """Circular complex normal numbers of unit mean square, (count,)."""
    parts = rng.standard_normal((2, count)) / np.sqrt(2)
    return parts[0] + 1j * parts[1]


class RandomField:
    """A sum of advected Gaussian random fields on a lattice, synthesised from its spectrum.

    The spectral method (Ruan & McLaughlin 1998, Adv. Water Resour. 21, 385-399), each mode an AR(1) process in time
    whose phase turns with the wind: advection and stationarity are exact, and the state is a few thousand numbers.

    Parameters
    ----------
    rng : source of all randomness.
    shape : (rows, columns) of the lattice, rows from south to north.
    spacing_km : distance between rows and between columns.
    scales : the fields to add.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int],
        spacing_km: tuple[float, float],
        scales: Sequence[Scale] = SCALES,
    ) -> None:
        self._rng, self._shape = rng, shape
        padded = [fft.next_fast_len(n + int(PADDING_KM / d), real=True) for n, d in zip(shape, spacing_km, strict=True)]
        self._padded = (padded[0], padded[1])
        self._modes = [self._spectrum(scale, spacing_km) for scale in scales]
        for modes in self._modes:
            modes.state = _complex_normal(rng, len(modes.amplitude))

    def _spectrum(self, scale: Scale, spacing_km: tuple[float, float]) -> _Modes:
        """Modes up to 4 / length, where the spectrum exp(-k^2 length^2 / 2) has fallen to 3e-4, without the mean.

        Columns above 0 stand for themselves and their conjugates; in column 0 both are there, with half the variance.
        """
        north = 2 * np.pi * np.fft.fftfreq(self._padded[0], spacing_km[0])[:, None]
        east = 2 * np.pi * np.fft.rfftfreq(self._padded[1], spacing_km[1])[None, :]
        squared = (north**2 + east**2) * scale.length_km**2
        rows, columns = np.nonzero((squared > 0) & (squared < 16))
        where = rows, columns
        wave = np.stack([east[0, columns], north[rows, 0]], axis=-1)
        twin = np.where(columns == 0, 1.0, 2.0)
        power = np.exp(-squared[where] / 2)
        power *= scale.variance / (twin * power).sum()
        return _Modes(scale, where, wave, np.sqrt(power * 2 / twin))

    def value(self) -> Float:
        """Return the field of the present hour, (rows, columns)."""
        spectrum = np.zeros((self._padded[0], self._padded[1] // 2 + 1), complex)
        for modes in self._modes:
            spectrum[modes.where] += modes.amplitude * modes.state
        full = np.asarray(fft.irfft2(spectrum, s=self._padded, norm="forward"), "float64")
        return full[: self._shape[0], : self._shape[1]]

    def advance(self, moved_km: Float) -> None:
        """Go on by one hour in which the air moved by ``moved_km`` (east, north)."""
        for modes in self._modes:
            modes.advance(self._rng, moved_km)


@dataclass(frozen=True)
class Lattice:
    """A regular lattice over a box (W, S, E, N), edges included; rows from south to north."""

    bbox: Bbox
    step: float = LATTICE_DEGREES

    @property
    def lat(self) -> Float:
        """Latitudes of the rows, (rows,)."""
        return self._axis(self.bbox[1], self.bbox[3])

    @property
    def lon(self) -> Float:
        """Longitudes of the columns, (columns,)."""
        return self._axis(self.bbox[0], self.bbox[2])

    def _axis(self, low: float, high: float) -> Float:
        return np.asarray(low + self.step * np.arange(int(np.ceil((high - low) / self.step - 1e-6)) + 1), "float64")

    @property
    def km_per_degree(self) -> tuple[float, float]:
        """Km in a degree north and in a degree east, true at the central latitude."""
        return KM_PER_DEGREE, KM_PER_DEGREE * float(np.cos(np.radians((self.bbox[1] + self.bbox[3]) / 2)))

    @property
    def spacing_km(self) -> tuple[float, float]:
        """Km between rows and between columns."""
        north, east = self.km_per_degree
        return north * self.step, east * self.step

    def distance_km(self, lon: float, lat: float) -> Float:
        """Distance of every node from a point on the plane, (rows, columns)."""
        north, east = self.km_per_degree
        return np.hypot((self.lat[:, None] - lat) * north, (self.lon[None, :] - lon) * east)

    def bilinear(self, lon: Float, lat: Float) -> sparse.csr_array:
        """Matrix (points, rows x columns) that interpolates a raveled lattice field to points; rows sum to 1."""
        rows, columns = len(self.lat), len(self.lon)
        y = np.clip((lat - self.bbox[1]) / self.step, 0, rows - 1)
        x = np.clip((lon - self.bbox[0]) / self.step, 0, columns - 1)
        i, j = np.minimum(y.astype(int), rows - 2), np.minimum(x.astype(int), columns - 2)
        v, u = y - i, x - j
        weights = np.stack([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u], axis=-1)
        nodes = (i * columns + j)[:, None] + np.array([0, 1, columns, columns + 1])
        starts = np.arange(0, 4 * len(y) + 1, 4)
        return sparse.csr_array((weights.ravel(), nodes.ravel(), starts), shape=(len(y), rows * columns))


@dataclass(frozen=True)
class Cities:
    """Made-up cities, largest first; each attribute has shape (cities,)."""

    lon: Float
    lat: Float
    size: Float  # relative population, log-normal, median 1

    @property
    def radius_km(self) -> Float:
        """Standard deviation of the Gaussian footprint, 7 to 22 km."""
        return np.clip(9 * self.size**0.35, 7, 22)

    @property
    def increment(self) -> Float:
        """What the centre adds to ``l``, at most 0.6."""
        return np.minimum(0.17 * self.size**0.5, 0.6)


def found_cities(rng: np.random.Generator, bbox: Bbox, count: int, apart_km: float = 24.0) -> Cities:
    """Place cities on low land, in clusters about 200 km wide, at least ``apart_km`` from each other.

    Raises
    ------
    ConfigError
        When the box holds no land to build on.
    """
    grid = Grid(bbox, 0.1)
    lattice = Lattice(bbox, 0.1)
    lon, lat, height, _ = grid.points()
    land = is_land(lon, lat)
    if not land.any():
        raise ConfigError(f"bbox: expected some land to simulate cities on; found none in {bbox}")
    crowding = RandomField(rng, grid.shape, lattice.spacing_km, [Scale(200, 1.0, 1.0, 0.0)]).value().ravel()
    weight = land * np.exp(0.8 * crowding - height / 600) + 1e-12
    order = np.argsort(rng.exponential(size=len(weight)) / weight)[: int(land.sum())]
    chosen = _thin(np.stack([lon, lat], axis=-1)[order], lattice.km_per_degree, count, apart_km)
    size = np.sort(rng.lognormal(0.0, 0.8, len(chosen)))[::-1]
    shift = rng.uniform(-0.05, 0.05, chosen.shape)
    lon, lat = (chosen + shift).T
    return Cities(lon, lat, size)


def _thin(points: Float, km_per_degree: tuple[float, float], count: int, apart_km: float) -> Float:
    """Take points (n, 2) in turn, leaving out those too near one taken before, until there are ``count``."""
    plane = points * km_per_degree[::-1]
    taken: list[int] = []
    for k in range(len(points)):
        if len(taken) == count:
            break
        if np.all(np.hypot(*(plane[taken] - plane[k]).T) >= apart_km):
            taken.append(k)
    return points[taken]


class Truth:
    """The simulated field: `hours` makes it hour by hour on `lattice`.

    Parameters
    ----------
    rng : source of all randomness.
    bbox : (W, S, E, N), degrees.
    cities : where urban increments go.
    """

    def __init__(self, rng: np.random.Generator, bbox: Bbox, cities: Cities) -> None:
        self.lattice = Lattice(bbox)
        self._fixed = BASE + _terrain_effect(self.lattice) + _urban_effect(self.lattice, cities)
        self._random = RandomField(rng, self._fixed.shape, self.lattice.spacing_km)
        self._heading = rng.uniform(0, 2 * np.pi)

    def hours(self, start: np.datetime64, count: int) -> Iterator[Float]:
        """Yield ``l`` of each hour from ``start`` (UTC), (rows, columns); a Truth can be run through once."""
        for time in start.astype("M8[h]") + np.arange(count):
            calm = self._fixed + season(time) + diurnal(time, self.lattice.lon) + self._random.value()
            yield -np.logaddexp(-calm, -CEILING)
            self._random.advance(self._wind(time))

    def _wind(self, time: np.datetime64) -> Float:
        """Km the air moves in the hour, (east, north): a westerly, and a flow that turns once in four days."""
        angle = self._heading + 2 * np.pi * float(time.astype("M8[h]").astype(int)) / 96
        return np.array([6 + 9 * np.cos(angle), 9 * np.sin(angle)])


def season(time: np.datetime64) -> float:
    """Seasonal part of ``l``, largest in mid-January (northern China)."""
    day = (time.astype("M8[D]") - time.astype("M8[Y]").astype("M8[D]")).astype(int)
    return float(SEASONAL_AMPLITUDE * np.cos(2 * np.pi * (day - 15) / 365.25))


def local_solar_hour(time: np.datetime64, lon: Float) -> Float:
    """Mean solar time at ``lon`` in hours, at the start of the UTC hour ``time``."""
    utc = (time.astype("M8[h]") - time.astype("M8[D]")).astype(int)
    return np.asarray((utc + lon / 15) % 24)


def diurnal(time: np.datetime64, lon: Float) -> Float:
    """Diurnal part of ``l``, shape of ``lon``: least in mid-afternoon, most in the evening and after the rush hour."""
    hour = local_solar_hour(time, lon)
    return 0.12 * np.cos(2 * np.pi * (hour - 1.5) / 24) + 0.11 * np.cos(4 * np.pi * (hour - 8.7) / 24)


def _terrain_effect(lattice: Lattice) -> Float:
    """High ground is cleaner, ground below its surroundings dirtier, (rows, columns)."""
    height = terrain(*np.meshgrid(lattice.lon, lattice.lat)).astype(float) / 1000
    basin = np.clip(_smooth(height, lattice) - height, -1, 1)
    return TERRAIN_SLOPE * np.clip(height, 0, 4) + BASIN_SLOPE * basin


def _smooth(values: Float, lattice: Lattice) -> Float:
    return np.asarray(gaussian_filter(values, [BASIN_KM / d for d in lattice.spacing_km], mode="nearest"))


def _urban_effect(lattice: Lattice, cities: Cities) -> Float:
    """Gaussian footprints of all cities, (rows, columns)."""
    total = np.zeros((len(lattice.lat), len(lattice.lon)))
    for lon, lat, increment, radius in zip(cities.lon, cities.lat, cities.increment, cities.radius_km, strict=True):
        total += increment * np.exp(-((lattice.distance_km(lon, lat) / radius) ** 2) / 2)
    return total
