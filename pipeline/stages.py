"""The stages of a run as plain functions.

Ingest, quality control, analyse and score (each a calendar month at a time), validate, publish.
``flows/reanalysis.py`` calls them in this order, under Prefect; tests call them without.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from pipeline import (
    analyse,
    covariates,
    evaluate,
    export,
    harmonise,
    maps,
    memory,
    outlook_fields,
    provenance,
    qc,
    quality_report,
    report,
    score,
    sources,
    write,
)
from pipeline.atomic import replacing
from pipeline.config import Month, RunConfig, naive
from pipeline.contract import HOUR
from pipeline.errors import ProductError
from pipeline.grid import Grid
from pipeline.qc.record import Record, record

logger = logging.getLogger("aqnet")

#: Names in the output folder.
CUBE, PRODUCTS, LINEAGE, REPORT = "cube.icechunk", "products", "lineage.json", "run.json"
QUALITY_REPORT = "quality-control.html"

#: Share of land cells that may lack an estimate while some station reports: a region may be silent for hours.
MAX_MISSING = 0.5


@dataclass
class Stage:
    """What one stage took: wall seconds, peak memory of the process in it (MiB), and how many of which `unit`."""

    name: str
    period: str
    seconds: float = 0.0
    peak_mib: float = 0.0
    rows: int = 0
    unit: str = ""


@dataclass
class Run:
    """One run in progress: what its stages share, and what each of them left to be reported."""

    config: RunConfig
    run_id: str
    grid: Grid
    network: analyse.Network
    inputs: dict[str, str]
    lineage: dict[str, str]
    candidate: write.Candidate
    known: tuple[covariates.Field, ...] = ()
    outlook: analyse.Outlook | None = None
    stages: list[Stage] = field(default_factory=list)
    quality: list[Record] = field(default_factory=list)
    observed: list[xr.DataArray] = field(default_factory=list)
    scores: list[pd.DataFrame] = field(default_factory=list)
    validation: score.Validation | None = None
    revision: str | None = None
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def hours(self) -> tuple[np.datetime64, np.datetime64]:
        """First hour and the hour after the last, UTC."""
        return naive(self.config.start), naive(self.config.end)

    @contextmanager
    def measured(self, name: str, period: str) -> Iterator[Stage]:
        """Time a stage and note its peak memory; a stage that fails is not noted."""
        stage, began = Stage(name, period), time.perf_counter()
        memory.reset_peak()
        yield stage
        stage.seconds = time.perf_counter() - began
        stage.peak_mib = memory.peak_mib()
        self.stages.append(stage)
        logger.info("%s %s: %d %s in %.1f s", name, period, stage.rows, stage.unit, stage.seconds)


@contextmanager
def begin(config: RunConfig, run_id: str) -> Iterator[Run]:
    """Digest the inputs, load the network and begin a candidate of the cube; the cube's lock goes back at the end.

    Raises
    ------
    ConfigError, InputError, ProductError
        Before any work, when weights, input or cube do not allow this run.
    """
    grid, network = config.grid(), analyse.load(config.weights)
    outlook = analyse.load_outlook(config.outlook_weights) if config.outlook_hours else None
    start, end = naive(config.start), naive(config.end)
    known = covariates.open_all(config.covariates)
    covariates.check(known, grid, start, end)
    inputs = _digests(config)
    lineage = provenance.lineage(config.digest(), inputs, network.digest, run_id)
    title = {"title": config.title} if config.title else {}
    attrs = lineage | sources.find(config.source).state(config.input) | title | covariates.describe(config.covariates)
    with write.begin(config.out / CUBE, grid, start, end, attrs, config.outlook_hours) as candidate:
        yield Run(config, run_id, grid, network, inputs, lineage, candidate, known, outlook)


def ingest(run: Run, month: Month) -> xr.Dataset:
    """Read the observations of a month and of the hours around it that its estimates and flags look at.

    Stations outside the grid count as far as an estimate reaches; one inside is needed.
    """
    first, end = analyse.first_hour(month[0]), analyse.last_used(month[1], run.config.stream)
    with run.measured("ingest", _label(month)) as stage:
        cube = _read(run, first, end)
        stage.rows, stage.unit = cube.sizes["time"] * cube.sizes["station"], "station hours"
    return cube


def _read(run: Run, first: np.datetime64, end: np.datetime64) -> xr.Dataset:
    config, around = run.config, run.grid.surroundings(analyse.EXTRAPOLATED_KM)
    files = config.source, config.input, config.stations
    tables = sources.read(*files, first, end, run.grid.bbox, config.truncated, around)
    return harmonise.to_cube(tables, first, end)


def quality_control(run: Run, cube: xr.Dataset, month: Month) -> xr.Dataset:
    """Flag suspect values; none is changed or deleted. A network whose clock is wrong is warned of."""
    with run.measured("quality control", _label(month)) as stage:
        flagged = qc.flag(cube, analyse.first_used(month[0]))
        until = flagged.sel(time=slice(None, month[1] - HOUR))
        own = until.sel(time=slice(month[0], None))
        run.quality.append(record(until, month[0]))
        for alarm in quality_report.alarms(run.quality):
            logger.warning("quality control: %s", alarm)
        run.observed.append(qc.valid(own, "pm2p5"))
        stage.rows, stage.unit = cube.sizes["time"] * cube.sizes["station"], "station hours"
    return flagged


def analyse_month(run: Run, cube: xr.Dataset, month: Month) -> None:
    """Estimate the month on the grid, block by block, into the candidate."""
    start, end = month
    with run.measured("analyse", _label(month)) as stage:
        for block in analyse.fields(cube, run.grid, start, end, run.network, run.known, run.config.stream):
            write.write_block(run.candidate, block)
            stage.rows += block["pm2p5"].size
            _report_progress(run, block["time"].values[-1] + HOUR)
        stage.unit = "cell hours"
        run.candidate.commit(f"aqnet run {run.run_id}: {_label(month)}")


def score_month(run: Run, cube: xr.Dataset, month: Month) -> None:
    """Score network and kriging, for the report, at a tenth of the month's stations, withheld from both for that."""
    with run.measured("score", _label(month)) as stage:
        estimators = {"AQ-Net": analyse.estimator(run.network, run.known, run.config.stream)}
        lead = int((month[0] - analyse.first_hour(month[0])) / HOUR)
        stop = lead + int((month[1] - month[0]) / HOUR)
        table = evaluate.withheld(analyse.observations(cube), estimators, lead, stop, seed=run.config.seed)
        if len(table):
            run.scores.append(table.assign(period=_label(month)))
        stage.rows, stage.unit = len(table), "methods"


def outlook(run: Run) -> None:
    """Forecast the hours after the run's last, as far as it asks for that.

    Where the cube holds analysed hours after the issue time it says so and leaves them.
    """
    if run.outlook is None:
        return
    issue, last = (np.datetime64(hour, "h") for hour in (run.candidate.issue, run.candidate.hours[1]))
    if last == issue:
        logger.warning("no outlook: the cube holds analysed hours after %s, the end of this run", issue)
        return
    with run.measured("outlook", _label((issue, last))) as stage:
        stage.rows, stage.unit = _write_outlook(run, run.outlook, issue), "cell hours"
        run.candidate.commit(f"aqnet run {run.run_id}: outlook {_label((issue, last))}")


def _write_outlook(run: Run, network: analyse.Outlook, issue: np.datetime64) -> int:
    """Forecast from a reading of its own, which ends at the issue time; return the cell hours written."""
    cube = _read(run, analyse.outlook_first_hour(issue), issue)
    flagged, written = qc.flag(cube, analyse.outlook_first_used(issue)), 0
    for block in analyse.outlook_fields(flagged, run.grid, run.config.outlook_hours, network):
        write.write_block(run.candidate, block)
        written += block["pm2p5"].size
    said = outlook_fields.attrs(issue, network.name, network.digest)
    write.describe_outlook(run.candidate, said)
    run.lineage.update(said)
    return written


def validate(run: Run) -> None:
    """Check all that the run wrote, and that its inputs are still those that its lineage names.

    Raises
    ------
    ProductError
        Which leaves the candidate unpublished.
    """
    with run.measured("validate", _label(run.hours)) as stage:
        where = str(run.candidate.path)
        if changed := sorted({name for name, _ in _digests(run.config).items() ^ run.inputs.items()}):
            raise ProductError(
                f"{run.config.input}: expected inputs that stay as they are while a run reads them; found"
                f" {len(changed)} changed, such as {changed[0]}; run again"
            )
        run.validation = score.validate(_days(run), run.grid.land, MAX_MISSING, where)
        stage.rows, stage.unit = run.validation.hours, "hours"


def publish(run: Run) -> None:
    """Let readers see the candidate, then cut the downloads from it: NetCDF, maps, lineage, report, checksums."""
    products = run.config.out / PRODUCTS
    with run.measured("publish", _label(run.hours)) as stage:
        run.revision = write.publish(run.candidate)
        cube = write.open_cube(run.candidate.path)
        run.files["cube"] = run.candidate.path
        for observed in run.observed:
            _publish_month(run, cube, observed)
        if run.candidate.hours[1] > run.candidate.issue:
            _publish_outlook(run, cube)
        run.files["quality control"] = _write_quality_report(run, products / QUALITY_REPORT)
        run.files["lineage"] = provenance.write_lineage(products / LINEAGE, run.lineage, run.inputs)
        stage.rows, stage.unit = len(run.files), "products"
    run.files["report"] = write_report(run, products / REPORT)
    run.files["checksums"] = export.sha256sums(products)


def _publish_month(run: Run, cube: xr.Dataset, observed: xr.DataArray) -> None:
    """Cut NetCDF and map of the hours of `observed` from the published cube."""
    first, last = observed["time"].values[[0, -1]]
    domain, version, products = run.config.domain, run.config.version, run.config.out / PRODUCTS
    for path in export.export_netcdf(cube, products, domain, run.config.stream, version, start=first, end=last + HOUR):
        month = str(first.astype("M8[M]"))
        run.files[f"netcdf {month}"] = path
        if min(run.grid.shape) > 1:  # one row or column of cells is no map
            picture = maps.summary_figure(cube.sel(time=slice(first, last)), path.with_suffix(".png"), observed)
            run.files[f"map {month}"] = picture


def _publish_outlook(run: Run, cube: xr.Dataset) -> None:
    """Cut NetCDF and map of the outlook from the published cube."""
    domain, version, products = run.config.domain, run.config.version, run.config.out / PRODUCTS
    files = export.export_netcdf(cube, products, domain, "outlook", version)
    days = [path.stem[-17:].split("-") for path in files]
    run.files |= {f"outlook {first[:4]}-{first[4:6]}": path for (first, _), path in zip(days, files, strict=True)}
    if min(run.grid.shape) > 1:
        picture = files[0].with_name(f"{files[0].stem[:-8]}{days[-1][1]}.png")
        run.files["map outlook"] = _draw_outlook(export.subset(cube, "outlook"), picture)


def _draw_outlook(cube: xr.Dataset, path: Path) -> Path:
    """Map the mean of an outlook and the mean width of its interval."""
    issue, last = outlook_fields.issue_time(cube), (cube["time"].values[-1] + HOUR).astype("M8[h]")
    mean, width = (part.mean("time") for part in (cube["pm2p5"], cube["pm2p5_p95"] - cube["pm2p5_p05"]))
    title = f"PM2.5 outlook issued {issue} UTC: mean of the hours to {last}"
    said = f"Forecast with {cube.attrs['outlook_weights']}; right: mean width of the 90 % interval."
    return maps.draw(mean.assign_attrs(cube.attrs), path, title=title, uncertainty=width, provenance=said)


def _write_quality_report(run: Run, path: Path) -> Path:
    """Write the QC report, one page, on a map of all stations that count."""
    period = "{} to {} UTC".format(*run.hours)
    title = run.config.title or f"Observations of {run.config.source}"
    around = run.grid.surroundings(analyse.EXTRAPOLATED_KM)
    made_up = maps.simulated({"title": title})
    return quality_report.write(run.quality, quality_report.About(title, period, run.run_id, around, made_up), path)


def write_report(run: Run, path: Path) -> Path:
    """Write what the run was and took as JSON, in one step."""
    with replacing(path) as part:
        part.write_text(json.dumps(report.as_dict(run), indent=2) + "\n")
    return path


def _digests(config: RunConfig) -> dict[str, str]:
    """SHA-256 of every file that the run reads, by name."""
    start, end = naive(config.start), naive(config.end)
    first = min(analyse.first_hour(start), analyse.outlook_first_hour(end) if config.outlook_hours else start)
    last = analyse.last_used(end, config.stream)
    found = sources.input_digests(config.source, config.input, first, last, config.stations)
    return found | covariates.digests(config.covariates)


def _days(run: Run) -> Iterator[xr.Dataset]:
    """The run's hours of the candidate, those of its outlook too, a UTC day at a time."""
    start, end = (np.datetime64(hour, "h") for hour in run.candidate.hours)
    cube = run.candidate.open()
    one = np.timedelta64(1, "D")
    for day in np.arange(start.astype("M8[D]"), end, one):
        first, last = max(start, day), min(end, day + one)
        yield cube.sel(time=slice(first, last - HOUR))


def _report_progress(run: Run, reached: np.datetime64) -> None:
    start, end = run.hours
    done, total = int((reached - start) / HOUR), int((end - start) / HOUR)
    logger.info("analysed %d of %d hours", done, total, extra={"done": done, "total": total})


def _label(period: Month) -> str:
    return f"{period[0]} to {period[1]}"
