# What people do here. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PROFILE ?= default
INVENTORY ?= inventories/lab
PYTHON ?= python3
BIN := .venv/bin
export ANSIBLE_INVENTORY := $(INVENTORY)
export HARNESS_INVENTORY := $(INVENTORY)
# `su` without a dash leaves sbin out, and SSH may bring a locale that is not installed here; Ansible and dpkg stop at either.
export PATH := $(CURDIR)/$(BIN):$(PATH):/usr/sbin:/sbin
export LC_ALL := C.UTF-8

# Debian packages of the control machine: Python, and what the lab's machines are made with.
HOST_PACKAGES := python3 python3-venv openssh-client iproute2 nftables systemd-container mmdebstrap
# Only `make test` needs these.
TEST_PACKAGES := chromium curl g++ procps redis-tools

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

.PHONY: benchmark
benchmark: ## From nothing: tools, lab, models, llama.cpp, deployment, trials, report  [PROFILE=smoke|default|full]
	@PROFILE='$(PROFILE)' scripts/benchmark

.PHONY: test
test: export NOT_LONG := -m "not long"
test: host-packages test-packages lint unit lab-test integration browser ## From nothing: lint, types, unit, lab, integration and browser tests

.PHONY: test-all
test-all: host-packages test-packages lint unit lab-test integration browser ## The same and the long tests (so do the targets by themselves)

.PHONY: lint
lint: .venv/.installed ## Check style and types
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	yamllint --strict .
	ansible-lint --profile production -q

.PHONY: unit
unit: .venv/.installed ## Run the unit tests
	pytest -q -n 3 --dist worksteal tests/unit

.PHONY: lab-test
lab-test: test-models host-packages test-packages ## Run the tests that boot real machines
	pytest -q --durations=10 $(NOT_LONG) tests/lab

.PHONY: integration
integration: test-models host-packages test-packages ## Run the tests that need real llama.cpp processes
	pytest -q --durations=10 $(NOT_LONG) tests/integration

.PHONY: browser
browser: test-models host-packages test-packages ## Run the tests that look at pages in a real browser
	pytest -q tests/browser

.PHONY: test-models
test-models: .venv/.installed
	@harness model ensure --profile smoke

.PHONY: lab
lab: .venv/.installed host-packages ## Boot the lab's machines
	harness lab up --profile $(PROFILE)

.PHONY: models
models: .venv/.installed ## Get or make the models that the profile needs
	harness model ensure --profile $(PROFILE)

.PHONY: deploy
deploy: lab models ## Put everything on the lab's machines
	harness deploy

.PHONY: down
down: .venv/.installed ## Stop the lab and leave nothing of it
	harness lab down

.PHONY: lock
lock: ## Renew the hashed lock files (needs uv)
	for extra in monitor router control dev peer-guidellm peer-litellm; do \
	  uv pip compile pyproject.toml --extra $$extra --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-annotate --no-header -q -o requirements/$$extra.lock; done

.PHONY: clean
clean: ## Remove the virtual environment and what tools left; runs, labs and caches stay
	rm -rf .venv dist build .import_linter_cache .mypy_cache .ruff_cache .pytest_cache .ansible .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

.PHONY: host-packages test-packages
host-packages:
	@scripts/apt-ensure $(HOST_PACKAGES)
test-packages:
	@scripts/apt-ensure $(TEST_PACKAGES)

# Everything is pinned and hashed; the project itself is installed in place.
.venv/.installed: requirements/dev.lock pyproject.toml
	@PYTHON=$(PYTHON) scripts/venv-ensure
