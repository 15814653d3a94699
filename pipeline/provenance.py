"""Where a product came from: digests of its inputs, weights and configuration, versions, code and run."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pipeline
from pipeline.atomic import replacing

#: Packages whose version can change a value or its encoding.
PACKAGES = ("numpy", "pandas", "scipy", "torch", "xarray", "zarr", "icechunk", "netCDF4", "pyproj", "pvlib")

DISTRIBUTION = "aqnet-reanalysis"


def digest_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(inputs: Mapping[str, str]) -> str:
    """Return input digests as `sha256sum -c` reads them: ``<digest>  <name>`` a line, by name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(inputs.items()))


def lineage(config_digest: str, inputs: Mapping[str, str], weights_digest: str, flow_run_id: str) -> dict[str, str]:
    """Global attributes that tell a product's origin; nothing in them depends on the machine or its folders.

    Parameters
    ----------
    config_digest : SHA-256 of the configuration.
    inputs : name of each input file -> its SHA-256; kept whole by `write_lineage`, here as digest and count.
    weights_digest : SHA-256 of the network's weights.
    flow_run_id : identifier of the run.
    """
    return {
        "config_digest": config_digest,
        "input_digest": hashlib.sha256(manifest(inputs).encode()).hexdigest(),
        "input_count": str(len(inputs)),
        "weights_digest": weights_digest,
        "code_version": code_version(),
        "package_versions": package_versions(),
        "flow_run_id": flow_run_id,
        "date_created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def write_lineage(path: str | Path, attrs: Mapping[str, str], inputs: Mapping[str, str]) -> Path:
    """Write the lineage with the digest of every input as JSON beside the product, in one step."""
    path = Path(path)
    with replacing(path) as part:
        part.write_text(json.dumps({**attrs, "inputs": dict(sorted(inputs.items()))}, indent=2) + "\n")
    return path


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
