# The same verbs by hand and in CI. `make demo` and `make test` do all set-up themselves.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell scripts/find-python)

.PHONY: help demo test check bench clean

help: ## what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 14

demo: $(VENV)/.installed-lab ## a federation from nothing to a result, on this machine
	@$(BIN)/python -m compileall -q src
	@$(BIN)/flame demo $(DEMO)

test: $(VENV)/.installed-dev ## every test; what needs something that is missing says so
	@$(BIN)/python -m compileall -q src
	@$(BIN)/python -m pytest --durations=10 $(TESTS)

check: $(VENV)/.installed-dev ## format, lint, types, import layers
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed-dev ## measure, and write build/bench.json
	@mkdir -p build
	@$(BIN)/python -m compileall -q src
	@$(BIN)/python benchmarks --out build/bench.json

clean: ## remove what was built (not the environment, not results)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment with the extra in its name. Byte code is compiled here once, whatever the shell's settings say about
# writing it: without it every process of a federation would compile hundreds of modules again at each start.
$(VENV)/.installed-%: pyproject.toml
	@scripts/system-packages $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing FLAME ($*) into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true # some packages ship files that are wrong on purpose
	@$(BIN)/python -c 'from flame.lab.environment import ensure_environment; ensure_environment()'
	@touch $@
	@if [ $* = dev ]; then touch $(VENV)/.installed-lab; fi
