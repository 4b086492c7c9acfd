# Every target makes the virtual environment first when it is missing or out of date.
# `make VENV=/path/to/venv ...` uses another one.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST := .oldest
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-oldest check golden docs kernels wheel-test bench bench-training bench-gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(OLDEST)/.ready: pyproject.toml constraints.txt constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	awk -F == 'NR == FNR || !($$1 in old) {print} {old[$$1]}' constraints-oldest.txt constraints.txt \
	  > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -c $(OLDEST)/constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## write, check, build, train and sample a small byte model with the real commands
	$(BIN)/python examples/demo.py

test: $(READY) ## run the tests that need no GPU and little time
	$(BIN)/python -m pytest -n 2 -q

test-all: $(READY) ## run all tests, the slow ones too (those marked cuda only where there is a GPU)
	$(BIN)/python -m pytest -n 2 -q \
	  -m "$$($(BIN)/python -c 'import torch; print("" if torch.cuda.is_available() else "not cuda")')"

test-oldest: $(OLDEST)/.ready ## run built packages and kernels on the oldest torch and Triton; downloads gigabytes
	$(OLDEST)/bin/python -m pytest -n 2 -q tests/run tests/kernels

check: $(READY) ## lint, formatting, types, import contracts, generated pages
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict tokdsl
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

golden: $(READY) ## rewrite the golden files from what the compiler says now
	$(BIN)/python -m pytest -q --update-golden

docs: $(READY) ## write the reference pages from the code
	$(BIN)/python docs/generate.py

kernels: $(READY) ## compile every kernel for every target; write the table of what they occupy
	$(BIN)/python -m tests.kernels.resources

wheel-test: $(READY) ## build sdist and wheel, install the wheel alone, use it from another folder
	PYTHON=$(BIN)/python .ci/wheel-test

bench: $(READY) ## time checking, peers, what runs along tokens, and generation, on this CPU
	$(BIN)/python -m benchmarks.checking
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.scans
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.selection
	$(BIN)/python -m benchmarks.experts

bench-training: $(READY) ## train hierarchical byte models beside a flat one; about 20 minutes on two free cores
	$(BIN)/python -m benchmarks.hierarchy

bench-gpu: $(READY) ## time every kernel on this GPU beside the roofline and its peers
	$(BIN)/python -m benchmarks.kernels

clean: ## remove the environment, caches and outputs
	rm -rf $(VENV) $(OLDEST) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
