# Shallop's commands. `make demo` shows the main job, `make test` proves it; both install what they
# need into .venv and nothing anywhere else (a test that needs a Debian package says so first).
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLD := .venv-tflite-runtime

.PHONY: help setup setup-dev tflite-runtime demo check format test test-full bench bench-converter bench-tflite bench-delta bench-memory clean system-packages

help: ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 18

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing: apt-get install python3 python3-venv"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Shallop needs Python 3.11 or newer, this is $$($(PYTHON) -V); name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "python3-venv is missing: apt-get install python3-venv"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'

$(VENV)/.setup: pyproject.toml | $(BIN)/python
	@echo "Installing Shallop and its runtime libraries into $(VENV) (nothing global) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[onnx,converter,fleet,broker]'
	@touch $@

$(VENV)/.setup-dev: pyproject.toml $(VENV)/.setup
	@echo "Installing the tools that test and check it into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group dev
	@touch $@

setup: $(VENV)/.setup ## Install Shallop into .venv

setup-dev: $(VENV)/.setup-dev ## The same with the development tools

# What its tests start trials in, as a device does that has it: it needs numpy 1 and Python 3.11.
$(OLD)/.setup: pyproject.toml $(VENV)/.setup-dev
	@echo "Installing tflite-runtime, with the numpy 1 that it needs, into $(OLD) ..."
	@$(BIN)/python -m venv $(OLD)
	@$(OLD)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(OLD)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[onnx,tflite-runtime]'
	@touch $@

tflite-runtime: setup-dev ## An environment for the tests of tflite-runtime, where Python is 3.11
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; \
	then $(MAKE) -s --no-print-directory $(OLD)/.setup; \
	else echo "tflite-runtime ends with Python 3.11, this is $$($(BIN)/python -V): its tests will be skipped"; fi

demo: setup ## Run the main job: convert, roll out, refuse a bad release, roll back
	@$(BIN)/python -m examples.demo

check: setup-dev ## Lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup-dev ## Let ruff put the files in order
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

# Two Debian packages that tests need: the broker, and the browser that the report is looked at with.
# As root they are installed, saying so; otherwise their tests are skipped by name with the command
# that brings them.
system-packages:
	@missing=""; \
	command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] || missing="$$missing mosquitto"; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing="$$missing chromium"; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing for the tests of broker and report (apt-get install$$missing) ..."; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "not installed, their tests will be skipped: sudo apt-get install$$missing"; fi

test: setup-dev system-packages tflite-runtime ## Run every kind of test, the big matrices as a seeded sample
	@$(BIN)/python -m pytest -q -n 2

bench: setup-dev system-packages ## Measure, print JSON
	@$(BIN)/python -m bench

bench-converter: setup-dev ## The converter beside onnxruntime and NNCF (SHARED=folder of the models)
	@$(BIN)/python -m bench.converter $(if $(SHARED),--shared $(SHARED)) $(if $(MINILM),--minilm $(MINILM))

bench-tflite: setup-dev ## The TFLite twin beside onnx2tf and litert-quantizer (SHARED=folder of the models)
	@$(BIN)/python -m bench.tflite $(if $(SHARED),--shared $(SHARED)) $(if $(TOOLS),--environments $(TOOLS))

bench-delta: setup-dev ## Deltas beside zstd, bsdiff, xdelta3 and casync (SHARED=folder of the models, TORCH=its Python)
	@$(BIN)/python -m bench.delta $(if $(SHARED),--shared $(SHARED)) $(if $(TORCH),--torch $(TORCH))

bench-memory: setup-dev ## Peak memory of a conversion's calibration, 50 samples against 2,000
	@$(BIN)/python -m bench.calibration_memory

clean: ## Remove what the targets made
	rm -rf $(VENV) $(OLD) .demo .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis
