# Every routine of Graft starts here. Two commands need nothing but Python 3.11 or 3.12 and make: `make demo` and `make test`.

# `make demo DATA=amazon PATH=/folder` gives the data's folder in a variable that is also the shell's search path: take
# it as the folder, and give the recipes back the search path that make itself was started with.
ifneq ($(filter command line,$(origin PATH)),)
DATA_PATH := $(PATH)
override PATH := $(shell PATH=/usr/bin:/bin; tr '\0' '\n' </proc/$$PPID/environ 2>/dev/null | sed -n 's/^PATH=//p')
ifeq ($(PATH),)
override PATH := $(HOME)/.local/bin:/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
endif
endif
export PATH

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST_ARGS ?=
CHAOS_ARGS ?=
# Tests run in this many processes; those that share a server or an expensive fixture stay together (tests/conftest.py).
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

.PHONY: help setup demo fast test tests check lint format types contracts docs docs-reference chaos up down lock clean
.DEFAULT_GOAL := help

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(READY) ## Create .venv with every dependency at its pinned version

# The stamp is the last thing written: an interrupted install starts again and finds its downloads.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		|| { echo "Graft needs Python 3.11 or 3.12; name it with make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "installing about 200 packages into $(VENV): some minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $@

demo: $(READY) ## Set up, then launch a cold domain; DATA=amazon PATH=/folder takes public data from disk
	$(BIN)/graft demo $(if $(DATA),--data $(DATA)) $(if $(DATA_PATH),--path '$(DATA_PATH)')

fast: check ## The inner loop, under a minute: lint, types, import contracts, quick unit tests
	$(PYTEST) tests/unit -q -m "not slow" $(PYTEST_ARGS)

test: check docs tests ## Set up, then everything that CI runs: lint, types, import contracts, docs, all tests

check: lint types contracts ## Everything but docs and tests

lint: $(READY) ## Style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## Static types
	$(BIN)/mypy

contracts: $(READY) ## Which package may import which
	$(BIN)/lint-imports

tests: $(READY) ## Only the tests, all of them; PYTEST_ARGS="-k histories" picks some
	$(PYTEST) $(PYTEST_ARGS)

docs: $(READY) ## Build the documentation site into site/; fails on a broken link or an outdated reference page
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-reference: $(READY) ## Write the pages that are generated from the code
	$(BIN)/python docs/generate.py

format: $(READY) ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chaos: $(READY) ## What holds while processes are killed and stores taken away, on servers of its own; under 15 minutes
	$(BIN)/python -m benchmarks.chaos $(CHAOS_ARGS)

up: $(READY) ## Start the servers; Ctrl-C ends them
	$(BIN)/graft up

down: $(READY) ## End the servers
	$(BIN)/graft down

lock: $(READY) ## Write what .venv holds into constraints.txt
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > constraints.new
	mv constraints.new constraints.txt

clean: ## Remove what was built; data in .graft stays
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
