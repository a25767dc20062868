# Two commands: `make demo` and `make test`. Both create the environment in .venv first.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# What `make demo` adds to `fedrec demo`, e.g. make demo DEMO="--set rounds=4 --set encoder_rounds=1"
DEMO ?=

.PHONY: demo test test-all lint clean

demo: $(VENV)/.demo
	$(BIN)/fedrec demo $(DEMO)

test: $(VENV)/.test
	$(BIN)/python -m pytest

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build *.egg-info
