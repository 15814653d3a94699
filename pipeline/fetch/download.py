"""One file from an archive into a folder: resumed where it broke off, checked, and in place whole or not at all."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
import os
import re
import shutil
import zipfile
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

import httpx

from pipeline.atomic import replacing
from pipeline.fetch import content
from pipeline.fetch.manifest import Entry, Manifest, is_whole, sha256, sync
from pipeline.fetch.query import Wanted
from pipeline.fetch.web import AbsentError, FetchError, PassingError, Web, shown

logger = logging.getLogger("aqnet")

_MD5 = re.compile(r"[0-9a-f]{32}")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


@dataclass(frozen=True)
class _Offer:
    """What the server says of the file that a part belongs to; kept beside the part."""

    url: str
    etag: str | None
    last_modified: str | None
    size: int | None
    md5: str | None


def download(web: Web, wanted: Wanted, manifest: Manifest) -> Entry | None:
    """Have a file in the manifest's folder, whole and as the server has it now.

    Returns
    -------
    Entry, the former one where the server's file is the one on disk; None where the server has no such file.

    Raises
    ------
    FetchError
        Naming the address, what was expected, what was found and how many tries were made.
    """
    for url in (wanted.url, *wanted.older):
        try:
            return _download(web, url, wanted, manifest)
        except AbsentError:
            continue
    return None


def _download(web: Web, url: str, wanted: Wanted, manifest: Manifest) -> Entry:
    former = manifest.entries.get(wanted.name)
    if former is not None and (former.url != shown(url) or not is_whole(manifest.folder, former)):
        former = None
    target, cut = manifest.folder / wanted.name, set[str]()
    received = web.patiently(url, "a whole file", lambda: _attempt(web, url, _part(target), former, wanted, cut))
    if received is None:
        assert former is not None
        return former
    return _put(received, web.now(), former, wanted.name, manifest)


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _sidecar(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def drop(part: Path) -> None:
    """Remove a part and what is known of it: the part first, so that no part is ever taken for another file's."""
    part.unlink(missing_ok=True)
    _sidecar(part).unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Remove what a kill left: notes on parts that are there no more, and files of another replacement."""
    for note in folder.glob(".*.part.json"):
        if not note.with_suffix("").exists():
            note.unlink()


# ---- one try ----


def _attempt(
    web: Web, url: str, part: Path, former: Entry | None, wanted: Wanted, cut: set[str]
) -> tuple[_Offer, bool] | None:
    """Receive and check the part: what the server says of it, and whether it is cut; None where `former` is current."""
    offer = _receive(web, url, part, former)
    if offer is None:
        return None
    try:
        is_cut = _check(part, offer, wanted, cut)
        if wanted.inner:
            _unpack(part, wanted)
        return offer, is_cut
    except (PassingError, FetchError):
        drop(part)
        raise


def _receive(web: Web, url: str, part: Path, former: Entry | None) -> _Offer | None:
    begun = _begun(part, url)
    headers = _resume(begun, part) if begun else _conditional(former)
    with web.open("GET", url, headers=headers) as response:
        if response.status_code == 304 and former and not begun:
            return None
        if response.status_code == 416 and begun:
            drop(part)
            raise PassingError("a file that is shorter than what we have of it")
        web.check(response, (200, 206))
        offer = _accept(response, url, part, begun)
        _write(web, response, part)
    if offer.size is not None and part.stat().st_size != offer.size:
        raise PassingError(f"{part.stat().st_size} of {offer.size} bytes")
    return offer


def _begun(part: Path, url: str) -> _Offer | None:
    """What is known of a part that can be continued; a part that cannot goes."""
    try:
        offer = _Offer(**json.loads(_sidecar(part).read_text()))
    except (OSError, ValueError, TypeError):
        offer = None
    size = part.stat().st_size if part.exists() else 0
    if offer and offer.url == shown(url) and size and _if_range(offer) and (offer.size is None or size < offer.size):
        return offer
    drop(part)
    return None


def _if_range(offer: _Offer) -> str | None:
    """What proves that the server's file is still the same one; a weak ETag does not (RFC 9110, 13.1.5)."""
    return offer.etag if offer.etag and not offer.etag.startswith("W/") else offer.last_modified


def _resume(begun: _Offer, part: Path) -> dict[str, str]:
    return {"Range": f"bytes={part.stat().st_size}-", "If-Range": str(_if_range(begun))}


def _conditional(former: Entry | None) -> dict[str, str]:
    """Ask for the file only if it is another than the one we have: by its ETag, or else by its time, never by both.

    Servers should pass over the time where there is an ETag (RFC 9110, 13.1.3); some do not.
    """
    if former is None:
        return {}
    if former.etag:
        return {"If-None-Match": former.etag}
    if former.last_modified:
        since = datetime.fromisoformat(former.last_modified).astimezone(UTC)
        return {"If-Modified-Since": format_datetime(since, usegmt=True)}
    return {}


def _accept(response: httpx.Response, url: str, part: Path, begun: _Offer | None) -> _Offer:
    """Make the part ready for the body: as it is for a continuation, else away; note what the server says."""
    if response.status_code == 206:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        same = begun is not None and response.headers.get("etag", begun.etag) == begun.etag
        if begun and same and found and int(found[1]) == part.stat().st_size and begun.size in (None, int(found[2])):
            return replace(begun, size=int(found[2]))
        drop(part)
        raise PassingError(f"another part of the file than asked for ({response.headers.get('content-range')})")
    offer = _offer(response, url)
    drop(part)
    with replacing(_sidecar(part)) as note:
        note.write_text(json.dumps(asdict(offer)))
    return offer


def _offer(response: httpx.Response, url: str) -> _Offer:
    says = response.headers
    size = says.get("content-length", "")
    length = int(size) if size.isdecimal() else None
    return _Offer(shown(url), says.get("etag"), says.get("last-modified"), length, _md5(says))


def _md5(says: httpx.Headers) -> str | None:
    """MD5 of the whole file: Content-MD5 (Azure sends it, too), or the ETag of an S3 object put in one piece."""
    for name in ("content-md5", "x-ms-blob-content-md5"):
        try:
            if says.get(name):
                return base64.b64decode(says[name], validate=True).hex()
        except binascii.Error:
            continue
    encrypted = "kms" in says.get("x-amz-server-side-encryption", "")  # its ETag is then no MD5
    from_s3 = "x-amz-request-id" in says or "x-amzn-requestid" in says
    etag = says.get("etag", "").strip('"')
    return etag if from_s3 and not encrypted and _MD5.fullmatch(etag) else None


def _write(web: Web, response: httpx.Response, part: Path) -> None:
    """Append the body to the part; what came before a break stays, for the next try to continue."""
    end = web.clock() + web.limits.try_seconds
    with part.open("ab", buffering=0) as file:
        for block in response.iter_raw():  # as it comes: a chunk size would hold back what came before a break
            if web.clock() > end:
                raise PassingError(f"no end after {web.limits.try_seconds:g} s")
            file.write(block)


def _check(part: Path, offer: _Offer, wanted: Wanted, cut: set[str]) -> bool:
    """Check digest and content; True for a text that is cut in the archive itself.

    A text that ends in the middle of a line is asked for again: only when the same bytes come twice are they the
    archive's own.
    """
    md5 = _digest(part) if offer.md5 else None
    if md5 != offer.md5:
        raise PassingError(f"MD5 {md5} instead of {offer.md5}")
    name = "a.zip" if wanted.inner else wanted.name
    if found := content.problem(part, name):
        raise PassingError(found)
    if not content.is_cut(part, name):
        return False
    digest = sha256(part)
    if digest not in cut:
        cut.add(digest)
        raise PassingError("a text that ends in the middle of a line")
    logger.warning("%s ends in the middle of a line, twice the same: it is so in the archive", wanted.name)
    return True


def _unpack(part: Path, wanted: Wanted) -> None:
    """Put the wanted member of a zip in the zip's place; its note goes first, so that no try goes on from there."""
    _sidecar(part).unlink(missing_ok=True)
    with zipfile.ZipFile(part) as archive, replacing(part) as unpacked:
        names = [name for name in archive.namelist() if re.fullmatch(wanted.inner, name)]
        if len(names) != 1:
            raise FetchError(f"{shown(wanted.url)}: expected one member like {wanted.inner}; found {len(names)}")
        with archive.open(names[0]) as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target)
    if found := content.problem(part, wanted.name):
        raise PassingError(f"{found} in the zip")


def _digest(part: Path) -> str:
    with part.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


# ---- into place ----


def _put(received: tuple[_Offer, bool], now: datetime, former: Entry | None, name: str, manifest: Manifest) -> Entry:
    """Move the checked part into place and note it; the same bytes as before leave all as it was but the ETag."""
    (offer, is_cut), target = received, manifest.folder / name
    part, digest = _part(target), sha256(_part(target))
    if former is not None and former.sha256 == digest:
        drop(part)
        if former.etag != offer.etag:
            manifest.put(replace(former, etag=offer.etag))
        return manifest.entries[name]
    entry = Entry(
        name, offer.url, iso(now), part.stat().st_size, digest, offer.etag, _time(offer.last_modified),
        "cut" if is_cut else "fetched",
    )  # fmt: skip
    put_in_place(part, entry, manifest)
    _sidecar(part).unlink(missing_ok=True)
    return entry


def put_in_place(part: Path, entry: Entry, manifest: Manifest) -> None:
    """Give a whole part its name, then note it; a kill between leaves a file that the next run fetches again."""
    sync(part)
    manifest.forget(entry.path)
    os.replace(part, manifest.folder / entry.path)
    sync(manifest.folder)
    manifest.put(entry)


def iso(time: datetime) -> str:
    """A time in UTC as the manifest holds it."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(http_date: str | None) -> str | None:
    try:
        return iso(parsedate_to_datetime(http_date)) if http_date else None
    except ValueError:
        return None
