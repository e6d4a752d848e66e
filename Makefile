# Every target makes its own virtual environment from pyproject.toml; python3 (3.11 or newer) and git are all it needs.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check --no-input
DEV := $(VENV)/.stamp-dev
BENCH := $(VENV)/.stamp-bench
BENCH_FULL := $(VENV)/.stamp-bench-full

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-crash soak lint types cov slow bench bench-full format clean distclean

help:
	@echo 'make demo    run the demonstration (ARGS="..." is passed on)'
	@echo 'make test    lint, types, layers, then every test under branch coverage'
	@echo 'make test-crash  the long sweeps: crashes, faults, power cuts (ARGS="..." is passed on), damage, contention'
	@echo 'make soak    30 minutes of four processes at work, with kills (ARGS="--minutes 5" for another time)'
	@echo 'make lint    ruff and the import layers'
	@echo 'make types   mypy --strict'
	@echo 'make cov     every test under branch coverage (ARGS="..." goes to pytest)'
	@echo 'make slow    the long sweeps (ARGS="..." goes to pytest)'
	@echo 'make bench   a short version of every benchmark (ARGS="--only micro latency" for some); results in bench-results'
	@echo 'make bench-full  every benchmark in full, most of a day: writes docs/benchmarks (ARGS as above)'
	@echo 'make format  let ruff format and fix'
	@echo 'make clean   remove what the other targets made, but for $(VENV) and full results; make distclean those too'

$(DEV): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tiermem needs Python 3.11 or newer")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --editable '.[dev]'
	@touch $@

$(BENCH): $(DEV)
	@$(PIP) install --editable '.[bench]'
	@touch $@

$(BENCH_FULL): $(BENCH)
	@$(PIP) install --editable '.[bench,bench-vectors]'
	@touch $@

demo: $(DEV)
	@$(BIN)/tiermem demo --path demo-store $(ARGS)

test: lint types cov

test-crash: $(DEV)
	$(BIN)/python -m tiermem.testing.crash $(ARGS)
	$(BIN)/python -m tiermem.testing.damage --points 1000
	$(BIN)/python -m tiermem.testing.contention --processes 8 --seconds 60
	$(BIN)/python -m tiermem.testing.contention --processes 8 --seconds 60 --kill-every 1

soak: $(DEV)
	@$(BIN)/python -m tiermem.testing.soak $(ARGS)

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(DEV)
	$(BIN)/mypy --strict tiermem

cov: $(DEV)
	@$(BIN)/coverage erase
	@# By file: the examples of a document build on each other.
	$(BIN)/coverage run -m pytest -n 2 --dist loadfile $(ARGS)
	@$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=95

slow: $(DEV)
	$(BIN)/python -m pytest -m slow --timeout=3600 $(ARGS)

bench: $(BENCH)
	@$(BIN)/python benchmarks/run_all.py $(ARGS)

bench-full: $(BENCH_FULL)
	@$(BIN)/python benchmarks/run_all.py --full $(ARGS)

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist demo-store htmlcov .coverage .coverage.* .benchmarks .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache bench-results/short
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) bench-results
