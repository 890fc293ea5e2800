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
# Without compiling every module of every package, which takes longer than compiling what is imported when it is.
INSTALL := -m pip install -qq --disable-pip-version-check --no-input --no-compile
PIP := $(BIN)/python $(INSTALL)
CORE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
export TF_CPP_MIN_LOG_LEVEL ?= 2

# Each process of the tests takes up to 3 GB and most of a core.
IN_PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

# The addons stack: TensorFlow 2.15 with tensorflow-addons, in an environment of its own (docs/addons.md).
ADDONS_VENV := .venv-addons
ADDONS_BIN := $(ADDONS_VENV)/bin
ADDONS := $(ADDONS_VENV)/.installed
ADDONS_DEV := $(ADDONS_VENV)/.installed-dev

.PHONY: help quickstart train edit test test-long fuzz load audit lint format clean quickstart-addons test-addons

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 26

quickstart: $(CORE) ## train and score the quickstart experiment, from nothing, in less than 20 minutes on 2 cores
	$(BIN)/python train.py --config configs/quickstart.yaml $(ARGS)

train: $(CORE) ## train with ARGS="--config configs/NAME.yaml --set key=value --run-dir DIR"
	$(BIN)/python train.py $(ARGS)

edit: $(DEV) ## edit pictures: ARGS="swap|edit|interpolate|grid|encode|app ..." as in docs/editing.md
	@$(BIN)/python -m tcp_tf $(ARGS)

test: $(DEV) ## run the tests, the fast ones first; ARGS goes to pytest
	$(BIN)/python -m pytest $(IN_PARALLEL) -m 'not long' $(ARGS)

test-long: $(DEV) ## run the few tests that take minutes each, which `make test` leaves out
	$(BIN)/python -m pytest $(IN_PARALLEL) -m long $(ARGS)

fuzz: $(DEV) ## feed 20,000 generated inputs to each reader of untrusted bytes; a quarter of an hour
	for target in pictures configurations checkpoints requests; do \
	  $(BIN)/python tests/runners/fuzz_runner.py $$target $(ARGS) || exit 1; \
	done

load: $(DEV) ## half an hour of mixed load on the web page, and half an hour on a server: is memory flat?
	$(BIN)/python tests/runners/page_runner.py $(ARGS)
	SERVING_FUZZ_SECONDS=1800 $(BIN)/python -m pytest tests/test_serving_load.py -k made_up

audit: $(DEV) ## compare the installed packages with PyPI's known vulnerabilities (needs pypi.org itself, not a mirror)
	@$(PIP) 'pip-audit>=2.7,<3'
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/audited.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r $(VENV)/audited.txt $(ARGS)

lint: $(DEV) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV) ## rewrite the source in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quickstart-addons: $(ADDONS) ## the quickstart on TensorFlow 2.15 with rectified Adam of tensorflow-addons
	$(ADDONS_BIN)/python train.py --config configs/quickstart_addons.yaml $(ARGS)

test-addons: $(ADDONS_DEV) $(CORE) ## run the tests on TensorFlow 2.15, and those of crossing over; ARGS goes to pytest
	TCP_TF_OTHER_PYTHON=$(abspath $(BIN)/python) $(ADDONS_BIN)/python -m pytest -rs $(IN_PARALLEL) $(ARGS)

clean: ## delete the environments and caches, not the runs
	rm -rf $(VENV) $(ADDONS_VENV) .pytest_cache .mypy_cache .ruff_cache tcp_tf.egg-info

# An interpreter fits when it starts, is of a version that TensorFlow supports and can make environments.
FITS := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
ADDONS_FITS := import sys, venv, ensurepip; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))

# $(call environment,DIRECTORY,what an interpreter must pass,names of interpreters,versions in words): makes it or keeps it
define environment
if ! $(1)/bin/python -c '$(2)' 2>/dev/null; then \
  found=; \
  for python in $(3); do \
    if "$$python" -c '$(2)' >/dev/null 2>&1; then found=$$python; break; fi; \
  done; \
  if [ -z "$$found" ]; then \
    echo "no Python $(4) with the venv module found (tried: $(3))" >&2; \
    exit 1; \
  fi; \
  echo "making $(1) with $$("$$found" --version)"; \
  "$$found" -m venv --clear $(1); \
fi; \
echo "installing TensorFlow and the other requirements into $(1) (the first time: minutes)"
endef

$(CORE): requirements.txt pyproject.toml
	@set -e; \
	$(call environment,$(VENV),$(FITS),$(or $(PYTHON),python3.11 python3.12 python3.10 python3.13 python3),3.10 to 3.13); \
	$(PIP) -e .; \
	touch $@

# Not the package itself, whose requirements are the other stack's: everything here runs in this directory.
$(ADDONS): requirements-addons.txt
	@set -e; \
	$(call environment,$(ADDONS_VENV),$(ADDONS_FITS),$(or $(PYTHON),python3.11 python3.10 python3.9 python3),3.9 to 3.11); \
	$(ADDONS_BIN)/python $(INSTALL) -r $<; \
	touch $@

$(ADDONS_DEV): $(ADDONS)
	@$(ADDONS_BIN)/python $(INSTALL) \
	  -r requirements-addons.txt 'hypothesis>=6.100,<7' 'pytest>=8.0,<9' 'pytest-xdist>=3.6,<4' 'scikit-image>=0.24,<0.26' 'tensorflow-serving-api>=2.15,<2.16'
	@touch $@

# Everything optional on top: what the tests, the web page, the pipeline and the client need.
$(DEV): $(CORE)
	@echo "installing what the tests need into $(VENV) (the first time: a minute)"
	@$(PIP) -e '.[app,dev,pipeline,serve]'
	@touch $@
