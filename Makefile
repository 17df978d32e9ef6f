# Two commands do everything: `make validate` and `make test`. Each first makes the environment in .venv.
PYTHON ?= python3
EXPERIMENT ?= digits
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: validate test test-fast check lint format types wheel-check clean-venv help
.DEFAULT_GOAL := help

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/' | column -t -s:

$(READY): pyproject.toml
	@echo "==> making the environment in $(VENV) (about 2 minutes, 5.5 GB)"
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python >= 3.11 is needed, this is {sys.version.split()[0]}; run make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[slurm,joblib,dashboard,tensorboard]" --group dev
	@touch $@

validate: $(READY)  ## Train width ladders on real images and project them onto the theory (EXPERIMENT=fashion_mnist for the larger one)
	@echo "==> the main job: ridgescope validate experiment=$(EXPERIMENT)"
	$(BIN)/ridgescope validate experiment=$(EXPERIMENT)

# one thread in each worker: two that share a core wait for each other
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder

test: $(READY)  ## Run all tests
	@echo "==> all tests (GPU tests skip themselves where there is none)"
	$(TESTS) --durations=10

test-fast: $(READY)  ## Run the tests that take seconds
	$(TESTS) -m "not slow"

check: lint types test  ## Everything that must pass before a commit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)
	$(BIN)/mypy

wheel-check: $(READY)  ## Build a wheel, install it in an empty environment, and run it from elsewhere
	.ci/check_wheel
