"""What a run that the release gate stopped leaves to be looked at, and how it is published after all.

The candidate is kept in the cube (`write.hold`); report, quality report, lineage, maps lie in ``held/RUN_ID``
of the output folder. Both go with the next publication, and with the next run that is stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import atomic, output
from pipeline.cube import write
from pipeline.cube.repository import HELD
from pipeline.cube.revisions import Revision, history
from pipeline.errors import ProductError
from pipeline.location import Location
from pipeline.offer import publication
from pipeline.products import downloads

#: Papers of a run that become products when it is accepted.
_PAPERS = {
    output.QUALITY_REPORT: "quality control",
    output.RUN_REPORT: "run report",
    output.LINEAGE: "lineage",
}


@contextmanager
def folder(out: Path, run_id: str) -> Iterator[Path]:
    """Give a folder for a held run's papers; it appears whole, in place of any held before."""
    target = out / output.HELD / run_id
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(target) as part:
        part.mkdir()
        yield part
    for other in target.parent.iterdir():
        if other != target:
            atomic.remove(other)


def clear(out: Path) -> None:
    """Remove the papers of held runs, which a publication has overtaken."""
    atomic.remove(out / output.HELD)


def accept(out: Path, cube: Location, run_id: str, reason: str) -> dict[str, Location]:
    """Publish a held candidate all the same, with its downloads; return what was made, by name.

    Parameters
    ----------
    out : output folder of the run.
    cube : its cube.
    reason : why it is right; kept in the record of the revision.

    Raises
    ------
    ProductError
        When there is no such candidate, it breaks the contract, or a revision was published since.
    """
    found = _found(cube, run_id)
    if final := [check for check in found.failed() if check.final]:
        raise ProductError(f"{cube}: run {run_id} cannot be accepted: {final[0]}")
    revision = write.accept(cube, run_id, reason, out / output.CUBE)
    part = downloads.Part.recorded(found.config, found.hours["last"] != found.hours["end"])
    products, papers = out / output.PRODUCTS, out / output.HELD / run_id
    with publication.offering(out, trusted=True) as folder:
        made = downloads.cut(part, write.open_cube(cube), folder) | _papers(papers, folder)
        files: dict[str, Location] = {"cube": cube, **publication.in_place(made, folder, products)}
        files |= {"report": products / output.REPORT} | publication.entrances(products)
        _report(papers / output.REPORT, folder / output.REPORT, revision, reason, files)
    clear(out)
    return files


def _found(cube: Location, run_id: str) -> Revision:
    held = {revision.name.removeprefix(HELD): revision for revision in history(cube) if revision.held}
    if run_id not in held:
        known = ", ".join(held) or "none"
        raise ProductError(f"{cube}: expected the run of a held candidate ({known}); found '{run_id}'")
    return held[run_id]


def _papers(held: Path, products: Path) -> dict[str, Path]:
    """Move quality report and lineage to the products."""
    files = {}
    for name, title in _PAPERS.items():
        if (held / name).exists():
            with atomic.replacing(products / name) as part:
                shutil.copyfile(held / name, part)
            files[title] = products / name
    return files


def _report(held: Path, target: Path, revision: str, reason: str, files: dict[str, Location]) -> Path:
    """Write the run's report with what became of it."""
    said = json.loads(held.read_text()) if held.exists() else {}
    said |= {"revision": revision, "accepted": reason, "files": {name: str(path) for name, path in files.items()}}
    with atomic.replacing(target) as part:
        part.write_text(json.dumps(said, indent=2) + "\n")
    return target
