# make quickstart: install, train and plot on a fresh machine. make help: all targets.
DEVICE ?= cpu
VENV ?= .venv
ARGS ?=
# Test processes, one file at a time each; a process needs a core and up to 4 GiB.
JOBS ?= 2
export DEVICE VENV

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-long browser check docs wheel lock

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "  DEVICE=gpu for CUDA, VENV=path for another environment, ARGS='...' for more options"

setup:  ## create .venv with all dependencies (does nothing if it is up to date)
	@bash scripts/setup.sh

quickstart: setup  ## train the shipped small base: minutes on two cores, see README.md
	$(BIN)/r1lab quickstart $(ARGS)

test: setup browser  ## run the tests, except the long ones
	$(BIN)/python -m pytest -m "not long" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-long: setup  ## run the tests that take minutes each
	$(BIN)/python -m pytest -m long $(ARGS)

browser:
	@bash scripts/setup_browser.sh

check: setup  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup  ## build the documentation site, site/index.html
	@PYTHONPATH=. $(BIN)/python scripts/write_reference.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "open site/index.html in a browser; for search, run: python -m http.server -d site"

wheel: setup  ## build dist/r1lab-*.whl
	@rm -rf build
	$(BIN)/uv build --quiet --wheel --out-dir dist .
	@ls dist/*.whl

lock: setup  ## update the pinned packages: requirements/*.in -> *.txt
	@bash scripts/lock.sh $(ARGS)
