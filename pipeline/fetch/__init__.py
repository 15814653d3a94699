"""Observations from the networks' public archives into a folder that `aqnet run` reads.

`fetch` plans what files answer a question and has them all there, whole; `plan` only tells their addresses;
`read_manifest` tells where each file came from and when.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from pipeline.config import check_writable
from pipeline.errors import ConfigError
from pipeline.fetch import manifest as manifests
from pipeline.fetch.download import download, iso, tidy
from pipeline.fetch.manifest import Entry, Manifest, is_whole, read_manifest
from pipeline.fetch.networks import NETWORKS
from pipeline.fetch.query import Query, Wanted
from pipeline.fetch.web import FetchError, Limits, Web, shown

__all__ = ["NETWORKS", "Entry", "FetchError", "Fetched", "Limits", "Query", "fetch", "plan", "read_manifest"]

logger = logging.getLogger("aqnet")

#: Files of the last days are asked for again, since networks correct what they published.
RECENT = timedelta(days=5)
#: After so many failed files in a row the server is left alone.
MOST_FAILURES = 3
#: Lines of progress in a log.
LINES = 20


@dataclass
class Fetched:
    """What became of the files that were wanted; `names` are names in `folder`.

    Attributes
    ----------
    fetched : new or changed; unchanged : as they were; absent : not in the archive; cut : cut in the archive itself.
    bytes : size of those that were fetched.
    """

    network: str
    folder: str
    fetched: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    bytes: int = 0

    def as_text(self) -> str:
        """Two lines for people."""
        counts = f"{len(self.fetched)} fetched ({self.bytes / 1e6:.1f} MB), {len(self.unchanged)} unchanged"
        gaps = f", {len(self.absent)} not in the archive" if self.absent else ""
        return f"{self.folder}: {counts}{gaps}\nRead it with: aqnet run --source {self.network} --input {self.folder}"


def fetch(query: Query, folder: Path, limits: Limits | None = None, web: Web | None = None) -> Fetched:
    """Have all files that hold the query's hours in `folder`, whole, and noted in its manifest.

    Files that are there already are not fetched again, unless they are of the last days or the archive lists another
    version. What the archive does not have is noted as absent.

    Parameters
    ----------
    query : what to fetch.
    folder : made where there is none; one network (and one of the EEA's datasets) a folder.
    limits : how hard to ask; `web` replaces the client made of them.

    Raises
    ------
    ConfigError
        When the query makes no sense for the network, the folder holds another's files, or it cannot be written.
    FetchError
        When a file cannot be had, or there is nothing at all for the query. What was had stays for the next run.
    """
    _check(query)
    check_writable(folder)
    with _client(limits, web) as client, manifests.opened(folder) as manifest:
        done = _Run(query, client, manifest)
        try:
            done.all(list(NETWORKS[query.network].plan(query, client, done.get)))
        except OSError as error:
            raise FetchError(f"{folder}: expected a folder to write to; found: {error.strerror or error}") from None
        tidy(folder)
        return done.result


def plan(query: Query, limits: Limits | None = None, web: Web | None = None) -> list[str]:
    """Addresses of the files that `fetch` would ask for; lists and metadata are asked for to know them."""
    _check(query)
    with _client(limits, web) as client, tempfile.TemporaryDirectory() as folder:
        with manifests.opened(Path(folder)) as manifest:
            run = _Run(query, client, manifest)
            wanted = list(NETWORKS[query.network].plan(query, client, run.get))
        return [*run.asked, *(shown(each.url) for each in wanted if each.listed)]


@contextmanager
def _client(limits: Limits | None, web: Web | None) -> Iterator[Web]:
    with web or Web(limits or Limits()) as client:
        yield client


def _check(query: Query) -> None:
    """Refuse what would be passed over in silence."""
    if query.network not in NETWORKS:
        raise ConfigError(f"expected one of the networks {', '.join(NETWORKS)}; found {query.network!r}")
    network = NETWORKS[query.network]
    for name in ("locations", "product", "dataset", "api_url"):
        if getattr(query, name) and name not in network.takes:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option}: means nothing for {query.network}; leave it out")
    if query.bbox and not (query.bbox[0] <= query.bbox[2] and query.bbox[1] <= query.bbox[3]):
        raise ConfigError(f"--bbox: expected west <= east and south <= north; found {query.bbox}")
    if query.bbox and "bbox" not in network.takes:
        logger.info("%s: %s; the box is applied when the files are read", query.network, network.note)


class _Run:
    """One run over one folder: what was asked, and what became of it."""

    def __init__(self, query: Query, web: Web, manifest: Manifest) -> None:
        self.query, self.web, self.manifest = query, web, manifest
        self.result = Fetched(query.network, str(manifest.folder))
        self.asked: list[str] = []

    def get(self, wanted: Wanted) -> Path:
        """Have a file that the plan needs to read."""
        self.asked.append(shown(wanted.url))
        self._one(wanted)
        if wanted.name in self.result.absent:
            raise FetchError(f"{shown(wanted.url)}: expected {wanted.name}; found HTTP 404")
        return self.manifest.folder / wanted.name

    def all(self, wanted: list[Wanted]) -> None:
        """Have every file; go on after one that fails, unless the server seems to be gone."""
        self._same_archive(wanted)
        failures, in_a_row = list[FetchError](), 0
        for number, each in enumerate(wanted, 1):
            try:
                self._one(each)
                in_a_row = 0
            except FetchError as error:
                logger.warning("%s", error)
                failures.append(error)
                in_a_row += 1
            if in_a_row >= MOST_FAILURES:
                break
            _progress(number, len(wanted))
        self._judge(wanted, failures, stopped=in_a_row >= MOST_FAILURES)

    def _one(self, wanted: Wanted) -> None:
        former = self.manifest.entries.get(wanted.name)
        if self._settled(wanted, former):
            self.result.unchanged.append(wanted.name)
            return
        entry = download(self.web, wanted, self.manifest) if wanted.listed else None
        if entry is None:
            self._miss(wanted, former)
        elif former is not None and entry.sha256 == former.sha256:
            self.result.unchanged.append(wanted.name)
        else:
            self.result.fetched.append(wanted.name)
            self.result.bytes += entry.bytes
            self.result.cut += [wanted.name] if entry.status == "cut" else []

    def _settled(self, wanted: Wanted, former: Entry | None) -> bool:
        """Tell whether the file on disk needs no question: it is whole, from there, and listed or old enough."""
        if former is not None and not wanted.data and _tail(former.url) > _tail(wanted.url):
            return is_whole(self.manifest.folder, former)  # the site list of a later day
        if former is None or former.url not in map(shown, (wanted.url, *wanted.older)):
            return False
        if wanted.etag is not None:
            asks = _bare(wanted.etag) != _bare(former.etag)
        else:
            asks = wanted.day is None or wanted.day >= (self.web.now() - RECENT).date()
        return not asks and is_whole(self.manifest.folder, former)

    def _miss(self, wanted: Wanted, former: Entry | None) -> None:
        """Note a gap; a file that we have stays, whatever became of it in the archive."""
        if is_whole(self.manifest.folder, former):
            logger.warning("%s is in the archive no more; the one we have stays", wanted.name)
            self.result.unchanged.append(wanted.name)
            return
        self.result.absent.append(wanted.name)
        if former is None or former.status != "absent" or former.url != shown(wanted.url):
            self.manifest.put(Entry(wanted.name, shown(wanted.url), iso(self.web.now()), status="absent"))

    def _same_archive(self, wanted: list[Wanted]) -> None:
        """Refuse a file that another archive (or dataset of the EEA) has put into the folder under the same name."""
        for each in filter(lambda wanted: wanted.data, wanted):
            former = self.manifest.entries.get(each.name)
            if former and former.status != "absent" and _tail(former.url) not in map(_tail, (each.url, *each.older)):
                raise ConfigError(
                    f"{self.manifest.folder / each.name}: expected it to be from {shown(each.url)}; the manifest says"
                    f" {former.url}; take another folder"
                )

    def _judge(self, wanted: list[Wanted], failures: list[FetchError], stopped: bool) -> None:
        if failures:
            rest = f"; stopped after {MOST_FAILURES} in a row" if stopped else ""
            raise FetchError(
                f"{failures[0]} ({len(failures)} of {len(wanted)} files failed{rest}; the others are kept)"
            )
        data, gone = [each for each in wanted if each.data], set(self.result.absent)
        if all(each.name in gone for each in data):
            first = f", the first {shown(data[0].url)}" if data else ""
            raise FetchError(
                f"{self.query.network}: expected files for {self.query.start:%Y-%m-%dT%H} to"
                f" {self.query.end:%Y-%m-%dT%H} UTC; found none of {len(data)}{first}"
            )
        if gone:
            logger.warning("%d files are not in the archive, the first %s", len(gone), self.result.absent[0])


def _bare(etag: str | None) -> str:
    return (etag or "").strip('"')


def _tail(url: str) -> str:
    """The last three parts of an address, which mirrors share."""
    return "/".join(url.rsplit("/", 3)[1:])


def _progress(done: int, total: int) -> None:
    """Say how far we are, in a log some twenty times in all; a bar moves as often."""
    if done * LINES // total != (done - 1) * LINES // total:
        logger.info("fetched %d of %d files", done, total, extra={"done": done, "total": total})
