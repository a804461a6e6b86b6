# make quickstart: from a fresh machine to a rising curve. make help: everything else.
DEVICE ?= cpu
VENV ?= .venv
ARGS ?=
export DEVICE VENV

BIN := $(VENV)/bin
# accelerate gives a process one thread unless told otherwise; a single process may have them all.
THREADS := $(or $(OMP_NUM_THREADS),$(shell nproc 2>/dev/null || echo 1))
LAUNCH := OMP_NUM_THREADS=$(THREADS) $(BIN)/accelerate launch --quiet \
	--config_file recipes/accelerate/single.yaml

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-long check wheel lock

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "  DEVICE=gpu for CUDA, VENV=path for another environment, ARGS='...' for more options"

setup:  ## make .venv with everything in it (nothing to do when it is up to date)
	@bash scripts/setup.sh

quickstart: setup  ## train the small base that ships, about 15 minutes on two cores
	$(LAUNCH) -m r1lab train recipes/quickstart.yaml $(ARGS)
	@echo; echo "Everything is in runs/quickstart:"
	@echo "  summary.json   accuracy, format and length before and after"
	@echo "  curves.png     the same over the steps"
	@echo "  rollouts/      every sample with its verdicts: $(BIN)/r1lab show runs/quickstart"
	@echo "  checkpoints/   the trained model"

test: setup  ## the tests, but for the long ones
	$(BIN)/python -m pytest -m "not long" $(ARGS)

test-long: setup  ## the tests that take minutes each
	$(BIN)/python -m pytest -m long $(ARGS)

check: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: setup  ## dist/r1lab-*.whl
	$(BIN)/uv build --quiet --wheel --out-dir dist .
	@ls dist/*.whl

lock: setup  ## pin the packages anew: requirements/*.in -> *.txt
	@bash scripts/lock.sh $(ARGS)
