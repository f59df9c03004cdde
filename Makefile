.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help setup demo docs test test-fast test-slow lint format schema clean

# What is built and what runs stays in the checkout unless you say otherwise.
export GRAFT_HOME ?= $(CURDIR)/.graft
export PYTHON TORCH_INDEX_URL
BIN := .venv/bin
JOBS ?= 2

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## install everything into .venv; does nothing when nothing has changed
	@bash requirements/install.sh

demo: setup ## start a real cluster, run the main job in both modes, stop it (KEEP=1: leave it up, and its page)
ifdef KEEP
	@GRAFT=$(BIN)/graft bash launch/demo.sh
else
	@$(BIN)/graft run cfgs/experiments/demo.json
	@echo "To watch runs in a browser: make demo KEEP=1 leaves the cluster up and names its page (docs/ui.md)"
endif

# Tests with real workers run one after the other in one of JOBS processes, all others beside them (tests/conftest.py).
test: lint ## all checks and all tests but the slow ones
	@$(BIN)/pytest -m 'not slow' -n $(JOBS)

test-fast: setup ## tests for work in progress: no checks, no real workers, nothing that loads models or SGLang
	@$(BIN)/pytest -m 'not (slow or engine or heavy)' --ignore tests/sglang_ext -n $(JOBS)

test-slow: setup ## the slow tests
	@$(BIN)/pytest -m slow

lint: setup ## style, types and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/graft schema --check

docs: setup ## the documentation as a site, in .site/html; warnings are errors
	@bash requirements/docs.sh

format: setup ## format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

schema: setup ## write cfgs/schema from the types
	@$(BIN)/graft schema

# Clusters are stopped through their state files: nothing is ever killed by its name.
clean: ## stop clusters; remove .venv, built models and caches (not runs/)
	@if [[ -x $(BIN)/graft ]]; then \
	    for state in "$(GRAFT_HOME)"/run/*.json; do \
	        [[ -e $$state ]] && $(BIN)/graft down "$$(basename "$$state" .json)"; \
	    done; true; \
	fi
	@rm -rf .venv .graft .site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
