# Each target sets up its own .venv; nothing is installed outside it.
# The first of these that really starts: a version manager's stand-in may be on PATH without its Python.
PYTHON ?= $(or $(shell for name in python3.12 python3.11 python3; do $$name -c '' 2>/dev/null && command -v $$name && break; done),python3)
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo test check format docs clean

demo: .venv/.installed
	$(BIN)/python -m deploy.demo

test: .venv/.installed
	$(BIN)/python -m pytest

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/.installed
	$(BIN)/python -m docs.generate

clean:
	rm -rf .venv runs

# torch by itself and first (see requirements.txt); DeepSpeed's setup imports it, so no build isolation.
.venv/.installed: requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check setuptools==84.2.1 wheel==0.48.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -r requirements.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@
