# The front door. Everything runs in .venv, which is made and brought up to date as needed.
# Written for GNU make 3.81 and later (macOS carries that one).
SHELL := /bin/bash

PYTHON ?=
export PYTHON
# mkdocs-material's advertisement would hide a real warning.
export NO_MKDOCS_2_WARNING := 1
# The tests run in two processes; more threads than cores make small networks train slower.
export OMP_NUM_THREADS ?= 1

VENV_PYTHON := .venv/bin/python
# Figures that a benchmark holds are checked; BENCH=name runs one, BENCH_FLAGS=--write-docs writes.
BENCH ?= $(filter-out common lenet mcu_data mcu_recipes,$(basename $(notdir $(wildcard benchmarks/[a-z]*.py))))
BENCH_FLAGS ?= --check
FUZZ_SECONDS ?= 3600
# The minute of fuzzing in the tests repeats, so that a failure is the change's; `make fuzz` varies.
FUZZ_SEED ?= 77

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint fuzz docs bench format env tools clean

help: ## Print this help
	@echo "tvm-compress: make TARGET"
	@echo
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
		| while IFS='|' read -r target text; do printf '%-14s %s\n' "$$target" "$$text"; done
	@echo
	@echo "PYTHON=/path/to/python names the interpreter for .venv (3.11, 3.12 or 3.13)."

demo: ## Compress a digits network, run it on an emulated Cortex-M4F, print the table
	@scripts/ensure_env.sh demo
	$(VENV_PYTHON) examples/digits/demo.py

test: env tools ## Run all checks: lint, types, docs, a minute of fuzzing, tests
	@$(MAKE) --no-print-directory check-lint check-docs check-fuzz
	$(VENV_PYTHON) -m pytest -n 2

lint: env check-lint ## Run ruff and mypy

fuzz: env ## Fuzz the readers of .tcz files for FUZZ_SECONDS (an hour), sanitizers on
	$(VENV_PYTHON) tests/fuzz/fuzz.py $(FUZZ_SECONDS)

docs: env check-docs ## Build the documentation into site/

bench: env ## Run the benchmarks and check the figures they hold (BENCH=name, BENCH_FLAGS=...)
	@failed=; for name in $(BENCH); do \
		echo "== $$name"; \
		$(VENV_PYTHON) "benchmarks/$$name.py" $(BENCH_FLAGS) || failed="$$failed $$name"; \
	done; \
	if [ -n "$$failed" ]; then echo "Benchmarks that failed:$$failed" >&2; exit 1; fi

format: env ## Format the sources in place
	$(VENV_PYTHON) -m ruff check --fix-only --quiet .
	$(VENV_PYTHON) -m ruff format .

clean: ## Remove .venv and everything else that was built
	rm -rf .venv build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The parts, without help lines of their own.
.PHONY: check-lint check-docs check-fuzz
env:
	@scripts/ensure_env.sh test

tools:
	@scripts/ensure_tools.sh

check-lint:
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

check-docs:
	$(VENV_PYTHON) -m mkdocs build --strict --quiet

check-fuzz:
	$(VENV_PYTHON) tests/fuzz/fuzz.py 60 $(FUZZ_SEED)
