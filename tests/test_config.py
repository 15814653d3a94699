from __future__ import annotations

import hashlib
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config
from pipeline.config import RunConfig, calendar_months, from_sources, utc_hour
from pipeline.errors import ConfigError

HOUR = np.timedelta64(1, "h")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in RunConfig.model_fields:
        monkeypatch.delenv(f"AQNET_{field.upper()}", raising=False)


@pytest.fixture
def fields(tmp_path: Path) -> dict[str, object]:
    """Fields of a run that passes every check."""
    observed = tmp_path / "observed.csv"
    observed.touch()
    return {
        "source": "table",
        "input": observed,
        "start": "2019-01-30",
        "end": "2019-03-02T06:00",
        "bbox": (110.0, 36.0, 113.0, 39.0),
        "out": tmp_path / "out",
    }


def test_precedence_is_command_line_environment_file_default(
    fields: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text("resolution = 0.5\nseed = 5\ndomain = 'file'\n")
    monkeypatch.setenv("AQNET_SEED", "6")
    monkeypatch.setenv("AQNET_DOMAIN", "environment")
    found = from_sources(toml, fields | {"domain": "option"})
    assert (found.resolution, found.seed, found.domain, found.crs) == (0.5, 6, "option", "EPSG:4326")


def test_toml_dates_and_lists_are_read(fields: dict[str, object], tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text("start = 2019-01-01\nend = 2019-01-02T08:00:00+08:00\nbbox = [1, 2, 3, 4]\n")
    rest = {name: fields[name] for name in ("source", "input", "out")}
    found = from_sources(toml, rest)
    assert found.start == datetime(2019, 1, 1, tzinfo=UTC)
    assert found.end == datetime(2019, 1, 2, tzinfo=UTC)
    assert found.bbox == (1, 2, 3, 4)


@pytest.mark.parametrize("text", ["110 36 113 39", "110,36,113,39", "110, 36, 113, 39"])
def test_bbox_of_the_environment(fields: dict[str, object], monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("AQNET_BBOX", text)
    del fields["bbox"]
    assert from_sources(None, fields).bbox == (110, 36, 113, 39)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "nowhere"}, r"--source: expected one of airnow, .*cnemc.*; found 'nowhere'"),
        ({"input": "/does/not/exist"}, r"--input: expected a file .*; found nothing at /does/not/exist"),
        ({"stations": "/nope.csv"}, r"--stations: .* found nothing at /nope.csv"),
        ({"weights": "/nope.safetensors"}, r"--weights: .* found nothing at /nope.safetensors"),
        ({"start": "yesterday"}, r"--start: expected a date or ISO time .*; found 'yesterday'"),
        ({"start": "2019-01-01T00:30"}, r"--start: expected a whole hour; found 2019-01-01T00:30"),
        ({"end": "2019-01-30"}, r"end: expected an hour after start \(2019-01-30T00\); found 2019-01-30T00"),
        ({"bbox": (1.0, 2.0, 3.0)}, r"--bbox: expected four numbers, west south east north; found"),
        ({"bbox": (110.0, 39.0, 113.0, 36.0)}, r"bbox: expected south < north .*; found 39.0 .. 36.0"),
        ({"bbox": (110.0, 36.0, 113.0, 99.0)}, r"bbox: expected .* -90 .. 90"),
        ({"resolution": 0}, r"--resolution: expected to be greater than 0; found 0"),
        ({"resolution": "fine"}, r"--resolution: expected .* number.*; found 'fine'"),
        ({"crs": "EPSG:1"}, r"crs: expected .*; found 'EPSG:1'"),
        ({"truncated": "maybe"}, r"--truncated: expected to be 'error' or 'keep'; found 'maybe'"),
        ({"domain": "../x"}, r"--domain: expected to match pattern .*; found '../x'"),
        ({"seed": -1}, r"--seed: expected .*; found -1"),
        ({"outlook_hours": 169}, r"--outlook_hours: expected to be less than or equal to 168; found 169"),
        ({"outlook_hours": -1}, r"--outlook_hours: expected to be greater than or equal to 0; found -1"),
        ({"outlook_weights": "/nope.safetensors"}, r"--outlook_weights: .* found nothing at /nope.safetensors"),
    ],
)
def test_a_bad_field_is_named_with_expected_and_found(
    fields: dict[str, object], change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        from_sources(None, fields | change)
    assert "\n" not in str(error.value)


def test_every_missing_field_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        from_sources(None, {})
    for name in ("input", "start", "end", "bbox"):
        assert f"{name}: expected in the TOML file, as AQNET_{name.upper()} or as --{name}" in str(error.value)


def test_an_error_says_which_source_the_value_came_from(
    fields: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text("seed = -5\n")
    with pytest.raises(ConfigError, match=rf"{toml}: seed: .* found -5"):
        from_sources(toml, fields)
    monkeypatch.setenv("AQNET_SEED", "many")
    with pytest.raises(ConfigError, match=r"AQNET_SEED: .* found 'many'"):
        from_sources(toml, fields)


def test_unknown_and_broken_toml(fields: dict[str, object], tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text("resolutoin = 0.5\n")
    with pytest.raises(ConfigError, match=rf"{toml}: unknown key 'resolutoin'; expected one of source, .*"):
        from_sources(toml, fields)
    toml.write_text("seed = 1\nbbox = = 2\n")
    with pytest.raises(ConfigError, match=rf"{toml}: expected TOML; found: .*line"):
        from_sources(toml, fields)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/none.toml: expected a TOML file .* No such file"):
        from_sources(tmp_path / "none.toml", fields)


def test_unknown_environment_variable_is_reported(
    fields: dict[str, object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AQNET_RESOLUTOIN", "0.5")
    from_sources(None, fields)
    assert "AQNET_RESOLUTOIN is no field of a run" in caplog.text


def test_out_is_tried_for_real(fields: dict[str, object], tmp_path: Path) -> None:
    from_sources(None, fields)
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").touch()
    for blocked in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(ConfigError, match=rf"out: expected a folder that can be written; found {blocked}: "):
            from_sources(None, fields | {"out": blocked})


def test_digest_follows_what_can_change_a_value(fields: dict[str, object], tmp_path: Path) -> None:
    stations = tmp_path / "stations.csv"
    stations.write_text("code,lon,lat\n1,2,3\n")
    fields["stations"] = stations
    base = from_sources(None, fields).digest()
    assert from_sources(None, fields | {"out": tmp_path / "elsewhere"}).digest() == base
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "observed.csv").touch()
    assert from_sources(None, fields | {"input": moved / "observed.csv"}).digest() == base
    for change in ({"seed": 1}, {"resolution": 0.2}, {"end": "2019-03-03"}, {"truncated": "keep"}):
        assert from_sources(None, fields | change).digest() != base
    stations.write_text("code,lon,lat\n1,2,4\n")
    assert from_sources(None, fields).digest() != base


def test_months_of_a_run(fields: dict[str, object]) -> None:
    found = [(str(first), str(last)) for first, last in from_sources(None, fields).months()]
    assert found == [
        ("2019-01-30T00", "2019-02-01T00"),
        ("2019-02-01T00", "2019-03-01T00"),
        ("2019-03-01T00", "2019-03-02T06"),
    ]


@given(st.integers(-500_000, 800_000), st.integers(1, 20_000))
def test_months_cover_every_hour_once(first: int, count: int) -> None:
    start = np.datetime64(first, "h")
    pieces = calendar_months(start, start + count * HOUR)
    hours = np.concatenate([np.arange(*piece) for piece in pieces])
    np.testing.assert_array_equal(hours, np.arange(start, start + count * HOUR))
    for piece in pieces:
        assert len(np.unique(np.arange(*piece).astype("M8[M]"))) == 1


@given(st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)), st.integers(-12, 14))
def test_utc_hour_is_the_same_instant(time: datetime, zone: int) -> None:
    whole = time.replace(minute=0, second=0, microsecond=0)
    text = f"{whole.isoformat()}{'+' if zone >= 0 else '-'}{abs(zone):02d}:00"
    assert utc_hour(text) == (whole - timedelta(hours=zone)).replace(tzinfo=UTC)
    assert utc_hour(whole) == whole.replace(tzinfo=UTC)
    assert utc_hour(date(whole.year, whole.month, whole.day)).hour == 0


def test_the_example_configuration_names_real_fields() -> None:
    example = Path(__file__).parents[1] / "configs" / "example.toml"
    assert set(config.read_toml(example)) <= set(RunConfig.model_fields)


def test_an_outlook_is_off_by_default_and_counts_in_the_digest_when_on(
    fields: dict[str, object], tmp_path: Path
) -> None:
    weights = tmp_path / "mine.safetensors"
    weights.touch()
    off = from_sources(None, fields)
    assert off.outlook_hours == 0
    assert from_sources(None, fields | {"outlook_weights": weights}).digest() == off.digest()  # none is made
    on = from_sources(None, fields | {"outlook_hours": 24})
    assert on.digest() != off.digest()
    for change in ({"outlook_hours": 25}, {"outlook_hours": 24, "outlook_weights": weights}):
        assert from_sources(None, fields | change).digest() not in (on.digest(), off.digest())


def test_the_digest_without_an_outlook_is_that_of_before_there_was_one(fields: dict[str, object]) -> None:
    found = from_sources(None, fields | {"version": "0.1.0"})
    before = found.model_dump(mode="json", exclude={"out", "covariates"}) | {"input": "observed.csv"}
    assert not {"outlook_hours", "outlook_weights"} & before.keys()
    assert found.digest() == hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()
