# One command for each thing a developer does. Needs Linux, make, Python 3.11 or later and a package registry.
# Everything is installed into .venv, again only when pyproject.toml has changed.

VENV := .venv
BIN := $(VENV)/bin
CHAOS_SECONDS ?= 180
SECONDS ?=
SEED ?=
COUNT ?= 300
MODULE ?=
ARGS ?=

# uv installs in seconds what takes pip minutes. Without one on PATH it is put into .venv first.
UV := $(or $(shell command -v uv 2>/dev/null),$(BIN)/uv)
# Compiled at once: the first command need not do it, and where Python may not write bytecode, none ever would.
INSTALL := $(UV) pip install --compile-bytecode --python $(BIN)/python
COMPILE := $(BIN)/python -m compileall -q src
IPROUTE = @command -v ip >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends iproute2; } || true
WRK = @command -v wrk >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends wrk; } || true

# Files that say what is in .venv.
CORE := $(VENV)/.installed-core
DEV := $(VENV)/.installed-dev
ALL := $(VENV)/.installed-all

.DEFAULT_GOAL := help
.PHONY: help install demo smoke test cluster e2e conformance field check rows mutants batching chaos bench ci-extra clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(ALL) ## set up .venv with every extra that runs anywhere (developer tools, TensorFlow, Ray)

demo: $(CORE) ## deploy examples/iris on this machine and ask it something
	@examples/demo.sh

# Bytecode of tests is kept even where Python may write none: each worker would spend a third of a minute compiling them.
test: $(DEV) ## run all tests but the end-to-end ones; choose with ARGS, e.g. make test ARGS="-k rollout"
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not cluster" \
		tests/unit tests/contract tests/integration tests/rows tests/mutation tests/conformance \
		tests/field/test_case.py tests/docs --ignore tests/docs/test_blocks_run.py $(ARGS)

smoke: $(DEV) ## half a minute: lint, the fast unit and contract tests, one real deploy
	$(BIN)/ruff check --quiet
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal \
		-m "not slow and not hypothesis" tests/unit tests/contract tests/e2e/test_smoke.py $(ARGS)

cluster: $(ALL) ## minutes: the engine of a cluster on a real Ray, in network namespaces; needs root and iproute2
	$(BIN)/python -m pytest -m cluster tests/contract/test_engines.py tests/cluster $(ARGS)

e2e: $(DEV) ## run the end-to-end tests: real commands on homes of their own, and the code in the docs
	$(IPROUTE)
	$(BIN)/python -m pytest tests/e2e tests/docs/test_blocks_run.py $(ARGS)

conformance: $(DEV) ## the end-to-end tests and chaos on each engine, a table; ARGS="--engine nodes-3" chooses
	$(BIN)/python tests/conformance/compare.py $(ARGS)

field: $(DEV) ## do to a real Cortex what went wrong for somebody: tests/field
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal tests/field/test_field.py $(ARGS)

check: $(DEV) ## formatting, lint, types, import direction
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

rows: $(DEV) ## look for rows that are proved to be apart and are not; SECONDS=600 stops it earlier, SEED=1 repeats it
	$(BIN)/python tests/rows/campaign.py --keep build/rows \
		$(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

mutants: $(DEV) ## change pure code in COUNT (300) small ways: do unit tests notice? MODULE=planning narrows, SEED=1 repeats
	$(BIN)/python tests/mutation/sample.py --count $(COUNT) \
		$(if $(SEED),--seed $(SEED)) $(if $(MODULE),--module $(MODULE)) $(ARGS)

batching: $(DEV) ## prove 250 models, ask each alone and in batches, write docs/batching.md (downloads 2 GB the first time)
	$(BIN)/python bench/batching/models.py --write $(ARGS)

chaos: $(DEV) ## redeploy, go back, kill under load for CHAOS_SECONDS (180); count what fails; SEED=1 repeats a schedule
	$(BIN)/python bench/chaos.py --seconds $(CHAOS_SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(DEV) ## measure throughput, latency, memory
	$(WRK)
	$(BIN)/python bench/run.py

# A throughput is printed, whatever it is: who has no wrk (exit code 2) goes without.
ci-extra: $(DEV) ## what check and test are too short for: a little chaos, and throughput beside FastAPI
	$(BIN)/python bench/chaos.py --seconds 40 --rate 100 --one-at-a-time $(if $(SEED),--seed $(SEED))
	$(WRK)
	$(BIN)/python bench/throughput.py --seconds 2 --rounds 2 || [ $$? -eq 2 ]

clean: ## remove .venv, caches and build results (first stop what runs from .venv: .venv/bin/cortex down)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(CORE): pyproject.toml | $(BIN)/python $(UV)
	$(INSTALL) --quiet --editable .
	$(COMPILE)
	@touch $@

# TensorFlow is among it, since without it the tests of its backend would be skipped.
$(DEV): pyproject.toml | $(BIN)/python $(UV)
	$(INSTALL) --quiet --editable '.[dev,tensorflow]'
	$(COMPILE)
	@touch $(CORE) $@

$(ALL): pyproject.toml | $(BIN)/python $(UV)
	$(INSTALL) --editable '.[dev,tensorflow,ray]'
	$(COMPILE)
	@touch $(CORE) $(DEV) $@

# Names on PATH are tried by running them: a version manager's shim may stand for nothing.
# `make PYTHON=/path/to/python3` tries that one first.
$(BIN)/python:
	@test "$$(uname -s)" = Linux || { echo "error: Cortex runs on Linux (on Windows: in WSL2)" >&2; exit 1; }
	@for python in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
		found=$$($$python -c 'import sys; sys.version_info >= (3, 11) and print(sys.executable)' 2>/dev/null) || true; \
		if [ -n "$$found" ]; then break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "error: no Python 3.11 or later on PATH; install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	rm -rf $(VENV); \
	if [ "$(UV)" != $(BIN)/uv ]; then \
		$(UV) venv --quiet --python "$$found" $(VENV); \
	elif "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
		"$$found" -m venv $(VENV); \
	else \
		echo "error: $$found cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; \
	fi

$(BIN)/uv: | $(BIN)/python
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
