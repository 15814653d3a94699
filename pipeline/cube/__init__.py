"""The cube of record: its layout, repository, revisions and what changed between them."""
