# `make` lists the targets. Everything runs from .venv, which `make setup` makes.
# PYTHON is the interpreter of a new .venv (3.11), PYTHON312 that of .venv-py312; VENV another folder for .venv.
# TORCH_INDEX is the index that torch alone is taken from: https://download.pytorch.org/whl/cpu has the CPU build.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
VENV_PY312 ?= .venv-py312
TORCH ?= torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
PYTEST := $(VENV)/bin/python -m pytest
BIN := $(VENV)/bin

# Without .pyc files each of the many processes that tests start would compile torch's thousands of modules again.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo finetune test check format lint types test-unit test-docs test-engines test-cluster test-py312 test-gpu soak soak-properties bench docs wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## make .venv with everything for training and tests (Python 3.11; TORCH_INDEX: the head of this file)

# torch first, by itself: DeepSpeed's build asks for it. DS_BUILD_OPS=0: its kernels are compiled when they are used.
$(VENV)/.installed: pyproject.toml .ci/find-python
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    python=$$(PYTHON="$(PYTHON)" .ci/find-python 3.11) && "$$python" -m venv --clear $(VENV); \
	fi
	$(BIN)/python -m pip install -q $(TORCH)
	DS_BUILD_OPS=0 $(BIN)/python -m pip install -q -e '.[train,dev]'
	@touch $@

demo: setup ## the whole way on real text: train on 4 processes, kill, resume, convert, prove, generate
	VENV=$(VENV) configs/smoke/demo.sh

finetune: setup ## four adapters on SmolLM2-135M and their mixture: train, evaluate, export, prove (an hour)
	VENV=$(VENV) configs/finetune/four-tasks.sh

test: setup check test-engines test-cluster ## set up and pass all tests that need no GPU

check: setup format lint types test-unit test-docs ## format, lint, types, unit tests, docs check

format: setup
	$(BIN)/ruff format --check .

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

test-unit: setup ## tests without engines, on two workers
	$(PYTEST) tests/unit -n 2 --dist worksteal

test-docs: setup ## boundaries, shipped specs, documents, README's commands, the wheel
	$(PYTEST) tests/test_*.py -m 'not engines'

# Two at a time: ranks of tiny models mostly wait for each other. What fails runs once more; -rR names it in the summary.
test-engines: setup ## tests with several processes and the real engines
	OMP_NUM_THREADS=1 $(PYTEST) -m engines tests -n 2 --dist worksteal --reruns 1 -rR --durations=15

# The tests install what they need from Debian's packages.
test-cluster: setup ## real hosts, Slurm and MPI, with faults: root with CI=1 or LS_CLUSTER=1; else it says that it skips
	OMP_NUM_THREADS=1 $(PYTEST) -rsR -m cluster tests --reruns 1 --durations=15

test-py312: $(VENV_PY312)/.installed ## the engine tests on Python 3.12 with megatron-core 0.17 to 0.19
	OMP_NUM_THREADS=1 $(VENV_PY312)/bin/python -m pytest -m engines tests

$(VENV_PY312)/.installed: pyproject.toml .ci/find-python
	@if ! $(VENV_PY312)/bin/python -m pip --version >/dev/null 2>&1; then \
	    python=$$(PYTHON="$(PYTHON312)" .ci/find-python 3.12 PYTHON312 "make test-py312") && "$$python" -m venv --clear $(VENV_PY312); \
	fi
	$(VENV_PY312)/bin/python -m pip install -q $(TORCH)
	DS_BUILD_OPS=0 $(VENV_PY312)/bin/python -m pip install -q -e '.[train,dev]'
	@touch $@

test-gpu: setup ## NCCL parity, bf16 and MFU; says so where there is no GPU
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	    $(PYTEST) -m gpu tests; \
	else \
	    echo '******** GPU tests NOT RUN: torch sees no CUDA device here ********' >&2; \
	fi

soak: soak-properties ## the long lists whose representatives run always: hours of seeded kills and faults
	OMP_NUM_THREADS=1 $(PYTEST) -m soak tests

# One seed again: make soak-properties SEEDS=N
SEEDS ?= $(shell shuf -i 0-4294967295 -n 20)
soak-properties: setup ## the property tests with 20 fresh seeds x 2,000 examples
	@for seed in $(SEEDS); do \
	    echo "== seed $$seed"; \
	    $(PYTEST) -m hypothesis tests/unit --hypothesis-profile soak --hypothesis-seed $$seed || \
	        { echo "a property test failed; again: make soak-properties SEEDS=$$seed" >&2; exit 1; }; \
	done

bench: setup ## the figures of benchmarks/README.md
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

docs: setup ## write docs/commands.md from the commands' help
	$(BIN)/python docs/generate_commands.py

wheel: setup ## build dist/*.whl
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove what was made, .venv excepted
	rm -rf .demo dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
