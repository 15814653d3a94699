"""Files and folders appear whole or not at all."""

from pathlib import Path

import pytest

from pipeline.atomic import replacing


def write_half_and_fail(target: Path, folder: bool) -> None:
    with replacing(target) as part:
        if folder:
            part.mkdir()
            (part / "half").write_text("half")
        else:
            part.write_text("half")
        raise RuntimeError("stopped")


@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path: Path, folder: bool) -> None:
    target = tmp_path / "product"
    if folder:
        target.mkdir()
        (target / "whole").write_text("old")
    else:
        target.write_text("old")
    with pytest.raises(RuntimeError):
        write_half_and_fail(target, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["product"]
    assert (target / "whole" if folder else target).read_text() == "old"


def test_a_folder_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "product"
    for text in ("old", "new"):
        with replacing(target) as part:
            part.mkdir()
            (part / text).write_text(text)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["product"]


def test_leftovers_of_a_kill_do_not_mix_in(tmp_path: Path) -> None:
    stale = tmp_path / ".product.part"
    stale.mkdir()
    (stale / "stale").write_text("stale")
    with replacing(tmp_path / "product") as part:
        part.mkdir()
    assert list((tmp_path / "product").iterdir()) == []
