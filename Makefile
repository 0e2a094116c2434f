# One virtual environment, filled from the lock files, which name all that is needed. PYTHON may name any Python from 3.11 on.
PYTHON ?= python3
VENV := .venv
BENCH := .venv-bench
RUN := $(VENV)/bin
LOCK = $(RUN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
  pyproject.toml

.PHONY: help train test install develop lint format types imports pytest dashboard chaos bench overheads streaming lock clean

help: ## Show what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

train: install ## Install isograd and train the digits example on two worker actors
	$(RUN)/isograd train examples/digits/digits.toml

test: lint types imports pytest ## Install what tests need, then lint, check types and imports, and run the tests

install: $(VENV)/.installed
develop: $(VENV)/.developed

lint: develop
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

format: develop ## Format the code
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

types: develop
	$(RUN)/mypy
	$(RUN)/mypy deploy/grafana/build.py

imports: develop
	$(RUN)/lint-imports

pytest: develop
	$(RUN)/pytest

dashboard: develop ## Write the Grafana dashboard anew, after a change to what builds it
	$(RUN)/python deploy/grafana/build.py > deploy/grafana/isograd.json

chaos: install ## Kill and stop workers for some minutes; compare the digests
	$(RUN)/python benchmarks/chaos.py

bench: $(BENCH)/.installed ## Measure isograd against PyTorch, Ray Train and scikit-learn, and bring the README's table up to date
	$(BENCH)/bin/python benchmarks/compare.py --readme README.md

overheads: $(BENCH)/.installed ## Measure start-up, an empty round, the price of shards, scaling and memory
	$(BENCH)/bin/python benchmarks/overheads.py

streaming: install ## Measure training on 4 GB of Parquet that workers stream within 400 MB, and hold in memory
	$(RUN)/python benchmarks/streaming.py

lock: develop ## Pin anew everything that is installed
	$(LOCK) --group build --output-file requirements.lock
	$(LOCK) --group build --group test --constraint requirements.lock --output-file requirements-dev.lock

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) $(BENCH) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "isograd needs Python 3.11 or newer; name one with make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(RUN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(RUN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.developed: requirements-dev.lock $(VENV)/.installed
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock
	@touch $@

# Apart from the other environment: pandas, which Ray Train brings, makes every import of pyarrow's slower.
$(BENCH)/.installed: pyproject.toml $(VENV)/.installed
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@
