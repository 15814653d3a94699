"""Validate an RO-Crate against Process Run Crate 0.5 with rocrate-validator, without a network.

    python -m venv .venv-crate && .venv-crate/bin/pip install roc-validator==0.13.0 rocrate==0.16.0
    .venv-crate/bin/python tests/validate_crate.py OUT/products

The validator would fetch the JSON-LD context of RO-Crate; this takes the one that the rocrate package holds (of
RO-Crate 1.3, whose terms include those of 1.1). Exit code 1: something that is REQUIRED is wrong.
"""

from __future__ import annotations

import json
import sys
from importlib import resources

import requests
from rocrate_validator import models, services
from rocrate_validator.utils.http import HttpRequester

CONTEXT = resources.files("rocrate").joinpath("data/ro-crate.jsonld").read_bytes()


class LocalRequester:
    """Answers for the context, and for nothing else."""

    offline = True

    def get(self, url: str, *_: object, **__: object) -> requests.Response:
        response = requests.Response()
        known = url.startswith("https://w3id.org/ro/crate/")
        response.status_code, response._content = (200, CONTEXT) if known else (404, b"")
        response.headers["Content-Type"] = "application/ld+json"
        response.url = url
        return response

    head = get


def validate(crate: str) -> int:
    HttpRequester.__new__ = lambda *_, **__: LocalRequester()
    settings = services.ValidationSettings(
        rocrate_uri=crate,
        profile_identifier="process-run-crate-0.5",
        requirement_severity=models.Severity.RECOMMENDED,
    )
    issues = services.validate(settings).get_issues()
    for issue in issues:
        print(issue.severity.name, issue.check.identifier, issue.violatingEntity, issue.message)
    required = [issue for issue in issues if issue.severity is models.Severity.REQUIRED]
    print(f"{len(required)} of what is REQUIRED and {len(issues) - len(required)} of what is RECOMMENDED is wrong")
    return bool(required)


if __name__ == "__main__":
    json.loads(CONTEXT)
    sys.exit(validate(sys.argv[1]))
