# Everything a newcomer needs. The first `make demo` or `make test` sets itself up in .venv.
#
#   make demo ARGS="--seconds 30 --no-browser"    flags go to the command behind the target
#   make test ARGS="-k laws -x"
#   make test ARGS="-n 0 --pdb"                   in one process, instead of one for each core
#   make test PYTHON=/opt/python3.12/bin/python3  another Python, 3.11 or newer
#
# On Linux the package index serves PyTorch with CUDA, several GB. To get the far smaller CPU build,
# set PIP_EXTRA_INDEX_URL to PyTorch's CPU index before the first run; pip reads it by itself.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TORCH ?= $(shell sed -n 's/^torch==//p' requirements.lock)
ARGS ?=
BIN := .venv/bin
PIP_FLAGS := --no-input --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test chaos lint bench docs lock clean

help: ## this list
	@echo "stream-forecaster: calibrated forecasts for every key of a Kafka topic, exactly once."
	@echo "New here? 'make demo' needs Python 3.11 or newer and a package index, nothing else."
	@echo
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: .venv/installed ## simulated users, a broker and the real service, live in this terminal
	$(BIN)/stream-forecaster demo $(ARGS)

test: .venv/installed ## all tests; on Apache Kafka too where KAFKA_HOME names one
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

chaos: .venv/installed ## kill, stop and cut off workers and broker for five minutes, then compare
	PYTHONPATH=tests $(BIN)/python tests/chaos $(ARGS)

lint: .venv/installed ## ruff and mypy, as CI runs them
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/installed .venv-bench/installed ## every benchmark, then one table (ARGS="--quick")
	PYTHONPATH=.:tests $(BIN)/python benchmarks/suite.py $(ARGS)

docs: .venv/installed ## write the reference pages of docs/ anew, from the code
	$(BIN)/python docs/generate.py

# The lock is what pip resolves today for pyproject.toml, written down. Run it with the oldest Python
# we support. Local version suffixes (+cpu) and CUDA's own packages depend on the machine: left out.
lock: require-python ## resolve pyproject.toml again into requirements.lock (TORCH=2.x.y moves torch)
	@echo "Resolving for $$($(PYTHON) --version) in a fresh environment, a minute or two ..."
	@$(PYTHON) -m venv --clear build/lock
	build/lock/bin/pip install $(PIP_FLAGS) -q torch==$(TORCH) '.[dev]'
	@{ sed -n '/^#/p' requirements.lock; \
		build/lock/bin/pip freeze --all --exclude pip --exclude stream-forecaster > build/lock/frozen \
		&& sed -e '/^\(nvidia-\|cuda-\|triton\)/d' -e 's/+.*//' build/lock/frozen; \
	} > build/lock/requirements.lock
	@mv build/lock/requirements.lock requirements.lock && rm -r build/lock
	@echo "requirements.lock: $$(grep -c '==' requirements.lock) packages"

clean: ## remove the environment and every cache
	rm -rf .venv .venv-bench build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two steps with a marker each: the long one is repeated only when the lock changes, and one that
# was interrupted starts over. Python compiles what is imported when it is: a tenth of all there is.
.venv/locked: requirements.lock | require-python
	@echo "Setting up .venv with $$($(PYTHON) --version), once:" \
		"$$(grep -c '==' requirements.lock) packages, about a minute and the downloads ..."
	@$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install $(PIP_FLAGS) --no-compile -r requirements.lock
	@touch $@

.venv/installed: .venv/locked pyproject.toml
	$(BIN)/pip install $(PIP_FLAGS) -q --no-deps --no-build-isolation -e .
	@echo "Compiling what runs for every key, once: half a minute ..."
	@$(BIN)/python -c 'from stream_forecaster import cli; cli.compile_on_all_cores()'
	@touch $@
	@echo "Ready."

# What we are compared with pins another version of our test client, so it lives apart.
.venv-bench/installed: benchmarks/requirements.lock | require-python
	@$(PYTHON) -m venv --clear .venv-bench
	.venv-bench/bin/pip install $(PIP_FLAGS) -q -r benchmarks/requirements.lock
	@touch $@

.PHONY: require-python
require-python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found." \
		"Install one, or name it: make test PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is not Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) lacks the venv module." \
		"On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
