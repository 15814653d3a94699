"""What became of a held run, told on the report page that was drawn when the release gate stopped it."""

from __future__ import annotations

import html
import logging
import re

log = logging.getLogger("aqnet")

#: Elements of ``run-report.html`` that change: the revision in the header, and the sentence below the verdict.
_REVISION = re.compile(r'(?<=<dd id="revision">).*?(?=</dd>)', re.DOTALL)
_OUTCOME = re.compile(r'(?<=<strong id="outcome">).*?(?=</strong>)', re.DOTALL)


def told(page: str, revision: str, reason: str, when: str) -> str:
    """Return a held run's report page with the revision that it became, why, and when.

    Parameters
    ----------
    page : HTML from `pipeline.pages.run_report`; one drawn by a version that knew no such places stays as it is.
    revision : its tag.
    reason : why somebody accepted it.
    when : time of publication, UTC, ISO 8601.
    """
    accepted = html.escape(f"Accepted as {revision} on {when[:16].replace('T', ' ')} UTC: {reason}")
    for place, text in ((_REVISION, f"<strong>{html.escape(revision)}</strong> (accepted)"), (_OUTCOME, accepted)):
        if (found := place.search(page)) is None:
            log.warning("the report page has no place to say that the run was accepted as %s", revision)
            continue
        page = page[: found.start()] + text + page[found.end() :]
    return page
