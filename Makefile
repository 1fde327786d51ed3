# Everything runs in .venv, which `make install` makes. Needs Python 3.11 or later, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

# Where the tests of single modules and commands are. Those that start real jobs wait a lot, so two
# of them go at once.
UNIT    = tests/unit tests/cli tests/reference
REAL    = tests/integration tests/slurm
SELECT  = not soak and not gpu

.PHONY: help install demo test quick slow real lint format docs soak matrix release clean

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

test: quick slow real  ## everything that can run on this machine

quick: install  ## the tests that take a fraction of a second each, all in under a minute
	$(BIN)/python -m pytest -m "$(SELECT) and not slow" -n 2 $(UNIT) $(PYTEST_ARGS) $(QUICK_ARGS)

slow: install  ## the other tests of single modules and commands
	$(BIN)/python -m pytest -m "$(SELECT) and slow" -n 2 $(UNIT) $(PYTEST_ARGS) $(SLOW_ARGS)

real: install  ## the tests that start real jobs, on a real Slurm where there is one
	$(BIN)/python -m pytest -m "$(SELECT)" -n 3 --dist loadfile --no-loadscope-reorder $(REAL) $(PYTEST_ARGS) $(REAL_ARGS)

lint: install  ## ruff, mypy, import contracts, generated files, the lock file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/make_cli_docs.py --check
	$(BIN)/uv lock -q --check

format: install  ## let ruff put the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install  ## write docs/cli.md and configs/schema.json from the code
	$(BIN)/python tools/make_cli_docs.py

soak: install  ## the long tests; writes docs/reliability.md
	MGPT4_REQUIRE_SLURM=1 $(BIN)/python tools/soak.py $(SOAK_ARGS)

matrix: install  ## the quick tests on every Python that is here, oldest and newest dependencies
	$(BIN)/python tools/matrix.py $(MATRIX_ARGS)

release: install  ## sdist and wheel in dist/, checked, and the demo from the wheel alone
	rm -rf dist
	$(BIN)/uv build -q
	$(BIN)/uvx -q twine check --strict dist/*
	$(BIN)/uvx -q check-wheel-contents dist/*.whl
	cd "$$(mktemp -d)" && $(CURDIR)/$(BIN)/uvx -q --python $(CURDIR)/$(BIN)/python \
	    --from $(CURDIR)/dist/*.whl mgpt4 demo

clean:  ## remove what make made
	rm -rf $(VENV) demo build dist
