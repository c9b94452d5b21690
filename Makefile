# `make train` and `make test` set everything up by themselves; a second run finds it done.
#
#   PYTHON=python3.12 make train     another interpreter (3.11 to 3.13)
#   CONSTRAINTS= make test           newest versions instead of the tested ones
#   RUN=runs/other make train        another run folder
#   INSTALL_SYSTEM=1 make test       also installs the system packages that a command needs (Debian)

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/debug
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup train emoji test test-all lint types imports check figures clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## .venv with the tested versions; quick when nothing changed

$(STAMP): setup.py constraints.txt trainer/intern_trainer/__init__.py scripts/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" CONSTRAINTS="$(CONSTRAINTS)" bash scripts/setup.sh
	@touch $@

train: $(STAMP)  ## stage 1 on the embedded data, 2 CPU ranks: pretrain, evaluate, export, report
	@BIN="$(BIN)" RUN="$(RUN)" bash scripts/train.sh

emoji: $(STAMP)  ## fetch the emoji pair and build its shards in data/emoji, for configs/stage1/emoji.yaml
	@BIN="$(BIN)" EMOJI=data/emoji bash scripts/emoji.sh

test: $(STAMP)  ## all tests but those marked slow
	$(PYTEST) -m "not slow"

test-all: $(STAMP)  ## all tests
	$(PYTEST)

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

imports: $(STAMP)  ## who may import whom
	$(BIN)/lint-imports

check: lint types imports  ## all of lint, types, imports

figures: $(STAMP)  ## the README's table: each loss, 3 seeds, and a control with shuffled captions
	$(BIN)/python -m benchmarks figures

clean:  ## remove what was set up and built (not the runs)
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
