# Every target runs in .venv, which is made on first use and brought up to date when the requirements change.
#   make quickstart                 trains configs/quickstart.yaml on the embedded pictures and scores it
#   make train ARGS="--config configs/photos.yaml --set data.source=folder:DIR"
#   make PYTHON=/path/to/python3.12 ...   uses that interpreter instead of the first one that fits
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input
CORE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help quickstart train edit test lint format clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

quickstart: $(CORE) ## train and score the quickstart experiment, from nothing, in less than 20 minutes on 2 cores
	$(BIN)/python train.py --config configs/quickstart.yaml $(ARGS)

train: $(CORE) ## train with ARGS="--config configs/NAME.yaml --set key=value --run-dir DIR"
	$(BIN)/python train.py $(ARGS)

edit: $(DEV) ## edit pictures: ARGS="swap|edit|interpolate|grid|encode|app ..." as in docs/editing.md
	@$(BIN)/python -m tcp_tf $(ARGS)

test: $(DEV) ## run all tests, the fast ones first; ARGS goes to pytest
	$(BIN)/python -m pytest $(ARGS)

lint: $(DEV) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV) ## rewrite the source in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## delete the environment and caches, not the runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache tcp_tf.egg-info

# An interpreter fits when it starts, is of a version that TensorFlow supports and can make environments.
FITS := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))

$(CORE): requirements.txt pyproject.toml
	@set -e; \
	if ! $(BIN)/python -c '$(FITS)' 2>/dev/null; then \
	  found=; \
	  for python in $(or $(PYTHON),python3.11 python3.12 python3.10 python3.13 python3); do \
	    if "$$python" -c '$(FITS)' >/dev/null 2>&1; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "no Python 3.10 to 3.13 with the venv module found (tried: $(or $(PYTHON),python3.11 python3.12 python3.10 python3.13 python3))" >&2; \
	    exit 1; \
	  fi; \
	  echo "making $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear $(VENV); \
	fi; \
	echo "installing TensorFlow and the other requirements into $(VENV) (the first time: minutes)"; \
	$(PIP) -e .; \
	touch $@

# Everything optional on top: what the tests, the web page, the pipeline and the client need.
$(DEV): $(CORE)
	@echo "installing what the tests need into $(VENV) (the first time: a minute)"
	@$(PIP) -e '.[app,dev,pipeline,serve]'
	@touch $@
