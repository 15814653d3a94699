"""The observation store: what every network reported, merged by declared precedence, traceable to file and line.

`ingest` puts raw files in, `read` gives StationTables back, `trace` says where a value came from, `ledger` which hours
changed. The layout on disk is in ``docs/reference/observation-store.md``, the reasons in ``docs/adr/0008``.
"""
