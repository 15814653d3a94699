"""Where a product came from: digests of its inputs, weights and configuration, versions, code and run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import pipeline
from pipeline import output
from pipeline.atomic import replacing

#: Packages whose version can change a value or its encoding.
PACKAGES = ("numpy", "pandas", "scipy", "torch", "xarray", "zarr", "icechunk", "netCDF4", "pyproj", "pvlib")

DISTRIBUTION = "aqnet-reanalysis"

#: Global attributes that tell where a product came from.
ORIGIN = (
    "config_digest",
    "input_digest",
    "input_count",
    "weights_digest",
    "code_version",
    "package_versions",
    "flow_run_id",
    "date_created",
)

#: Global attributes of provenance that every product has.
ATTRIBUTES = (*ORIGIN, "history", "tracking_id")

#: Names in the folder of products: what its files' runs read and were, one folder a run, and what is in each.
RUNS, INPUTS = "provenance", "inputs.sha256"


def digest_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(inputs: Mapping[str, str]) -> str:
    """Return input digests as `sha256sum -c` reads them: ``<digest>  <name>`` a line, by name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(inputs.items()))


def lineage(config_digest: str, inputs: Mapping[str, str], weights_digest: str, flow_run_id: str) -> dict[str, str]:
    """Global attributes that tell a product's origin; nothing in them depends on the machine or its folders.

    ``tracking_id`` is the cube's at the revision that the run makes; a file that is cut from it has one of its own.

    Parameters
    ----------
    config_digest : SHA-256 of the configuration.
    inputs : name of each input file -> its SHA-256; kept whole by `write_lineage`, here as digest and count.
    weights_digest : SHA-256 of the network's weights.
    flow_run_id : identifier of the run.
    """
    found = {
        "config_digest": config_digest,
        "input_digest": hashlib.sha256(manifest(inputs).encode()).hexdigest(),
        "input_count": str(len(inputs)),
        "weights_digest": weights_digest,
        "code_version": code_version(),
        "package_versions": package_versions(),
        "flow_run_id": flow_run_id,
        "date_created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return found | {"tracking_id": f"urn:uuid:{uuid5(NAMESPACE_URL, json.dumps(found, sort_keys=True))}"}


def write_lineage(path: str | Path, attrs: Mapping[str, str], inputs: Mapping[str, str]) -> Path:
    """Write the lineage with the digest of every input as JSON beside the product, in one step."""
    path = Path(path)
    with replacing(path) as part:
        part.write_text(json.dumps({**attrs, "inputs": dict(sorted(inputs.items()))}, indent=2) + "\n")
    return path


def lacking(attrs: Mapping[str, object]) -> list[str]:
    """Names in `ATTRIBUTES` that global attributes have not, or have empty."""
    return [name for name in ATTRIBUTES if not str(attrs.get(name, "")).strip()]


def keep(folder: Path, runs: Collection[str]) -> None:
    """Keep what the last run read and was beside that of the earlier runs that products still come from.

    ``lineage.json`` and ``run.json`` in the folder are of the last run only. Their copies, and ``inputs.sha256`` (the
    list whose SHA-256 is the products' ``input_digest``), go to ``provenance/<run>/``; runs that nothing here comes
    from any more go.

    Parameters
    ----------
    folder : of products.
    runs : identifiers of the runs that products, or the cube, come from.
    """
    known = set(runs)
    if (folder / output.LINEAGE).is_file():
        lineage = json.loads((folder / output.LINEAGE).read_text())
        known.add(lineage["flow_run_id"])
        if re.fullmatch(r"[\w-]+", lineage["flow_run_id"]):
            _keep_run(folder, folder / RUNS / lineage["flow_run_id"], lineage.get("inputs", {}))
    for found in (folder / RUNS).glob("*"):
        if found.name not in known:
            shutil.rmtree(found)


def _keep_run(folder: Path, place: Path, inputs: Mapping[str, str]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name in (output.LINEAGE, output.REPORT):
        if (folder / name).is_file():
            with replacing(place / name) as part:
                shutil.copyfile(folder / name, part)
    with replacing(place / INPUTS) as part:
        part.write_text(manifest(inputs))


def kept(folder: Path, run_id: str) -> dict[str, Any]:
    """Lineage of a run with the digests of its ``inputs``, as `keep` kept it; empty where it did not."""
    path = folder / RUNS / run_id / output.LINEAGE
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def code_version() -> str:
    """``<distribution version>``, or ``git <commit>`` (with ``-dirty``) when the package lies in its own checkout."""
    root = Path(pipeline.__file__).parents[1]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0:
            return f"git {found.stdout.strip()}"
    return _version(DISTRIBUTION)


def package_versions() -> str:
    """``name version`` of `PACKAGES`, separated by commas."""
    return ", ".join(f"{name} {_version(name)}" for name in PACKAGES)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
