# `make demo` shows PuzzleFS on a real root file system; `make check` is what CI runs. Both set up what they need.
# Variables: PYTHON (interpreter for a new .venv), ROOTFS (demo), WORKERS and ARGS (tests);
# SECONDS and TARGET (fuzz);
# BENCH_ROOTFS (tree), BENCH_ARGS (such as --quick) and PEER_PUZZLEFS (another program of the original's) for `make bench`.

SHELL := /bin/bash
BIN := .venv/bin
WORKERS ?= 2
ARGS ?=
SECONDS ?= 60
TARGET ?=
BENCH_ROOTFS ?=
BENCH_ARGS ?=

# A tool of the project's own environment comes before one of the machine.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup setup-verity setup-original demo check check-verity lint format test fuzz bench clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## build, mount and compare a real root file system (ROOTFS=dir: your own)
	@started=$$EPOCHREALTIME; scripts/setup.sh run && DEMO_STARTED=$$started $(BIN)/python scripts/demo.py

setup: ## .venv and the system packages that development needs
	@scripts/setup.sh dev

setup-verity: ## kernel and emulator of the virtual machine that tests fs-verity
	@scripts/setup.sh verity

setup-original: setup ## the original implementation's programs, built once by cargo
	@scripts/setup.sh original

check: setup setup-verity setup-original ## everything CI checks: lint, then all tests
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory test

check-verity: setup setup-verity setup-original ## only the tests in a kernel that has fs-verity, in an emulated machine
	@$(BIN)/python tests/verity/machine.py
	$(BIN)/pytest -rs -m verity $(ARGS)

lint: setup ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/mypy --strict scripts benchmarks
	$(BIN)/lint-imports

format: setup ## rewrite the sources as ruff wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup ## all tests (WORKERS=n processes, ARGS='-k name' for a choice)
	$(BIN)/pytest -rs -n $(WORKERS) --dist loadgroup $(ARGS)

fuzz: setup ## look for inputs that break what reads images (SECONDS=n for each target, TARGET=name for one)
	@cd tests && PYTHONPATH=. ../$(BIN)/python -m fuzz --seconds $(SECONDS) $(TARGET)

bench: ## speed and space beside other file systems, some 20 minutes, as root (BENCH_ROOTFS=dir, BENCH_ARGS=--quick)
	@scripts/setup.sh bench
	@[ -n '$(PEER_PUZZLEFS)' ] || scripts/setup.sh original
	@PEER_PUZZLEFS='$(PEER_PUZZLEFS)' $(BIN)/python benchmarks/suite.py $(BENCH_ARGS) $(BENCH_ROOTFS)

clean: ## remove caches and build results
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .cache
	find . -name .venv -prune -o -name .git -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf .venv
