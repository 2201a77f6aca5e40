# SPDX-License-Identifier: Apache-2.0
# Needs Python 3.10-3.13 with pip and make; everything else is installed into .venv, once.
#   make demo                        the demo: install, compress, measure, report
#   make demo ARGS="--from-scratch"  the same, training everything
#   make test                        the tests, two files at a time (PYTEST_ARGS="-m slow" for the slow ones)
#   make lint                        ruff and mypy
#   make golden DIR=tests/golden     every number of golden files against our models

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PARALLEL ?= -n 2 --dist loadfile
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install -qq

.PHONY: demo test lint golden clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-demo
	$(BIN)/featherweight demo $(ARGS)

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

golden: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python tests/golden_runner.py $(DIR) $(if $(COMPILE),--compile)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# One stamp for each set of extras; pyproject.toml decides what is in it.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "installing featherweight[$*] into $(VENV): a few minutes, once (with torch up to 7 GB of disk)"
	@$(PIP_INSTALL) -e ".[$*]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info[:2] <= (3, 13) else "featherweight needs Python 3.10 to 3.13, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
