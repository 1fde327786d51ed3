# Everything runs in .venv, which `make install` makes. Needs Python 3.11 or later, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

.PHONY: help install demo test lint format soak clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

install: $(STAMP)  ## make the virtual environment, with everything for development

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: install  ## both stages on the toy world, preempted once, in under four minutes
	$(BIN)/mgpt4 demo

test: install  ## everything that can run on this machine
	$(BIN)/python -m pytest -m "not soak and not gpu" $(PYTEST_ARGS)

lint: install  ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## let ruff put the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

soak: install  ## the long tests; writes a dated report into docs/soak
	MGPT4_REQUIRE_SLURM=1 $(BIN)/python tools/soak.py $(PYTEST_ARGS)

clean:  ## remove what make made
	rm -rf $(VENV) demo build dist
