"""What revisions say of themselves, and what differs between two of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import icechunk
import numpy as np
import pytest
import xarray as xr
import zarr
from test_write import GRID, NEW_YEAR, make_block

from benchmarks.revisions import by_days
from pipeline import cli
from pipeline.cube import changes, reader, repository, revisions, write
from pipeline.errors import ProductError
from pipeline.release.gate import Last
from pipeline.release.skill import Skill
from pipeline.tracing import runs as trace_runs

SCORES = [
    {"method": "AQ-Net", "mae_median": 10.0, "rmse_mean": 20.0, "coverage_90": 0.9, "pairs": 100.0, "period": "a"},
    {"method": "AQ-Net", "mae_median": 20.0, "rmse_mean": 30.0, "coverage_90": 0.8, "pairs": 300.0, "period": "b"},
    {
        "method": "log_kriging",
        "mae_median": 12.0,
        "rmse_mean": None,
        "coverage_90": None,
        "pairs": 400.0,
        "period": "a",
    },
]
PASSED = {"name": "silence", "expected": "little", "found": "none", "passed": True, "final": False}
FAILED = {"name": "places", "expected": "order", "found": "chaos", "passed": False, "final": False}


def said(run: str, **more: object) -> dict[str, object]:
    made = {trace_runs.KEY: {"run_id": run, "config": {"source": "table", "start": "2019-01-01"}, "inputs": {}}}
    hours = {"start": "2019-01-01T00", "end": "2019-01-02T00", "last": "2019-01-02T00"}
    return made | {"reason": "trial", "hours": hours, "scores": SCORES, "checks": [PASSED]} | more


def blocks(path: Path, first: int, days: int, run: str, seed: int = 0, **fields: object) -> write.Candidate:
    """A candidate of whole days from an hour on, not yet published."""
    begin, end = (np.datetime64(hour, "h") for hour in (first, first + 24 * days))
    candidate = write.begin(path, GRID, begin, end, {"flow_run_id": run})
    for day in range(days):
        block = make_block(first + 24 * day, seed=seed)
        for name, change in fields.items():
            block[name] = change(block[name]) if callable(change) else xr.full_like(block[name], change)
        write.write_block(candidate, block)
    return candidate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cube.icechunk"


# ---- history ----


def test_a_revision_says_why_by_what_and_how_good(path: Path) -> None:
    write.publish(blocks(path, NEW_YEAR, 1, "one"), said("one", reason="late data"))
    (found,) = revisions.history(path)
    assert (found.name, found.run_id, found.reason, found.held) == ("r1", "one", "late data", False)
    assert found.config["source"] == "table"
    assert found.score("AQ-Net", "mae_median") == pytest.approx(17.5)
    assert found.score("log_kriging", "rmse_mean") is None
    assert found.failed() == []
    assert reader.open_cube(path).attrs["revision_reason"] == "late data"


def test_a_revision_made_before_there_were_records_is_listed_too(path: Path) -> None:
    write.publish(blocks(path, NEW_YEAR, 1, "one"))
    (found,) = revisions.history(path)
    assert (found.name, found.run_id, found.reason, found.scores) == ("r1", "one", "", [])
    assert "| r1 |" in revisions.as_text([found])
    last = revisions.last(repository.last(repository.open_existing(path)), "abc")
    assert last == Last("r1", "abc")


def test_what_the_gate_asks_of_the_last_revision_comes_back_as_it_was(path: Path) -> None:
    skill = Skill(30, 600, 5.0, 5.5, -0.1, 0.02, 0.5, 0.03)
    record = said("one", stations={"n:1": [110.0, 36.5]}, observations=58.0, skill=skill.__dict__)
    write.publish(blocks(path, NEW_YEAR, 1, "one"), json.loads(json.dumps(record)))
    found = revisions.last(repository.last(repository.open_existing(path)), "abc")
    assert found == Last("r1", "abc", {"n:1": (110.0, 36.5)}, 58.0, skill)
    assert revisions.last(None, "") == Last()


def test_reasons_are_what_a_run_did(path: Path) -> None:
    def reason(candidate: write.Candidate) -> str:
        counts = revisions.count(candidate.group, candidate.published)
        why = revisions.reason(counts, candidate.published is None)
        write.publish(candidate)
        return why

    assert reason(blocks(path, NEW_YEAR, 2, "a")) == "first publication, 48 hours"
    assert reason(blocks(path, NEW_YEAR, 2, "b")) == "nothing changed"
    assert reason(blocks(path, NEW_YEAR + 48, 1, "c")) == "24 hours appended"
    assert reason(blocks(path, NEW_YEAR, 1, "d", stream=1)) == "24 interim hours replaced by final"
    assert reason(blocks(path, NEW_YEAR + 24, 1, "e", seed=5)) == "24 hours changed"


def test_a_held_candidate_is_listed_opened_and_published_on_request(path: Path) -> None:
    write.publish(blocks(path, NEW_YEAR, 1, "one"), said("one"))
    branch = write.hold(blocks(path, NEW_YEAR, 1, "two", seed=1), said("two", checks=[PASSED, FAILED]))
    first, held = revisions.history(path)
    assert (held.name, held.held, held.run_id) == (branch, True, "two") == ("held-two", True, "two")
    assert "places: expected order; found chaos" in revisions.as_text([first, held])
    assert (reader.open_cube(path, branch)["revision"].values == 2).all()
    assert (reader.open_cube(path)["revision"].values == 1).all()
    with pytest.raises(ProductError, match=r"expected the run of a held candidate \(two\); found 'three'"):
        write.accept(path, "three", "why")
    assert write.accept(path, "two", "the network moved") == "r2"
    _, accepted = revisions.history(path)
    assert (accepted.name, accepted.accepted, accepted.reason) == ("r2", "the network moved", "trial")
    assert (reader.open_cube(path)["revision"].values == 2).all()
    assert reader.open_cube(path).attrs["revision"] == "r2"


def test_one_candidate_is_held_at_a_time_and_a_publication_ends_that(path: Path) -> None:
    for run in ("one", "two"):
        write.hold(blocks(path, NEW_YEAR, 1, run), said(run))
        assert [revision.name for revision in revisions.history(path)] == [f"held-{run}"]
    write.begin(path, GRID, "2019-01-01", "2019-01-02", {}).close()  # another run begins, and fails
    assert [revision.name for revision in revisions.history(path)] == ["held-two"]
    write.publish(blocks(path, NEW_YEAR, 1, "three"), said("three"))
    assert [revision.name for revision in revisions.history(path)] == ["r1"]
    with pytest.raises(ProductError, match=r"held candidate \(none\); found 'two'"):
        write.accept(path, "two", "too late")


def test_history_and_diff_on_the_command_line(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write.publish(blocks(path, NEW_YEAR, 1, "one"), said("one"))
    write.publish(blocks(path, NEW_YEAR, 1, "two", seed=1), said("two", reason="late data"))
    assert cli.run_command(["history", "--cube", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "| r2 |" in shown
    assert "| late data | 17.50 |" in shown
    assert cli.run_command(["history", "--cube", str(path), "--last", "1"]) == 0
    assert "| r1 |" not in capsys.readouterr().out
    assert cli.run_command(["history", "--cube", str(path), "--json"]) == 0
    assert [entry["config"]["source"] for entry in json.loads(capsys.readouterr().out)] == ["table", "table"]
    picture = tmp_path / "change.png"
    assert cli.run_command(["diff", "r1", "r2", "--cube", str(path), "--json", "--picture", str(picture)]) == 0
    (kind,) = json.loads(capsys.readouterr().out)["changes"]
    assert (kind["kind"], kind["hours"]) == ("interim changed", 24)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert cli.run_command(["diff", "r1", "r9", "--cube", str(path)]) == 1
    assert "no revision 'r9'; published: r1, r2" in capsys.readouterr().err


# ---- many revisions ----


def test_no_run_and_no_reader_lists_the_tags(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write.publish(blocks(path, NEW_YEAR, 1, "one"), said("one"))

    def listed(_: object) -> set[str]:
        raise AssertionError("ten years of hours leave 90,000 tags")

    monkeypatch.setattr(icechunk.Repository, "list_tags", listed)
    for run, tag in (("two", "r2"), ("three", "r3")):
        assert write.publish(blocks(path, NEW_YEAR, 1, run, seed=len(run)), said(run)) == tag
    write.hold(blocks(path, NEW_YEAR, 1, "four", seed=4), said("four"))
    assert write.accept(path, "four", "why not") == "r4"
    assert reader.open_cube(path).attrs["revision"] == "r4"
    assert reader.open_cube(path, "r2").attrs["revision"] == "r2"
    repo = repository.open_existing(path)
    assert (repository.newest(repo), repository.last(repo).name) == (4, "r4")  # type: ignore[union-attr]
    assert [revision.name for revision in revisions.history(path, 2)] == ["r3", "r4"]
    assert next(reader.backwards(path, "r3"))["revision"] == "r3"


def test_the_number_of_a_revision_is_one_more_whatever_became_of_the_tags(path: Path) -> None:
    for number in range(3):
        write.publish(blocks(path, NEW_YEAR, 1, f"run{number}", seed=number), said(f"run{number}"))
    repo = repository.open_existing(path)
    repo.delete_tag("r1")
    assert [entry.name for entry in repository.published(repo)] == ["r2", "r3"]
    assert [entry.name for entry in repository.published(repo, 3)] == ["r2", "r3"]
    assert [entry.name for entry in repository.backwards(repo)] == ["r3", "r2"]
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="r+").attrs["title"] = "somebody else's commit"
    foreign = session.commit("by hand")
    assert repository.newest(repo) == 3
    assert repository.clean(repo).newest == 4
    assert repo.lookup_tag("r4") == foreign
    repo.reset_branch("main", repo.lookup_tag("r2"))  # taken back by hand
    assert (repository.clean(repo).newest, repository.newest(repo)) == (4, 4)
    assert write.publish(blocks(path, NEW_YEAR, 1, "five", seed=5), said("five")) == "r5"
    assert repository.names(repo) == "r2, r3, r4, r5"
    for name in ("r1", "no/tag"):
        with pytest.raises(ProductError, match=f"no revision '{name}'; published: r2, r3, r4, r5"):
            reader.open_cube(path, name)
    repository.drop(repo, ["held-gone"])  # by another host, or by a former try


def test_an_accepted_revision_says_so_in_its_history_whatever_the_reason(path: Path) -> None:
    write.hold(blocks(path, NEW_YEAR, 1, "one"), said("one", reason="as told"))
    assert write.accept(path, "one", "as told") == "r1"  # no attribute but the history differs
    assert write.accept(path, "one", "twice") == "r1"
    (found,) = revisions.history(path)
    assert found.accepted == "as told"
    line = str(reader.open_cube(path).attrs["history"])
    assert re.fullmatch(r"\S+Z aqnet run one: hours \S+ to \S+, revision r1, accepted \S+Z: as told", line)
    assert write.HISTORY_LINE.match(line)["revision"] == "r1"  # type: ignore[index]


# ---- the axes of a cube ----


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda group: group["time"].__setitem__(slice(None), group["time"][:] + 1), "expected the 48 hours from 2019"),
        (lambda group: [array.resize((24, *array.shape[1:])) for _, array in timed(group)], "found 24 hours from 2019"),
        (lambda group: group["lat"].__setitem__(0, 35.9), "cube is on another grid .'lat' differs"),
        (lambda group: group["stream"].__setitem__(30, -1), "expected every analysed hour of main; found 1 of them"),
    ],
)
def test_no_revision_shrinks_or_shifts_the_axes(path: Path, spoil: object, message: str) -> None:
    write.publish(blocks(path, NEW_YEAR, 2, "one"))
    candidate = blocks(path, NEW_YEAR, 2, "two", seed=1)
    spoil(candidate.group)  # type: ignore[operator]
    with pytest.raises(ProductError, match=message):
        write.publish(candidate)
    candidate.close()
    assert reader.open_cube(path).sizes["time"] == 48
    assert (reader.open_cube(path)["revision"].values == 1).all()


def timed(group: object) -> list[tuple[str, object]]:
    return [(n, a) for n, a in group.arrays() if tuple(a.metadata.dimension_names or ())[:1] == ("time",)]  # type: ignore[attr-defined]


# ---- differences ----


def test_a_diff_finds_hours_cells_and_sizes_by_stream(path: Path) -> None:
    land = GRID.land
    write.publish(blocks(path, NEW_YEAR, 2, "one"))
    shift = {name: lambda values: values + np.float32(8) for name in ("pm2p5", "pm2p5_p50", "pm2p5_p95")}
    write.publish(blocks(path, NEW_YEAR + 24, 1, "two", stream=1, **shift))
    write.publish(blocks(path, NEW_YEAR + 48, 1, "three"))
    found = changes.compare(reader.open_cube(path, "r1"), reader.open_cube(path, "r3"), ("r1", "r3"))
    final, new = found.kinds
    assert (final.kind, final.hours, final.cells) == ("interim to final", 24, 24 * land.sum())
    assert (final.appeared, final.vanished, final.differ) == (0, 0, 24 * land.sum())
    assert final.mean == pytest.approx(8, rel=0.01)
    assert final.median == pytest.approx(8, abs=0.5)
    assert final.over == {"1": 1.0, "5": 1.0, "10": 0.0}
    assert (new.kind, new.hours, new.cells, new.appeared) == ("new interim", 24, 0, 24 * land.sum())
    assert found.attributes["revision"] == ("r1", "r3")
    np.testing.assert_allclose(found.field.values[land], 8, rtol=0.02)
    assert np.isnan(found.field.values[~land]).all()
    backwards = changes.compare(reader.open_cube(path, "r3"), reader.open_cube(path, "r1"), ("r3", "r1"))
    assert [kind.kind for kind in backwards.kinds] == ["final to interim", "interim removed"]


def test_a_diff_agrees_with_the_whole_arrays(path: Path) -> None:
    """Oracle: numpy over everything at once."""
    write.publish(blocks(path, NEW_YEAR, 3, "one"))
    write.publish(blocks(path, NEW_YEAR + 24, 2, "two", seed=3))
    one, two = (reader.open_cube(path, tag).load() for tag in ("r1", "r2"))
    (found,) = changes.compare(one, two).kinds
    size = np.abs(one["pm2p5"].values.astype(float) - two["pm2p5"].values)[24:]
    size = size[np.isfinite(size)]
    assert found.cells == size.size
    assert found.mean == pytest.approx(size.mean())
    assert found.median == pytest.approx(np.median(size), abs=0.02)
    assert found.largest == size.max()
    assert found.over == {f"{limit:g}": pytest.approx((size > limit).mean()) for limit in (1, 5, 10)}


def test_revisions_of_different_grids_are_not_compared(path: Path) -> None:
    write.publish(blocks(path, NEW_YEAR, 1, "one"))
    cube = reader.open_cube(path)
    with pytest.raises(ProductError, match="expected revisions on one grid; found 'lat'"):
        changes.compare(cube, cube.assign_coords(lat=cube["lat"] + 1))


def test_nothing_changed_says_so(path: Path, tmp_path: Path) -> None:
    write.publish(blocks(path, NEW_YEAR, 1, "one"))
    found = changes.compare(reader.open_cube(path), reader.open_cube(path), ("r1", "r1"))
    assert "no hour differs" in found.as_text()
    with pytest.raises(ProductError, match="cells to compare in r1 and r1; found 9 x 9 cells, 0 of them"):
        changes.draw(found, tmp_path / "no.png")


def test_each_run_of_a_schedule_leaves_its_record(path: Path) -> None:
    """They have one reason, so that nothing is left to write but the record."""
    for day in range(3):
        candidate = blocks(path, NEW_YEAR + 24 * day, 1, f"run-{day}", seed=day)
        candidate.commit("a day")
        write.publish(candidate, said(f"run-{day}", reason="hourly"))
    found = revisions.history(path)
    assert [(one.run_id, one.reason) for one in found] == [(f"run-{day}", "hourly") for day in range(3)]
    assert all(one.config and one.hours and one.scores for one in found)


def test_a_publication_into_a_long_cube_leaves_no_longer_lists_of_chunks(tmp_path: Path) -> None:
    """Beyond a manifest's days; in one manifest an array, 200 days would leave twice as much as 92."""
    quarter, longer = (row["manifests"] for row in by_days(tmp_path, [92, 200]))
    assert 0 < longer < 1.5 * quarter
