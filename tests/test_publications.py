"""Publications as readers see them, and as kills leave them: whole revisions only.

`make test` publishes and kills a few times; `make faults` 100 and 50 times.
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks import publications
from pipeline.cube import write

EVERY = bool(os.environ.get("AQNET_TEST_ALL_FAULTS"))


def test_a_reader_in_a_loop_sees_whole_revisions_only(tmp_path: Path) -> None:
    count = 100 if EVERY else 6
    found = publications.watched(tmp_path / "cube", count)
    assert found.wrong == []
    assert found.publications == count
    assert found.readings > count // 2
    assert found.revisions > 2


def test_killed_publications_leave_the_last_revision_and_the_next_run_completes(tmp_path: Path) -> None:
    found = publications.killed(tmp_path / "cube", 50 if EVERY else 5)
    assert found.wrong == []
    assert found.killed == (50 if EVERY else 5)


def test_a_reading_of_half_a_publication_would_be_seen(tmp_path: Path) -> None:
    """The reader is no rubber stamp: values of two publications in one revision are told."""
    path = tmp_path / "cube"
    publications.publish(path, 1)
    with write.begin(path, publications.GRID, "2019-01-01", "2019-01-04", {}) as candidate:
        write.write_block(candidate, publications.block(1, 2))
        write.publish(candidate, {"reason": "value 2", "value": 2})
    assert publications.read(path) == "r2 (value 2): values ['value 1', 'value 2'], publications [1, 2]"
