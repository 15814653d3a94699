"""The stages of a run as plain functions.

Ingest, quality control, analyse and score (each a calendar month at a time), validate, publish.
``flows/reanalysis.py`` calls them in this order, under Prefect; `make` does without. `validate` is the release
gate: a run that it stops is held (`pipeline.release.gate`, `pipeline.release.hold`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pandas as pd
import xarray as xr

from pipeline import (
    analyse,
    covariates,
    harmonise,
    logs,
    memory,
    output,
    provenance,
    qc,
    report,
    results,
    score,
    sources,
)
from pipeline.atomic import replacing
from pipeline.config import Month, RunConfig, naive
from pipeline.contract import HOUR
from pipeline.cube import metadata, reader, repository, revisions, store, write
from pipeline.errors import ProductError, telling_storage
from pipeline.grid import Grid
from pipeline.location import Location
from pipeline.offer import publication
from pipeline.pages import maps, pairs, quality_report, run_report, run_summary
from pipeline.products import downloads, outlook_fields
from pipeline.qc.record import Record, record
from pipeline.release import agreement, gate, hold, skill
from pipeline.tracing import runs as trace_runs

logger = logging.getLogger("aqnet")

#: Share of land cells that may lack an estimate while some station reports: a region may be silent for hours.
MAX_MISSING = 0.5

#: What Icechunk says of a commit whose time is not that of the store, or before that of the snapshot it follows.
_CLOCK = ("snapshot timestamp is invalid", "invalid snapshot timestamp ordering")


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
    """One run in progress: what its stages share, and what each of them left to be reported.

    ``reason`` is why the run is made, where somebody said so; ``keys`` are those of `pipeline.results`, by month.
    """

    config: RunConfig
    run_id: str
    grid: Grid
    network: analyse.Network
    inputs: dict[str, str]
    lineage: dict[str, str]
    candidate: write.Candidate
    known: tuple[covariates.Field, ...] = ()
    outlook: analyse.Outlook | None = None
    reason: str | None = None
    keys: dict[Month, str | None] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    quality: list[Record] = field(default_factory=list)
    observed: list[xr.DataArray] = field(default_factory=list)
    invalid: list[gate.Invalid] = field(default_factory=list)
    agreements: list[agreement.Agreement] = field(default_factory=list)
    scores: list[pd.DataFrame] = field(default_factory=list)
    errors: list[pd.DataFrame] = field(default_factory=list)
    kept: list[pairs.Kept] = field(default_factory=list)
    validation: score.Validation | None = None
    checks: list[gate.Check] = field(default_factory=list)
    revision: str | None = None
    published: bool = False
    files: dict[str, Location] = field(default_factory=dict)

    @property
    def hours(self) -> tuple[np.datetime64, np.datetime64]:
        """First hour and the hour after the last, UTC."""
        return naive(self.config.start), naive(self.config.end)

    @property
    def skill(self) -> skill.Skill | None:
        """Skill of the network at withheld stations; None where they are too few."""
        return skill.skill(self.errors)

    @contextmanager
    def measured(self, name: str, period: str) -> Iterator[Stage]:
        """Time a stage and note its peak memory; a stage that fails is not noted."""
        stage, began = Stage(name, period), time.perf_counter()
        memory.reset_peak()
        with logs.about(stage=name, period=period):
            yield stage
            stage.seconds = time.perf_counter() - began
            stage.peak_mib = memory.peak_mib()
            self.stages.append(stage)
            logger.info("%s %s: %d %s in %.1f s", name, period, stage.rows, stage.unit, stage.seconds)


@contextmanager
def begin(
    config: RunConfig, run_id: str, reason: str | None = None, notes: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """Digest the inputs, load the network and begin a candidate of the cube; the cube's lock goes back at the end.

    Parameters
    ----------
    reason : why the run is made ("late data"), for the revision's record; without one it says what the run did.
    notes : global attributes of the cube that whoever starts the run keeps there (`pipeline.schedule`).

    Raises
    ------
    ConfigError, InputError, ProductError
        Before any work, when weights, input or cube do not allow this run.
    StorageError
        At any time, when the disk of the output folder is full, read-only or broken.
    """
    place = output.cube(config.out, config.store)
    with (
        telling_storage(config.out),
        store.told(place),
        _telling_conflicts(config.out),
        _begin(config, run_id, reason, notes, place) as run,
    ):
        yield run


@contextmanager
def _telling_conflicts(out: Path) -> Iterator[None]:
    """Raise a ProductError where the cube refused a commit: another host took the candidate away, or clocks differ."""
    try:
        yield
    except icechunk.ConflictError as error:
        raise ProductError(
            f"{out}: another run is writing this cube, on a host that this one's lock does not reach; nothing was "
            f"published; run it again when that one has ended"
        ) from error
    except icechunk.IcechunkError as error:
        if not any(said in str(error) for said in _CLOCK):
            raise
        raise ProductError(
            f"{out}: the clock of this machine does not agree with the times in the cube or with its store's clock; "
            f"nothing was published; set it (`aqnet doctor`), then run it again"
        ) from error


@contextmanager
def _begin(
    config: RunConfig, run_id: str, reason: str | None, notes: Mapping[str, str] | None, cube: Location
) -> Iterator[Run]:
    """As `begin`, with errors of disk and bucket as they come."""
    store.exists(cube)  # a bucket that refuses is found out before any work
    grid, network = config.grid(), analyse.load(config.weights)
    outlook = analyse.load_outlook(config.outlook_weights) if config.outlook_hours else None
    start, end = naive(config.start), naive(config.end)
    known = covariates.open_all(config.covariates)
    covariates.check(known, grid, start, end)
    inputs = _digests(config)
    lineage = provenance.lineage(config.digest(), inputs, network.digest, run_id)
    title = {"title": config.title} if config.title else {}
    attrs = lineage | sources.find(config.source).state(config.input) | title | covariates.describe(config.covariates)
    attrs |= {**config.attributes, **(notes or {})}
    with write.begin(cube, grid, start, end, attrs, config.outlook_hours, config.out / output.CUBE) as candidate:
        output.keep_location(config.out, cube)
        yield Run(config, run_id, grid, network, inputs, lineage, candidate, known, outlook, reason)


def make(config: RunConfig, run_id: str, reason: str | None = None) -> Run:
    """Make the hours of a configuration and publish them: what the flow does, without Prefect; see `begin`."""
    with begin(config, run_id, reason) as run:
        for month in config.months():
            flagged = quality_control(run, ingest(run, month), month)
            analyse_month(run, flagged, month)
            score_month(run, flagged, month)
        outlook(run)
        validate(run)
        publish(run)
    return run


def ingest(run: Run, month: Month) -> xr.Dataset:
    """Read the observations of a month and of the hours around it that its estimates and flags look at.

    Stations outside the grid count as far as an estimate reaches; one inside is needed.
    """
    first, end = analyse.first_hour(month[0]), analyse.last_used(month[1], run.config.stream)
    with run.measured("ingest", _label(month)) as stage:
        run.keys[month] = results.key(run.config, month)
        known = results.find(run.config.out, run.keys[month])
        cube = _read(run, first, end) if known is None else known
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
        flagged = _flagged(run, cube, month)
        until = flagged.sel(time=slice(None, month[1] - HOUR))
        own = until.sel(time=slice(month[0], None))
        run.quality.append(record(until, month[0]))
        for alarm in quality_report.alarms(run.quality):
            logger.warning("quality control: %s", alarm)
        run.observed.append(qc.valid(own, "pm2p5"))
        run.invalid.append(gate.invalid(own))
        _compare_with_published(run, until.sel(time=slice(analyse.first_used(month[0]), None)))
        stage.rows, stage.unit = cube.sizes["time"] * cube.sizes["station"], "station hours"
    return flagged


def _flagged(run: Run, cube: xr.Dataset, month: Month) -> xr.Dataset:
    """Flags of an earlier run, which was killed, or of this one, kept in case that it is."""
    if results.flagged(cube):
        return cube
    found = qc.flag(cube, analyse.first_used(month[0]))
    results.keep(run.config, month, run.keys.get(month), found)
    return found


def _compare_with_published(run: Run, flagged: xr.Dataset) -> None:
    """Compare observations with the last revision where they have hours in common."""
    found = agreement.compare(qc.valid(flagged, "pm2p5"), run.candidate.published, run.grid)
    if found is not None:
        run.agreements.append(found)


def analyse_month(run: Run, cube: xr.Dataset, month: Month) -> None:
    """Estimate the month on the grid, block by block, into the candidate, and save it there."""
    estimate_month(run, cube, month)
    run.candidate.commit(f"aqnet run {run.run_id}: {_label(month)}")


def estimate_month(run: Run, cube: xr.Dataset, month: Month) -> None:
    """Estimate the month on the grid, block by block, into the candidate's session."""
    start, end = month
    with run.measured("analyse", _label(month)) as stage:
        for block in analyse.fields(cube, run.grid, start, end, run.network, run.known, run.config.stream):
            write.write_block(run.candidate, block)
            stage.rows += block["pm2p5"].size
            _report_progress(run, block["time"].values[-1] + HOUR)
        stage.unit = "cell hours"


def score_month(run: Run, cube: xr.Dataset, month: Month) -> None:
    """Score network and kriging, for the report, at a tenth of the month's stations, withheld from both for that."""
    with run.measured("score", _label(month)) as stage:
        estimators = {"AQ-Net": analyse.estimator(run.network, run.known, run.config.stream)}
        lead = int((month[0] - analyse.first_hour(month[0])) / HOUR)
        stop = lead + int((month[1] - month[0]) / HOUR)
        sample = skill.sample(analyse.observations(cube), estimators, lead, stop, run.config.seed)
        if sample is not None:
            run.scores.append(sample.table().assign(period=_label(month)))
            run.errors.append(sample.errors(cube["station"].values.tolist()))
            limit, drawn = pairs.SAMPLE // len(run.config.months()), run.config.seed
            run.kept.append(pairs.keep(sample.predictions, sample.truth, sample.hours, sample.nearest_km, limit, drawn))
        stage.rows, stage.unit = len(run.scores[-1]) if sample else 0, "methods"


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
    """Pass the candidate through the release gate, or hold it.

    Raises
    ------
    ProductError
        Which checks failed, what they expected and what they found; the former revision stays what readers see.
    """
    with run.measured("validate", _label(run.hours)) as stage:
        steps = gate.Steps(run.grid.land)
        broken = {"inputs": _changed_inputs(run), "metadata": _undescribed(run)}
        broken |= {"axes": _problem(write.check_axes, run.candidate), "contract": _problem(_validate, run, steps)}
        run.checks = gate.judge(_findings(run, broken, steps), _last(run))
        stage.rows, stage.unit = len(run.checks), "checks"
    if gate.failed(run.checks):
        branch = hold_back(run)
        raise gate.stopped(run.candidate.path, run.run_id, run.checks, branch)


def _problem(check: Callable[..., object], *given: object) -> str | None:
    """What a check raises, as text."""
    try:
        check(*given)
    except ProductError as problem:
        return str(problem)
    return None


def _changed_inputs(run: Run) -> str | None:
    changed = sorted({name for name, _ in _digests(run.config).items() ^ run.inputs.items()})
    return f"{len(changed)} changed, such as {changed[0]}; run again" if changed else None


def _undescribed(run: Run) -> str | None:
    run.candidate.commit(f"aqnet run {run.run_id}: metadata")
    return "; ".join(metadata.problems(run.candidate.open())) or None


def _validate(run: Run, steps: gate.Steps) -> None:
    before, after = _beside(run)
    if before is not None:
        steps.see(before)
    run.validation = score.validate(steps.watch(_days(run)), run.grid.land, MAX_MISSING, str(run.candidate.path))
    if after is not None:
        steps.see(after, seam=True)


def _findings(run: Run, broken: dict[str, str | None], steps: gate.Steps) -> gate.Findings:
    return gate.Findings(
        broken=broken,
        observed=run.observed,
        alarms=quality_report.alarms(run.quality),
        invalid=gate.total(run.invalid),
        agreements=run.agreements,
        steps=steps,
        skill=run.skill,
        weights=run.network.digest,
        reason=run.reason,
    )


def _last(run: Run) -> gate.Last:
    """What the last revision says of itself."""
    published = run.candidate.published
    weights = str(published.attrs.get("weights_digest", "")) if published is not None else ""
    return revisions.last(repository.last(run.candidate.repo), weights)


def _record(run: Run) -> dict[str, Any]:
    """What the commit of the revision says of it."""
    counts = revisions.count(run.candidate.group, run.candidate.published)
    found, ahead = run.skill, run.outlook.digest if run.outlook else None
    made = trace_runs.record(run.run_id, run.config, run.inputs, run.network.digest, ahead)
    before = _last(run)  # hours without an observation do not make the next run forget who reported
    return made | {
        "reason": run.reason or revisions.reason(counts, run.candidate.published is None),
        "hours": dict(zip(("start", "end", "last"), map(str, _reach(run)), strict=True)),
        "counts": asdict(counts),
        "scores": score.records(report.scores(run)),
        "skill": asdict(found) if found else None,
        "stations": gate.stations(run.observed) or before.stations,
        "observations": gate.observation_count(run.observed) or before.observations,
        "checks": [asdict(check) for check in run.checks],
        "config_digest": run.config.digest(),
        "lineage": run.lineage,
    }


def publish(run: Run) -> None:
    """Let readers see the candidate, then all that is cut from it and said of it, in one step.

    NetCDF files, maps, lineage, reports, catalogue, download page and checksums change together.
    """
    products = run.config.out / output.PRODUCTS
    with publication.offering(run.config.out, trusted=True) as folder:
        with run.measured("publish", _label(run.hours)) as stage:
            if not run.published:  # the stage may be tried again: readers see the cube already
                run.revision, run.published = write.publish(run.candidate, _record(run)), True
            cube = reader.open_cube(run.candidate.path)
            part = downloads.Part.of(run.config, run.candidate.hours[1] > run.candidate.issue)
            made = downloads.cut(part, cube, folder, run.observed) | _write_papers(run, folder)
            run.files |= {"cube": run.candidate.path, **publication.in_place(made, folder, products)}
            stage.rows, stage.unit = len(run.files), "products"
        run.files |= {"run report": products / output.RUN_REPORT, "report": products / output.REPORT}
        run.files |= publication.entrances(products)
        write_run_report(run, cube, folder / output.RUN_REPORT, products)
        write_report(run, folder / output.REPORT)
    hold.clear(run.config.out)
    results.clear(run.config)


def hold_back(run: Run) -> str:
    """Keep a candidate that the gate stopped, with what helps to judge it; return its branch."""
    branch = write.hold(run.candidate, _record(run))
    with hold.folder(run.config.out, run.run_id) as folder:
        cube = reader.open_cube(run.candidate.path, branch)
        for month, observed in zip(run.config.months(), run.observed, strict=True):
            if downloads.drawable(cube):
                downloads.draw_month(cube, month, observed, folder / f"{month[0].astype('M8[M]')}.png")
        _write_papers(run, folder)
        write_run_report(run, cube, folder / output.RUN_REPORT, folder)
        write_report(run, folder / output.REPORT)
    return branch


def _write_papers(run: Run, folder: Path) -> dict[str, Path]:
    """Write quality report and lineage."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "quality control": _write_quality_report(run, folder / output.QUALITY_REPORT),
        "lineage": provenance.write_lineage(folder / output.LINEAGE, run.lineage, run.inputs),
    }


def _write_quality_report(run: Run, path: Path) -> Path:
    """Write the QC report, one page, on a map of all stations that count."""
    period = "{} to {} UTC".format(*run.hours)
    title = run.config.title or f"Observations of {run.config.source}"
    around = run.grid.surroundings(analyse.EXTRAPOLATED_KM)
    made_up = maps.simulated({"title": title})
    return quality_report.write(run.quality, quality_report.About(title, period, run.run_id, around, made_up), path)


def write_run_report(run: Run, cube: xr.Dataset, path: Path, place: Path) -> Path:
    """Write the page that says whether to trust what the run made; readers will find it in the folder `place`."""
    with run.measured("report", _label(run.hours)) as stage:
        summary = run_summary.from_run(run, cube, run.kept, analyse.EXTRAPOLATED_KM, place)
        run_report.write(summary, path)
        stage.rows, stage.unit = 1, "page"
    return path


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


def _beside(run: Run) -> tuple[xr.Dataset | None, xr.Dataset | None]:
    """The hours of the candidate before the run's first and after its last, where there are any."""
    cube = run.candidate.open()
    hours = (run.hours[0] - HOUR, np.datetime64(run.candidate.hours[1], "h"))
    found = [cube.sel(time=slice(hour, hour)) for hour in hours]
    before, after = (one if one.sizes["time"] else None for one in found)
    return before, after


def _reach(run: Run) -> tuple[np.datetime64, ...]:
    """First hour, hour after the last, and hour after the last of the outlook."""
    return (*run.hours, np.datetime64(run.candidate.hours[1], "h"))


def _report_progress(run: Run, reached: np.datetime64) -> None:
    start, end = run.hours
    done, total = int((reached - start) / HOUR), int((end - start) / HOUR)
    logger.info("analysed %d of %d hours", done, total, extra={"done": done, "total": total})


def _label(period: Month) -> str:
    return f"{period[0]} to {period[1]}"
