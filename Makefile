# Every command that the documents and CI name. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= fraud_model.pkl
COMPOSE ?= docker compose
# Most tests wait for processes and brokers: three at a time take half as long, on two cores. The longest files come first
# (`LONGEST` in tests/conftest.py), not those with the most tests.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder
# Byte code is kept even where the environment says not to: without it each worker compiles all tests, 7 s of a core, and
# each of the hundreds of processes that they start compiles what it imports.
KEEP_BYTECODE := env -u PYTHONDONTWRITEBYTECODE

# The first Python that can run Bytewax 0.21.1 and the pinned packages.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)

.PHONY: help run console kafka test test-fast chaos bench profile check train generate detect screenshots up down logs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "redflag: Python 3.11 or 3.12 is needed (Bytewax 0.21.1 has wheels up to 3.12): install one, or name it with make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(VENV)/.python requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

TREES := dataflow/scoring/trees.py dataflow/scoring/leaf_masks.py

# Compiles the profiles' kernels with Numba (40 s, once) into the cache that every start loads them from. Without this the
# first start would.
$(VENV)/.kernels: $(VENV)/.run $(wildcard dataflow/profiles/*.py) $(TREES) dataflow/kernels.py
	@$(BIN)/python -m dataflow.kernels
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.venv-bench/.peers: $(VENV)/.python benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@

$(MODEL): | $(VENV)/.kernels
	$(BIN)/python -m training.train --out $(MODEL)

# For the tutorial's population it trains a model of its own.
run: $(VENV)/.kernels $(if $(filter tutorial,$(GENERATOR_POPULATION)),,$(MODEL)) ## broker, generator, detector and console, with alerts as they come (DURATION=20 ends it by itself)
	@$(BIN)/python -m dataflow.demo $(if $(DURATION),--duration $(DURATION))

kafka: $(VENV)/.run
	@$(BIN)/python -m tests.support.kafka_server --fetch > /dev/null

test: $(VENV)/.dev $(VENV)/.kernels check ## lint, types, and all tests, on a real Apache Kafka where there is Java 17 and Maven
	$(KEEP_BYTECODE) $(BIN)/python -m pytest $(PARALLEL)

test-fast: $(VENV)/.dev $(VENV)/.kernels ## the tests that need no Kafka, no PostgreSQL and not much time, in about a minute
	$(KEEP_BYTECODE) $(BIN)/python -m pytest -q -m "not slow and not kafka" $(PARALLEL)

chaos: $(VENV)/.dev $(VENV)/.kernels ## kill flow and broker in every way, and look for what is lost, doubled or different (CHAOS="--seed 2")
	@$(BIN)/python -m tests.chaos $(CHAOS)

bench: $(VENV)/.dev $(VENV)/.kernels .venv-bench/.peers ## throughput of ours and of peers, latency, state, on a real Apache Kafka, 45 min (BENCH=, LATENCY=, STATE= options)
	$(BIN)/python -m benchmarks.throughput $(BENCH)
	$(BIN)/python -m benchmarks.latency $(LATENCY)
	$(BIN)/python -m benchmarks.state $(STATE)

profile: $(VENV)/.dev $(VENV)/.kernels $(MODEL) ## where a transaction's microseconds go, step by step
	$(BIN)/python -m benchmarks.flow_profile --model $(MODEL) $(PROFILE)

check: $(VENV)/.dev ## lint and types only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

train: $(VENV)/.kernels ## train a model; one that is there stays, but for TRAIN="--force" (MODEL=other.pkl, TRAIN="--history FILE")
	$(BIN)/python -m training.train --out $(MODEL) $(TRAIN)

generate: $(VENV)/.run ## generate transactions to KAFKA_BROKERS
	$(BIN)/python -m bytewax.run dataflow.generate:flow

detect: $(VENV)/.kernels $(MODEL) ## decide what is on KAFKA_BROKERS, with recovery on, and metrics, /ready and /live on METRICS_ADDRESS (127.0.0.1:3030)
	$(BIN)/python -m dataflow.detect

console: $(VENV)/.run ## the analysts' console of what is on KAFKA_BROKERS, at CONSOLE_ADDRESS (http://127.0.0.1:3080)
	@$(BIN)/python -m console

screenshots: $(VENV)/.dev $(VENV)/.kernels $(MODEL) ## take the pictures of docs/images anew, of a console that runs beside `make run`
	@$(BIN)/python -m tests.console.screenshots

up: ## the stack of docker-compose.yml: Redpanda, its console on :8080, generator, detector, Prometheus, Grafana on :3000
	$(COMPOSE) up --build --detach --wait

down: ## stop that stack; its data stays on its volumes
	$(COMPOSE) down

logs: ## follow that stack's logs
	$(COMPOSE) logs --follow

clean: ## remove the virtual environment and the caches; models and recovery data stay
	rm -rf $(VENV) dataflow/profiles/__pycache__ .pytest_cache .mypy_cache .ruff_cache .hypothesis
