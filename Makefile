# make quickstart: from a fresh machine to a rising curve. make help: everything else.
DEVICE ?= cpu
VENV ?= .venv
ARGS ?=
# Processes that tests are shared among, file by file; each takes a core and up to 4 GiB.
JOBS ?= 2
export DEVICE VENV

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-long browser check docs wheel lock

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "  DEVICE=gpu for CUDA, VENV=path for another environment, ARGS='...' for more options"

setup:  ## make .venv with everything in it (nothing to do when it is up to date)
	@bash scripts/setup.sh

quickstart: setup  ## train the small base that ships: minutes on two cores, see README.md
	$(BIN)/r1lab quickstart $(ARGS)

test: setup browser  ## the tests, but for the long ones
	$(BIN)/python -m pytest -m "not long" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-long: setup  ## the tests that take minutes each
	$(BIN)/python -m pytest -m long $(ARGS)

browser:
	@bash scripts/setup_browser.sh

check: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup  ## the documentation as a site, in site/index.html
	@PYTHONPATH=. $(BIN)/python scripts/write_reference.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "open site/index.html in a browser; with its search: python -m http.server -d site"

wheel: setup  ## dist/r1lab-*.whl
	@rm -rf build
	$(BIN)/uv build --quiet --wheel --out-dir dist .
	@ls dist/*.whl

lock: setup  ## pin the packages anew: requirements/*.in -> *.txt
	@bash scripts/lock.sh $(ARGS)
