"""Names of what lies in the output folder of a run: who writes, offers, watches or checks it takes them here."""

from __future__ import annotations

#: Folders: the cube of record, the products that are offered, the papers of runs that the release gate stopped.
CUBE, PRODUCTS, HELD = "cube.icechunk", "products", "held"

#: Papers of the last run among the products.
LINEAGE, REPORT = "lineage.json", "run.json"
QUALITY_REPORT, RUN_REPORT = "quality-control.html", "report.html"

#: SHA-256 of every product.
SUMS = "SHA256SUMS"
