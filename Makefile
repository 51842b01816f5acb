# Two commands do everything from a clean clone: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The first that runs: a version manager's shim may stand for a Python that is not chosen.
PYTHON ?= $(shell for name in python3.11 python3.10 python3; do "$$name" -c '' 2>/dev/null && echo "$$name" && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
# Triton's stubs and NVTabular's wheels exist for these two.
MINOR = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
LOCKS = locks/uv.txt locks/build.txt locks/cpu-$(MINOR).txt locks/server.txt
STAMP = $(VENV)/.installed-$(MINOR)
# Most tests keep one core busy. Those of a file share what its fixtures make, so they stay together, and files
# come in the order that tests/conftest.py gives them.
SIDES := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test unit lock clean

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## make the virtual environment

$(STAMP): $(LOCKS) pyproject.toml
	@case "$(MINOR)" in 3.10|3.11) ;; *) \
	  echo "Pasar needs Python 3.10 or 3.11, and $(PYTHON) is $(MINOR); run make PYTHON=/path/to/python3.11" >&2; \
	  exit 1;; esac
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(MINOR)")' || { \
	  echo "$(VENV) is of another Python than $(MINOR); remove it, or run make VENV=.venv-$(MINOR)" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/uv.txt
	@echo "installing into $(VENV)"
	@export VIRTUAL_ENV="$(abspath $(VENV))"; \
	  $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes --build-constraints locks/build.txt \
	    -r locks/cpu-$(MINOR).txt && \
	  $(BIN)/uv pip install --quiet --no-deps --require-hashes -r locks/server.txt && \
	  $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## simulate, train, serve with Triton, print feeds
	@$(BIN)/pasar demo

test: setup ## run every test that this machine can
	@$(BIN)/python -m pytest $(SIDES)

unit: setup ## run the fast tests alone
	@$(BIN)/python -m pytest $(SIDES) -m "not slow and not real_data"

lock: setup ## resolve the locks anew
	@for minor in 3.10 3.11; do \
	  $(BIN)/uv pip compile --quiet pyproject.toml --extra cpu --extra dev --python-version $$minor \
	    --generate-hashes --no-emit-index-url --no-header --no-annotate -o locks/cpu-$$minor.txt; done
	@for name in uv build server; do \
	  $(BIN)/uv pip compile --quiet --no-deps locks/$$name.in --universal \
	    --generate-hashes --no-emit-index-url --no-header --no-annotate -o locks/$$name.txt; done

clean: ## remove what was built, keep the environment
	@rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
