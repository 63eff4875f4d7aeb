# make demo | test | check | lint | faults: each sets up $(VENV) first where it is missing or out of date.
#
#   PYTHON=python3.12     the Python (3.11 or newer) that makes the environment; found by itself if not given
#   VENV=.venv            where the environment lives
#   TORCH_INDEX=URL       an additional package index for torch, e.g. the CPU index of PyTorch's installation page,
#                         which saves several GB of CUDA libraries on a machine without a GPU
#   TESTS="tests/models -k load"   what `make test` runs, and with which options of pytest
#   JOBS=2                processes that share the tests, each with one thread

VENV ?= .venv
JOBS ?= 2
TESTS ?= tests
TORCH_INDEX ?=

# 3.11 comes first: it is the version that constraints.txt was tested with.
CANDIDATES = python3.11 python3.12 python3.13 python3.14 python3 python
SUITABLE = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do if $$p -c '$(SUITABLE)' >/dev/null 2>&1; then echo $$p; break; fi; done)

PIP_INSTALL = $(VENV)/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt
STAMP = $(VENV)/installed

.PHONY: demo test check lint faults clean
.DEFAULT_GOAL := test

demo: $(STAMP)
	@$(VENV)/bin/heptune demo

# Threads of several workers on few cores only wait for each other, hence one thread each.
test: $(STAMP)
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python -m pytest -n $(JOBS) $(TESTS)

# The tests run even if the linter complains: one run shows everything, and pytest has the last word.
check: $(STAMP)
	@status=0; \
	$(MAKE) --no-print-directory lint || status=1; \
	$(MAKE) --no-print-directory test || status=1; \
	exit $$status

lint: $(STAMP)
	@$(VENV)/bin/python -m ruff check .
	@$(VENV)/bin/python -m mypy

# A hundred kills with SIGKILL at random moments: trainings, a race, exports. Minutes.
KILLS ?= 100
faults: $(STAMP)
	@OMP_NUM_THREADS=1 $(VENV)/bin/python tests/faults/kills.py --kills $(KILLS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	@if ! "$(or $(PYTHON),false)" -c '$(SUITABLE)' >/dev/null 2>&1; then \
	  echo 'Heptune needs Python 3.11 or newer with venv and pip; found: "$(PYTHON)".'; \
	  echo 'Install one (Debian: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.11'; \
	  exit 1; fi
	@if ! "$(VENV)/bin/python" -c '$(SUITABLE)' >/dev/null 2>&1; then \
	  echo 'Making $(VENV) with $(PYTHON) ...'; "$(PYTHON)" -m venv --clear "$(VENV)"; fi
	@echo 'Installing Heptune and what constraints.txt pins into $(VENV) ...'
	@$(PIP_INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[dev]'
	@touch $@
