"""One RunConfig: command line > environment ``AQNET_*`` > TOML file > defaults, checked before any work."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import operator
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pipeline.errors import ConfigError
from pipeline.location import located

if TYPE_CHECKING:  # pandas and xarray would make `aqnet --help` slow
    from pipeline.grid import Grid

logger = logging.getLogger("aqnet")

ENV_PREFIX = "AQNET_"
DEFAULT_OUT = Path("out")

#: Variables of this prefix that are no fields of a run: `pipeline.logs`, `pipeline.metrics`, `flows.credentials`.
OTHER_VARIABLES = ("AQNET_LOG_FORMAT", "AQNET_METRICS_FILE", "AQNET_STORE_BLOCK")

#: Hours that the outlook network forecasts.
OUTLOOK_HOURS = 168

Bbox = tuple[float, float, float, float]
Month = tuple[np.datetime64, np.datetime64]


def utc_hour(value: object) -> datetime:
    """Read a date or ISO 8601 time as a whole hour in UTC; a time without a zone is UTC.

    Raises
    ------
    ValueError
        What was expected and found.
    """
    found = value
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError(f"expected a date or ISO time such as 2019-01-31T06:00; found {found!r}") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise ValueError(f"expected a date or ISO time; found {found!r}")
    value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if value != value.replace(minute=0, second=0, microsecond=0):
        raise ValueError(f"expected a whole hour; found {found!s}")
    return value


def _four(value: object) -> object:
    """Let the environment say ``105 32 125 45`` or ``105,32,125,45``, and say plainly when it is not four numbers."""
    if value is None:
        return None
    edges = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(edges, Sequence) or len(edges) != 4:
        raise ValueError(f"expected four numbers, west south east north; found {value!r}")
    return edges


Hour = Annotated[datetime, BeforeValidator(utc_hour)]


class Covariate(BaseModel):
    """A gridded field that a run may use beside its observations, see `pipeline.covariates`.

    Attributes
    ----------
    path : NetCDF file or Zarr folder.
    variable : name of the variable in it.
    kind : ``background`` is another estimate of PM2.5, ``feature`` anything else that PM2.5 may go with.
    transform : what is done to a feature first, so that the cube root of PM2.5 goes more nearly linearly with it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    variable: str
    kind: Literal["background", "feature"] = "feature"
    transform: Literal["none", "log", "cuberoot"] = "none"

    @field_validator("path")
    @classmethod
    def _exists(cls, value: Path) -> Path:
        if not value.exists():
            raise ValueError(f"expected a NetCDF file or Zarr folder that exists; found nothing at {value}")
        return value

    @model_validator(mode="after")
    def _background_is_pm2p5(self) -> Covariate:
        if self.kind == "background" and self.transform == "log":
            raise ValueError("expected a background without transform: its cube root is taken; found transform 'log'")
        return self

    @property
    def how(self) -> str:
        """The transform that is applied."""
        return "cuberoot" if self.kind == "background" else self.transform


def _listed(value: object) -> object:
    """Let the environment say a list as JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as problem:
        raise ValueError(f"expected a list in JSON; found {value!r}: {problem}") from None


class RunConfig(BaseSettings):
    """What one run reads, makes and where; immutable.

    Attributes
    ----------
    source : network of the input, one of `pipeline.sources.names`.
    input : file or folder of observations.
    stations : station list (CSV) where the network keeps coordinates apart.
    start, end : hours to make, UTC, half open ``[start, end)``.
    stream : ``interim`` estimates an hour from what came before it, ``final`` from the two days after it, too.
    outlook_hours : hours from `end` on to forecast from what came before `end`, as stream ``outlook``; 0 is none.
    bbox : (west, south, east, north), degrees; see `pipeline.grid.Grid`.
    origin, size : instead of `bbox`, the lower left corner of the grid, (x, y) in units of `crs`, and the numbers of
        its columns and rows, as a model's domain is given; see `pipeline.grid.Grid.from_corner`.
    resolution : cell size in units of `crs` (degrees for EPSG:4326).
    crs : coordinate reference system of the grid.
    out : folder the products go to.
    store : ``s3://bucket/prefix`` of the cube; None keeps it in `out`. Endpoint and credentials are those of the
        environment, ``AWS_*``.
    domain, version : name and version of the product, in file names.
    title : title of the product; None takes the general one.
    attributes : global attributes of the product that say who stands for it (``creator_email``, ``publisher_name``
        ...), in place of those of `pipeline.cube.layout.GLOBAL_ATTRS`.
    truncated : whether an input file that ends early is an error or kept up to its last whole line.
    weights : checkpoint of the network; None is the one shipped.
    outlook_weights : checkpoint of the outlook network, read where `outlook_hours` is above 0; None is the one shipped.
    covariates : gridded fields that estimates may use; none by default.
    seed : seed of every random draw.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    source: str = "cnemc"
    input: Path
    stations: Path | None = None
    start: Hour
    end: Hour
    stream: Literal["interim", "final"] = "interim"
    outlook_hours: Annotated[int, Field(ge=0, le=OUTLOOK_HOURS, exclude_if=operator.not_)] = 0
    origin: Annotated[tuple[float, float] | None, Field(exclude_if=operator.not_)] = None
    size: Annotated[tuple[int, int] | None, Field(exclude_if=operator.not_)] = None
    bbox: Annotated[Bbox | None, NoDecode, BeforeValidator(_four), Field(validate_default=True)] = None
    resolution: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    crs: str = "EPSG:4326"
    out: Path = DEFAULT_OUT
    store: Annotated[str | None, Field(exclude_if=operator.not_)] = None
    domain: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] = "region"
    version: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)*$")] = Field(
        default_factory=lambda: distribution_version("aqnet-reanalysis")
    )
    title: str | None = None
    attributes: Annotated[dict[str, str], Field(exclude_if=operator.not_)] = {}
    truncated: Literal["error", "keep"] = "error"
    weights: Path | None = None
    outlook_weights: Annotated[Path | None, Field(exclude_if=operator.not_)] = None
    covariates: Annotated[tuple[Covariate, ...], NoDecode, BeforeValidator(_listed)] = ()
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        from pipeline import sources

        if value not in sources.names():
            raise ValueError(f"expected one of {', '.join(sources.names())}; found {value!r}")
        return value

    @field_validator("input", "stations", "weights", "outlook_weights")
    @classmethod
    def _exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.exists():
            raise ValueError(f"expected a file or folder that exists; found nothing at {value}")
        return value

    @field_validator("store", mode="before")
    @classmethod
    def _in_a_bucket(cls, value: object) -> str | None:
        place = located(str(value)) if value else None
        if isinstance(place, Path):
            raise ValueError("expected s3://bucket/prefix; found no such address (a folder goes to `out`)")
        return str(place) if place else None

    @model_validator(mode="after")
    def _ordered_time(self) -> RunConfig:
        if self.end <= self.start:
            raise ValueError(
                f"end: expected an hour after start ({self.start:%Y-%m-%dT%H}); found {self.end:%Y-%m-%dT%H}"
            )
        return self

    @field_validator("bbox")
    @classmethod
    def _some_grid(cls, value: Bbox | None, others: ValidationInfo) -> Bbox | None:
        if value is None and not (others.data.get("origin") or others.data.get("size")):
            raise PydanticCustomError("missing", "Field required")
        return value

    @field_validator("attributes")
    @classmethod
    def _not_what_a_run_finds(cls, value: dict[str, str]) -> dict[str, str]:
        from pipeline.cube.layout import OPERATOR_ATTRS

        if wrong := sorted(set(value) - set(OPERATOR_ATTRS)):
            raise ValueError(f"expected keys among {', '.join(OPERATOR_ATTRS)}; found {wrong[0]!r}")
        return value

    @model_validator(mode="after")
    def _makes_a_grid(self) -> RunConfig:
        self.grid()
        return self

    def grid(self) -> Grid:
        """Grid of the product; ConfigError where bbox, or origin and size, with resolution and crs make none."""
        from pipeline.grid import Grid

        if self.bbox is not None and self.origin is None and self.size is None:
            return Grid(self.bbox, self.resolution, self.crs)
        if self.bbox is None and self.origin is not None and self.size is not None:
            return Grid.from_corner(self.origin, self.size, self.resolution, self.crs)
        given = ", ".join(name for name in ("bbox", "origin", "size") if getattr(self, name) is not None)
        raise ConfigError(f"bbox, origin, size: expected bbox, or both origin and size; found {given}")

    def digest(self) -> str:
        """SHA-256 of everything here that can change a value, the same on every machine.

        Of `input`, weights and covariates only the names count: `pipeline.provenance.lineage` digests what they hold.
        Without covariates, and without an outlook, it is what it was before there were any.
        """
        values = self.model_dump(mode="json", exclude={"out", "store", "covariates", "outlook_weights", "attributes"})
        if self.covariates:
            values["covariates"] = [c.model_dump(mode="json") | {"path": c.path.name} for c in self.covariates]
        files = ("input", "weights", "stations", *(("outlook_weights",) if self.outlook_hours else ()))
        values |= {key: path.name for key in files if (path := getattr(self, key))}
        if self.stations is not None:
            values["stations_digest"] = hashlib.sha256(self.stations.read_bytes()).hexdigest()
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def months(self) -> list[Month]:
        """``[start, end)`` cut at the first of each month: naive UTC hours, half open, in order."""
        return calendar_months(naive(self.start), naive(self.end))


def naive(time: datetime) -> np.datetime64:
    """Turn an aware time into numpy's UTC hour, which has no zone."""
    return np.datetime64(time.astimezone(UTC).replace(tzinfo=None), "h")


def calendar_months(start: np.datetime64, end: np.datetime64) -> list[Month]:
    """Cut ``[start, end)`` into calendar months, half open, in order."""
    first = np.arange(start.astype("M8[M]") + 1, end.astype("M8[M]") + 1).astype("M8[h]")
    edges = [start, *first[first < end], end]
    return list(itertools.pairwise(edges))


def from_sources(toml_path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Put a RunConfig together, overrides first, and check that its folder can be written.

    Parameters
    ----------
    toml_path : TOML file with RunConfig's fields as keys, or None. Paths in it are relative to the working folder.
    overrides : fields from the command line; those that are None were not given.

    Raises
    ------
    ConfigError
        One line that says for each bad field where it was set, what was expected and what was found.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    from_file = {} if toml_path is None else read_toml(toml_path)
    _warn_of_unknown_environment()
    values = {key: value for key, value in from_file.items() if not _in_environment(key)} | given
    try:
        config = RunConfig(**values)
    except ValidationError as error:
        problems = (_problem(details, given, from_file, toml_path) for details in error.errors())
        raise ConfigError("; ".join(problems)) from None
    check_writable(config.out)
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; ConfigError names the file and, from the parser, the line."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: expected a TOML file that can be read; found: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected TOML; found: {error}") from None


def check_writable(folder: Path) -> None:
    """Create ``folder`` and a file in it, then take the file away; ConfigError where that fails.

    Only an attempt tells: mode bits say nothing to root, on a full disk or on a read-only mount.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".aqnet-", suffix=".tmp"):
            pass
    except OSError as error:
        raise ConfigError(f"out: expected a folder that can be written; found {folder}: {error.strerror}") from None


def _in_environment(key: str) -> bool:
    return f"{ENV_PREFIX}{key}".upper() in {name.upper() for name in os.environ}


def _warn_of_unknown_environment() -> None:
    for name in set(os.environ) - set(OTHER_VARIABLES):
        if name.startswith(ENV_PREFIX) and name.removeprefix(ENV_PREFIX).lower() not in RunConfig.model_fields:
            logger.warning("environment variable %s is no field of a run and is ignored", name)


def _problem(
    details: Mapping[str, Any], given: Mapping[str, Any], from_file: Mapping[str, Any], toml_path: Path | None
) -> str:
    """One pydantic error as ``where: expected; found``."""
    if not details["loc"]:
        return str(details["ctx"]["error"])
    field = str(details["loc"][0])
    if field == "covariates" and len(details["loc"]) > 1:
        return _covariate_problem(details)
    if details["type"] == "extra_forbidden":
        return f"{toml_path}: unknown key '{field}'; expected one of {', '.join(RunConfig.model_fields)}"
    if details["type"] == "missing":
        return f"{field}: expected in the TOML file, as {ENV_PREFIX}{field.upper()} or as --{field}; found nothing"
    where = f"--{field}" if field in given else f"{toml_path}: {field}" if field in from_file else field
    if _in_environment(field) and field not in given:
        where = f"{ENV_PREFIX}{field.upper()}"
    if details["type"] == "value_error":
        return f"{where}: {details['ctx']['error']}"
    expected = re.sub(r"^\w+ should", "expected to", details["msg"])
    return f"{where}: {expected}; found {details['input']!r}"


def _covariate_problem(details: Mapping[str, Any]) -> str:
    """One pydantic error in one of the covariates, counted from 1."""
    _, number, *rest = details["loc"]
    where = " ".join(["covariates", str(number + 1), *map(str, rest)])
    if details["type"] == "value_error":
        return f"{where}: {details['ctx']['error']}"
    if details["type"] == "extra_forbidden":
        return f"{where}: unknown key; expected one of {', '.join(Covariate.model_fields)}"
    expected = re.sub(r"^\w+ should", "expected to", details["msg"])
    return f"{where}: {expected}" + ("" if details["type"] == "missing" else f"; found {details['input']!r}")
