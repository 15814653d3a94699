"""What a finished run took, found and made: for people (text, Markdown) and for scripts (a plain dictionary)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.location import uri
from pipeline.pages import quality_report
from pipeline.release import gate
from pipeline.score import markdown, records

if TYPE_CHECKING:
    from pipeline.stages import Run


#: Scores for the terminal; run.json has them all.
COLUMNS = ("mae_median", "rmse_mean", "r2_mean", "bias_mean", "crps", "coverage_90", "pairs")


def as_dict(run: Run) -> dict[str, Any]:
    """Everything there is to say about a run, ready for JSON."""
    return {
        "run_id": run.run_id,
        "revision": run.revision,
        "config": run.config.model_dump(mode="json"),
        "lineage": run.lineage,
        "stages": [asdict(stage) for stage in run.stages],
        "quality_control": quality(run).to_dict("index"),
        "clocks": records(clocks(run)),
        "alarms": quality_report.alarms(run.quality) if run.quality else [],
        "validation": asdict(run.validation) if run.validation else None,
        "checks": [asdict(check) for check in run.checks],
        "invalid": gate.total(run.invalid),
        "withheld_stations": records(scores(run)),
        "files": {name: str(path) for name, path in run.files.items()},
    }


def as_markdown(run: Run) -> str:
    """Stages, quality control, validation and files, each under its heading."""
    found = pd.DataFrame([asdict(run.validation)] if run.validation else [])
    files = "".join(f"- {name}: [{path.name}]({uri(path)})\n" for name, path in run.files.items())
    start, end = run.hours
    parts = {
        f"Reanalysis {start} to {end} UTC": f"Revision {run.revision or 'unchanged'}, run {run.run_id}\n",
        "Stages": markdown(stages(run)),
        "Quality control: values flagged": markdown(quality(run)),
        "Clocks of the networks": _clocks(run),
        "Scores at withheld stations (ug m-3)": markdown(scores(run)) if run.scores else "too few stations\n",
        "Validation": markdown(found.set_index("hours")) if run.validation else "not reached\n",
        "Release gate": markdown(checks(run)) if run.checks else "not reached\n",
        "Files": files,
    }
    return "\n".join(f"## {title}\n\n{body}" for title, body in parts.items())


def as_text(run: Run) -> str:
    """Stages, scores and files, for a terminal."""
    revision = run.revision or "nothing changed"
    files = "\n".join(f"  {name:12} {path}" for name, path in run.files.items())
    taken = stages(run).to_string(float_format="{:.1f}".format)
    found = markdown(scores(run)[["method", *COLUMNS]]) if run.scores else "too few stations to score\n"
    alarms = "".join(f"Check: {alarm}\n" for alarm in quality_report.alarms(run.quality)) if run.quality else ""
    return f"{taken}\n\n{found}\n{alarms}Published: {revision}\n{files}"


def stages(run: Run) -> pd.DataFrame:
    """One row a stage and period: seconds, peak memory of the process in it, rows."""
    return pd.DataFrame([asdict(stage) for stage in run.stages]).set_index("name").rename_axis("stage")


def quality(run: Run) -> pd.DataFrame:
    """Count the flags of all months, a row a flag and a column a pollutant."""
    counts = pd.concat([record.counts for record in run.quality])
    return counts.pivot_table(index="flag", columns="pollutant", values="count", aggfunc="sum", sort=False)


def checks(run: Run) -> pd.DataFrame:
    """One row a check of the release gate: expected, found, and whether it passed."""
    verdicts = {True: "passed", False: "FAILED", None: "not judged"}
    rows = [
        {"check": one.name, "expected": one.expected, "found": one.found, "verdict": verdicts[one.passed]}
        for one in run.checks
    ]
    return pd.DataFrame(rows).set_index("check")


def clocks(run: Run) -> pd.DataFrame:
    """Judge the clock of each network by all months; see `pipeline.qc.clocks.judge`."""
    return quality_report.judged_clocks(run.quality) if run.quality else pd.DataFrame()


def _clocks(run: Run) -> str:
    found = clocks(run)
    alarms = "".join(f"- **{alarm}**\n" for alarm in quality_report.alarms(run.quality)) if run.quality else ""
    return alarms + (markdown(found) if len(found) else "no network had a daily cycle to judge\n")


def scores(run: Run) -> pd.DataFrame:
    """Scores at withheld stations, a row a month and method; empty where there were too few stations."""
    return pd.concat(run.scores).reset_index().set_index("period") if run.scores else pd.DataFrame()
