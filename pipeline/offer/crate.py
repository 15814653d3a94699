"""Where the products came from as an RO-Crate: each run an action, with what it read, what it ran, what it made.

RO-Crate 1.1 (https://w3id.org/ro/crate/1.1) with the profile Process Run Crate 0.5
(https://w3id.org/ro/wfrun/process/0.5), whose CreateAction, instrument, object and result are PROV's Activity, used
plan, used and generated entities. Inputs are not in the crate: they are told by name and SHA-256.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rocrate.model import ContextEntity
from rocrate.rocrate import ROCrate

from pipeline import output, provenance
from pipeline.atomic import replacing
from pipeline.location import S3
from pipeline.offer.editions import homepage, newest, title_of
from pipeline.offer.inventory import File, Inventory, Product

NAME = "ro-crate-metadata.json"

PROFILE = "https://w3id.org/ro/wfrun/process/0.5"

#: RO-Crate 1.1 has no term for it; the profiles of workflow runs have.
_TERMS = {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}

_FORMATS = {
    ".csv": "text/csv",
    ".tif": "image/tiff",
    ".html": "text/html",
    ".json": "application/json",
    ".nc": "application/netcdf",
    ".png": "image/png",
    ".sha256": "text/plain",
}

Reference = dict[str, str]


def write(inventory: Inventory, citation: str) -> Path:
    """Write ``ro-crate-metadata.json`` of all files but itself and the checksums, which hold its own.

    Returns
    -------
    Path of the file.
    """
    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms.update(_TERMS)
    for name, file in inventory.files.items():
        if name not in (NAME, output.SUMS):
            crate.add_file(dest_path=quote(name), properties=_file(file, inventory))
    cube = _cube(crate, inventory)
    _describe(crate, inventory, citation)
    actions = [_action(crate, inventory, run, made) for run, made in _runs(inventory, cube).items()]
    crate.root_dataset["mentions"] = actions if len(actions) > 1 else actions[0]
    path = inventory.folder / NAME
    with replacing(path) as part:
        part.write_text(json.dumps(crate.metadata.generate(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path


def _add(crate: ROCrate, identifier: str, **properties: Any) -> Reference:
    """Add a contextual entity, once, and return a reference to it."""
    if not crate.get(identifier):
        crate.add(ContextEntity(crate, identifier, {"@type": properties.pop("type"), **properties}))
    return {"@id": identifier}


def _describe(crate: ROCrate, inventory: Inventory, citation: str) -> None:
    """The root: what the folder is, whose, under which licence."""
    attrs = newest(inventory).attrs
    title = title_of(inventory)
    licence, maker = attrs.get("license", ""), _maker(crate, inventory)
    terms = {"name": "Licence of the products", "description": f"The products may be used under {licence}."}
    crate.root_dataset.properties().update(
        {
            "name": title,
            "description": attrs.get("summary", title),
            "datePublished": max(product.attrs.get("date_created", "") for product in inventory.products),
            "license": _add(crate, licence, type="CreativeWork", **terms) if licence else "not stated",
            "author": maker,
            "publisher": maker,
            "creditText": citation,
            "conformsTo": _add(crate, PROFILE, type="CreativeWork", name="Process Run Crate", version="0.5"),
        }
    )


def _maker(crate: ROCrate, inventory: Inventory) -> Reference:
    name, url = newest(inventory).attrs.get("institution", "unknown"), homepage(inventory)
    return _add(crate, url or f"#{quote(name)}", type="Organization", name=name, **({"url": url} if url else {}))


# ---- files ----


def _file(file: File, inventory: Inventory) -> dict[str, Any]:
    """What is said of every file; of a product also what it holds."""
    found = {
        "name": Path(file.name).name,
        "encodingFormat": _FORMATS.get(Path(file.name).suffix, "application/octet-stream"),
        "contentSize": str(file.size),
        "sha256": file.sha256,
    }
    of = [product for product in inventory.products if product.file.name == file.name]
    return found | (_product(of[0]) if of else {})


def _product(product: Product) -> dict[str, str]:
    title = f"{product.attrs['title']}: {product.frequency}, {product.stream}, revision {product.revision}"
    identifier = {"identifier": product.attrs["tracking_id"]} if "tracking_id" in product.attrs else {}
    return {"description": title, "temporalCoverage": "/".join(product.period), **identifier}


def _cube(crate: ROCrate, inventory: Inventory) -> Reference | None:
    """The cube, which lies beside the crate, not in it."""
    if not inventory.cube:
        return None
    attrs, last = inventory.cube.attrs, inventory.cube.revisions[-1]
    path = inventory.cube.path
    where = str(path) if isinstance(path, S3) else f"{path.name} beside this folder"
    text = f"Icechunk repository {where}, tag {last.name}, snapshot {last.snapshot}"
    identifier = str(attrs.get("tracking_id") or f"#cube-{last.snapshot}")
    return _add(crate, identifier, type="CreativeWork", name=f"cube, revision {last.name}", description=text)


# ---- runs ----


def _runs(inventory: Inventory, cube: Reference | None) -> dict[str, list[Reference]]:
    """Products of each run, by the run's identifier."""
    made: dict[str, list[Reference]] = defaultdict(list)
    for product in inventory.products:
        beside = inventory.beside(product, ".png")
        files = [product.file, *([beside] if beside else [])]
        made[str(product.attrs.get("flow_run_id") or "unknown")] += [{"@id": quote(file.name)} for file in files]
    if inventory.cube and cube:
        made[str(inventory.cube.attrs.get("flow_run_id") or "unknown")].append(cube)
    return made


def _action(crate: ROCrate, inventory: Inventory, run: str, made: list[Reference]) -> Reference:
    """One run: its lineage as kept, or what its products say of it."""
    of = [product.attrs for product in inventory.products if product.attrs.get("flow_run_id") == run]
    told = of[0] if of else inventory.cube.attrs if inventory.cube else {}
    attrs = {
        **{name: told[name] for name in provenance.ORIGIN if name in told},
        **provenance.kept(inventory.folder, run),
    }
    began = str(attrs.get("date_created", ""))
    return _add(
        crate,
        f"#run-{quote(run)}",
        type="CreateAction",
        name=f"aqnet run {run}",
        description=f"Hourly PM2.5 from station observations; {len(made)} products here come from it.",
        startTime=_iso(began),
        endTime=_iso(_ended(inventory, run) or began),
        actionStatus="http://schema.org/CompletedActionStatus",
        agent=_maker(crate, inventory),
        instrument=_software(crate, attrs),
        object=[*_read(crate, attrs, inventory, run)],
        result=made,
    )


def _ended(inventory: Inventory, run: str) -> str:
    revisions = inventory.cube.revisions if inventory.cube else ()
    return next((revision.published for revision in revisions if revision.run_id == run), "")


def _iso(text: str) -> str:
    """Time with its offset in digits, as the profile wants it."""
    return text.replace("Z", "+00:00")


def _software(crate: ROCrate, attrs: Mapping[str, Any]) -> Reference:
    """The program at its code revision, and the packages that it ran with."""
    packages = [name.rsplit(" ", 1) for name in str(attrs.get("package_versions", "")).split(", ") if " " in name]
    needs = [
        _add(crate, f"#{name}-{version}", type="SoftwareApplication", name=name, softwareVersion=version)
        for name, version in packages
    ]
    version = str(attrs.get("code_version", "unknown"))
    name = provenance.DISTRIBUTION
    own = {"name": name, "softwareVersion": version, "softwareRequirements": needs}
    return _add(crate, f"#{name}-{quote(version)}", type="SoftwareApplication", **own)


def _read(crate: ROCrate, attrs: Mapping[str, Any], inventory: Inventory, run: str) -> Iterable[Reference]:
    """Inputs with their digests, their list, weights and configuration."""
    for name, digest in sorted(attrs.get("inputs", {}).items()):
        yield _digested(crate, f"input/{quote(name)}", name, digest)
    place = f"{provenance.RUNS}/{run}"
    if f"{place}/{provenance.INPUTS}" in inventory.files:
        yield {"@id": quote(f"{place}/{provenance.INPUTS}")}
    for key, text in (
        ("input_digest", "list of inputs"),
        ("weights_digest", "weights of the network"),
        ("outlook_weights_digest", "weights of the outlook network"),
        ("config_digest", "configuration"),
    ):
        if digest := attrs.get(key):
            yield _digested(crate, text.replace(" ", "-"), text, str(digest))


def _digested(crate: ROCrate, kind: str, name: str, digest: str) -> Reference:
    """Something that is not here, told by name and SHA-256."""
    return _add(crate, f"#{kind}-{digest[:16]}", type="CreativeWork", name=name, sha256=digest)
