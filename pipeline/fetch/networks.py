"""Where each network keeps its files: one table, and the layouts that need no more than a name a day or hour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from pipeline.errors import ConfigError
from pipeline.fetch import eea, openaq
from pipeline.fetch.query import Get, Query, Wanted
from pipeline.fetch.web import Web

AIRNOW = "https://files.airnowtech.org"
AIRNOW_PRODUCTS = ("HourlyData", "HourlyAQObs")
SITES = "monitoring_site_locations.dat"
CNEMC = "https://quotsoft.net"
PRSA = "https://archive.ics.uci.edu"
PRSA_PATH = "/static/public/501/beijing+multi+site+air+quality+data.zip"
PRSA_NAME = "PRSA2017_Data_20130301-20170228.zip"
PRSA_FIRST, PRSA_LAST = date(2013, 3, 1), date(2017, 2, 28)

#: From the UTC start of an hour to CNEMC's label: Beijing time, end of the hour.
TO_BEIJING_END = timedelta(hours=9)


@dataclass(frozen=True)
class Network:
    """How to find a network's files.

    Attributes
    ----------
    plan : ``(query, web, get)`` -> the files that hold the period, oldest first.
    takes : fields of a Query, beside the period and ``base_url``, that mean something here.
    note : said in the log where a box is given that the archive cannot be cut to.
    """

    plan: Callable[[Query, Web, Get], Iterator[Wanted]]
    takes: frozenset[str]
    note: str = ""


def _airnow(query: Query, _web: Web, _get: Get) -> Iterator[Wanted]:
    """A file an hour of all North America, and the newest site list of the period.

    https://docs.airnowapi.org/docs/HourlyDataFactSheet.pdf
    """
    base, product = f"{(query.base_url or AIRNOW).rstrip('/')}/airnow", query.product or AIRNOW_PRODUCTS[0]
    lists = [f"{base}/{day:%Y/%Y%m%d}/{SITES}" for day in query.days()][::-1]
    yield Wanted(lists[0], SITES, older=tuple(lists[1:]), data=False)
    for hour in query.hours():
        name = f"{product}_{hour:%Y%m%d%H}.dat"
        yield Wanted(f"{base}/{hour:%Y/%Y%m%d}/{name}", name, hour.date())


def _cnemc(query: Query, _web: Web, _get: Get) -> Iterator[Wanted]:
    """A file a Beijing day of all China; https://quotsoft.net/air/."""
    for day in query.days(TO_BEIJING_END, TO_BEIJING_END):
        name = f"china_sites_{day:%Y%m%d}.csv"
        yield Wanted(f"{(query.base_url or CNEMC).rstrip('/')}/air/data/{name}", name, day)


def _prsa(query: Query, _web: Web, _get: Get) -> Iterator[Wanted]:
    """One zip of the whole record, in a zip with CSVs that are none; https://archive.ics.uci.edu/dataset/501."""
    if query.start.date() > PRSA_LAST or query.end.date() < PRSA_FIRST:
        raise ConfigError(f"prsa: expected hours of {PRSA_FIRST} to {PRSA_LAST}; found {query.start} to {query.end}")
    address = f"{(query.base_url or PRSA).rstrip('/')}{PRSA_PATH}"
    yield Wanted(address, PRSA_NAME, PRSA_LAST, inner=r"(.*/)?PRSA\w*_Data_[\d-]+\.zip")


NETWORKS = {
    "airnow": Network(_airnow, frozenset({"product"}), "a file holds all of North America"),
    "cnemc": Network(_cnemc, frozenset(), "a file holds all of China; the station list is not in the archive"),
    "eea": Network(eea.plan, frozenset({"bbox", "dataset", "api_url"})),
    "openaq": Network(openaq.plan, frozenset({"bbox", "locations", "api_url"})),
    "prsa": Network(
        _prsa, frozenset(), "the file holds all twelve stations in Beijing; a station list is not in the archive"
    ),
}
