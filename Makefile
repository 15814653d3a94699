# aqnet-reanalysis: `make run` is all a new machine needs (Python 3.11, make, git).
.DEFAULT_GOAL := help
.PHONY: help run test lint tools faults matrix gate publications crate soak year traces fuzz planted bench storage train evaluate image clean

VENV := .venv
BIN := $(VENV)/bin
# A module is compiled when it is first imported: most of those that pip would compile, for a minute, never are.
PIP := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt
# Without compiled modules on disk, each of the many processes that tests start compiles all of them again.
unexport PYTHONDONTWRITEBYTECODE
ARGS ?=
TESTERS ?= auto

help: ## show the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' Makefile

run: $(VENV)/.installed ## simulate a week, run the pipeline over it, score it against the truth (ARGS="..." for aqnet run)
	@$(BIN)/aqnet run $(ARGS)

test: ## lint and run every test, a file a process (TESTERS=2 sets how many at a time)
	@$(MAKE) --no-print-directory -j 2 tools lint
	@$(BIN)/python -m pytest -q --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev ## ruff, mypy, import-linter
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

faults: $(VENV)/.installed-dev ## kill runs, ingests and fetches at every stage and look at what readers see
	@AQNET_TEST_ALL_FAULTS=1 $(BIN)/python -m pytest -q tests/test_faults.py tests/test_faults_store.py \
	    tests/test_faults_fetch.py tests/test_publications.py tests/test_gate.py tests/test_catalog.py

matrix: $(VENV)/.installed-dev ## disturb runs 200 times, every fault at every stage (ARGS="--runs 20")
	@$(BIN)/python -m benchmarks.matrix $(ARGS)

gate: $(VENV)/.installed-dev ## run the release gate on 20 simulated networks, clean, and with every defect planted (ARGS="...")
	@$(BIN)/python -m benchmarks.gate $(ARGS)

publications: $(VENV)/.installed-dev ## publish 100 times under a reader, kill 50 publications at random moments
	@$(BIN)/python -m benchmarks.publications $(ARGS)

crate: $(VENV)/.installed-dev ## validate an RO-Crate with rocrate-validator, in an environment of its own (.venv-crate)
	@[ -d .venv-crate ] || $(BIN)/python -m venv .venv-crate
	@.venv-crate/bin/python -m pip install -qq --disable-pip-version-check roc-validator==0.13.0 rocrate==0.16.0
	@AQNET_ROCRATE_PYTHON=$(CURDIR)/.venv-crate/bin/python $(BIN)/python -m pytest -q tests/test_crate.py

soak: $(VENV)/.installed-dev ## 48 real hours through a Prefect server on PostgreSQL, beside one batch run (ARGS="...")
	@$(BIN)/python -m benchmarks.soak ../shared/data/cnemc $(ARGS)

year: $(VENV)/.installed-dev ## the real year 2019 to published NetCDF, by 2 and 1 workers and to an S3 store (ARGS="--folder F")
	@$(BIN)/python -m benchmarks.year ../shared/data/cnemc $(ARGS)

traces: $(VENV)/.installed-dev ## trace 1,000 random cell-hours and look up every line they name
	@$(BIN)/python -m benchmarks.trace $(ARGS)

fuzz: $(VENV)/.installed-dev ## feed every reader 100,000 damaged inputs (ARGS="..." for benchmarks.fuzz)
	@$(BIN)/python -m benchmarks.fuzz $(ARGS)

planted: $(VENV)/.installed-dev ## plant 200 faults of each kind in a real week; flag real haze and dust; judge clocks
	@$(BIN)/python -m benchmarks.planted ../shared/data/cnemc $(ARGS)
	@$(BIN)/python -m benchmarks.episodes ../shared/data/cnemc --clocks

bench: $(VENV)/.installed-dev ## measure the speed of the parts; with the CNEMC year at hand, of its ingest too
	@$(BIN)/python -m benchmarks $(ARGS)
	@if [ -d ../shared/data/cnemc ]; then $(BIN)/python -m benchmarks.ingest; \
	else echo "SKIPPED the ingest of a year: no ../shared/data/cnemc"; fi

storage: $(VENV)/.installed-dev ## what the products take beside usual ways to store a month, in bytes and seconds
	@$(BIN)/python -W ignore -m benchmarks.storage $(ARGS)

train: $(VENV)/.installed ## train AQ-Net (ARGS="..." for aqnet train)
	@$(BIN)/aqnet train $(ARGS)

evaluate: $(VENV)/.installed ## score the shipped weights beside the baselines (ARGS="..." for aqnet evaluate)
	@$(BIN)/aqnet evaluate $(ARGS)

image: ## build the container image and run it: no network, read-only root (buildah, docker or podman)
	@docker/build-and-check.sh

clean: ## remove everything that make made, the products in out/ excepted
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Python 3.11 under whichever name it has here.
$(VENV)/bin/python:
	@for python in python3.11 python3 python; do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || continue; \
	    echo "Making $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); \
	    echo "make: '$$python -m venv' failed (Debian: apt-get install python3-venv)" >&2; exit 1; \
	done; \
	echo "make: Python 3.11 is needed; none of python3.11, python3, python is it" >&2; exit 1

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing aqnet-reanalysis into $(VENV) (once; some minutes)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing aqnet-reanalysis and its development tools into $(VENV) (once; some minutes)"
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.installed $@

# Tests open the products with the tools users have. Without those tools they skip, and say so.
tools:
	@for tool in ncdump cdo ncks gdalinfo; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	    && apt-get update -qq >/dev/null 2>&1 \
	    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	        netcdf-bin cdo nco gdal-bin >/dev/null 2>&1; \
	then echo "Installed netcdf-bin, cdo, nco and gdal-bin"; \
	else echo "SKIPPED installing$$missing (not root, no apt-get, or no package source): tests that use them skip"; fi
