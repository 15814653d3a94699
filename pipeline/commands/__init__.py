"""The commands of `aqnet`, one module a theme; `pipeline.cli` puts them together."""
