# Every routine of Graft starts here. Two commands need nothing but Python 3.11 and make: `make demo` and `make test`.

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

.PHONY: help setup demo test check lint format types contracts unit up down lock clean
.DEFAULT_GOAL := help

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(READY) ## Create .venv with every dependency at its pinned version

# The stamp is the last thing written: an interrupted install starts again and finds its downloads.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "Graft needs Python 3.11; name it with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing about 200 packages into $(VENV): some minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $@

demo: $(READY) ## Set up, then launch a cold domain; DATA=amazon PATH=/folder takes public data from disk
	$(BIN)/graft demo $(if $(DATA),--data $(DATA)) $(if $(DATA_PATH),--path '$(DATA_PATH)')

test: $(READY) check unit ## Set up, then lint, types, import contracts and all tests

check: lint types contracts ## Everything but the tests

lint: $(READY) ## Style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## Static types
	$(BIN)/mypy

contracts: $(READY) ## Which package may import which
	$(BIN)/lint-imports

unit: $(READY) ## Only the tests; PYTEST_ARGS="-k histories" picks some
	$(BIN)/python -m pytest $(PYTEST_ARGS)

format: $(READY) ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

up: $(READY) ## Start the servers; Ctrl-C ends them
	$(BIN)/graft up

down: $(READY) ## End the servers
	$(BIN)/graft down

lock: $(READY) ## Write what .venv holds into constraints.txt
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > constraints.new
	mv constraints.new constraints.txt

clean: ## Remove what was built; data in .graft stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
