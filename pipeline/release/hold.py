"""What a run that the release gate stopped leaves to be looked at, and how it is published after all.

The candidate is kept in the cube (`write.hold`); report, quality report, lineage, maps lie in ``held/RUN_ID``
of the output folder. Both go with the next publication, and with the next run that is stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import atomic, output
from pipeline.cube import reader, revisions, write
from pipeline.cube.repository import HELD
from pipeline.cube.revisions import Revision
from pipeline.errors import ProductError
from pipeline.location import Location
from pipeline.offer import publication
from pipeline.pages import acceptance
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
    """Remove the papers of held runs, which a publication has overtaken; all of them, or none where it is killed."""
    held, gone = out / output.HELD, out / f".{output.HELD}.old"
    atomic.remove(gone)
    if held.exists():
        held.rename(gone)
        atomic.remove(gone)


def accept(out: Path, cube: Location, run_id: str, reason: str) -> dict[str, Location]:
    """Publish a held candidate all the same, with its downloads; return what was made, by name.

    What a kill left undone is done when it is called again: where one of the newest revisions is the run's, accepted by
    an earlier call, its downloads are cut.

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
    _check(cube, run_id)
    revision = revisions.published(cube, write.accept(cube, run_id, reason, out / output.CUBE))
    part = downloads.Part.recorded(revision.config, revision.hours["last"] != revision.hours["end"])
    products, papers = out / output.PRODUCTS, out / output.HELD / run_id
    with publication.offering(out, trusted=True) as folder:
        made = downloads.cut(part, reader.open_cube(cube), folder) | _papers(papers, folder, revision)
        files: dict[str, Location] = {"cube": cube, **publication.in_place(made, folder, products)}
        files |= {"report": products / output.REPORT} | publication.entrances(products)
        _report(papers, folder, revision, files)
    clear(out)
    return files


def _check(cube: Location, run_id: str) -> None:
    """Raise when what the release gate found of the candidate is nothing that a person may accept."""
    for candidate in revisions.held(cube):
        if candidate.name == f"{HELD}{run_id}" and (final := [check for check in candidate.failed() if check.final]):
            raise ProductError(f"{cube}: run {run_id} cannot be accepted: {final[0]}")


def _papers(held: Path, products: Path, revision: Revision) -> dict[str, Path]:
    """Copy the run's papers to the products, where an earlier call did not; its page says what became of it."""
    files = {}
    for name, title in _PAPERS.items():
        if (held / name).exists():
            text = (held / name).read_text("utf-8")
            if name == output.RUN_REPORT:
                text = acceptance.told(text, revision.name, str(revision.accepted), revision.published)
            with atomic.replacing(products / name) as part:
                part.write_text(text, "utf-8")
            files[title] = products / name
    return files


def _report(held: Path, products: Path, revision: Revision, files: dict[str, Location]) -> None:
    """Write the run's report, held or put there by an earlier call, with what became of it; leave a later run's."""
    target = products / output.REPORT
    found = [json.loads(path.read_text()) for path in (held / output.REPORT, target) if path.exists()]
    if said := next((one for one in found if one.get("run_id") == revision.run_id), None):
        said |= {"revision": revision.name, "accepted": revision.accepted}
        said |= {"files": {name: str(path) for name, path in files.items()}}
        with atomic.replacing(target) as part:
            part.write_text(json.dumps(said, indent=2) + "\n")
