# Shallop's commands. `make demo` shows the main job, `make test` proves it; both install what they
# need into .venv and nothing anywhere else (a test that needs a Debian package says so first).
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLD := .venv-tflite-runtime

.PHONY: help setup setup-dev tflite-runtime demo check format test test-full test-arm fuzz bench bench-converter bench-tflite bench-delta bench-memory clean system-packages arm-packages wheels deb

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

# Debian packages that tests need: the broker, the browser that the report is looked at with, a compiler with
# FUSE for the crash and power-cut matrices (docs/crash-safety.md), and what boots a machine with a systemd of
# its own. As root they are installed, saying so; otherwise their tests are skipped by name with the command
# that brings them.
system-packages:
	@missing=""; \
	command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] || missing="$$missing mosquitto"; \
	command -v mosquitto_pub >/dev/null || missing="$$missing mosquitto-clients"; \
	command -v sqlite3 >/dev/null || missing="$$missing sqlite3"; \
	command -v openssl >/dev/null || missing="$$missing openssl"; \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing="$$missing chromium"; \
	command -v gcc >/dev/null || missing="$$missing gcc libc6-dev"; \
	command -v strace >/dev/null || missing="$$missing strace"; \
	command -v mkfs.ext4 >/dev/null || [ -x /usr/sbin/mkfs.ext4 ] || missing="$$missing e2fsprogs"; \
	{ command -v pkg-config >/dev/null && pkg-config --exists fuse3; } || missing="$$missing pkg-config libfuse3-dev fuse3"; \
	command -v systemd-nspawn >/dev/null || missing="$$missing systemd-container"; \
	command -v shellcheck >/dev/null || missing="$$missing shellcheck"; \
	command -v dbus-daemon >/dev/null || missing="$$missing dbus"; \
	[ -x /usr/lib/polkit-1/polkitd ] || missing="$$missing polkitd"; \
	/usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing what tests need (apt-get install$$missing) ..."; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "not installed, their tests will be skipped: sudo apt-get install$$missing"; fi

test: setup-dev system-packages tflite-runtime ## Run every kind of test, the big matrices as a seeded sample
	@$(BIN)/python -m pytest -q -n 2 -m 'not arm'

# What brings a Raspberry Pi's processor and file system to this machine.
arm-packages:
	@if command -v mmdebstrap >/dev/null && { command -v qemu-aarch64-static || command -v qemu-aarch64; } >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing for the tests on ARM (apt-get install qemu-user-static mmdebstrap debian-archive-keyring) ..."; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user-static mmdebstrap debian-archive-keyring >/dev/null; \
	else echo "not installed, the tests will be skipped: sudo apt-get install qemu-user-static mmdebstrap debian-archive-keyring"; fi

test-arm: setup-dev system-packages arm-packages ## The agent as aarch64 processes on an emulated Raspberry Pi 4 and 5
	@$(BIN)/python -m pytest -q -m arm tests/arm

# Half an hour on two cores. As root and with loop devices it cuts the power, too; else that part is skipped.
test-full: setup-dev system-packages tflite-runtime ## Every test, the big matrices as a whole
	@$(BIN)/python -m pytest -q -n 2 -m 'not arm' --full

FUZZ_S ?= 60
fuzz: setup-dev ## Fuzz every reader of bytes from outside (FUZZ_S=60 seconds for each, FUZZ=part of its name)
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_S) $(FUZZ)

wheels: $(BIN)/python ## Fill dist/wheels for machines without a network (ARCH=aarch64 PY=3.11 EXTRAS=onnx)
	@BUILDER=$(BIN)/python systemd/wheels.sh $(if $(ARCH),--arch $(ARCH)) $(if $(PY),--python $(PY)) $(if $(EXTRAS),--extras $(EXTRAS)) dist/wheels

deb: $(BIN)/python ## A Debian package of the agent in dist (ARCH=aarch64 PY=3.11 RUNTIME=onnx)
	@BUILDER=$(BIN)/python systemd/deb.sh $(if $(ARCH),--arch $(ARCH)) $(if $(PY),--python $(PY)) $(if $(RUNTIME),--runtime $(RUNTIME)) dist

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
	rm -rf $(VENV) $(OLD) dist .arm .demo .bench .fuzz .mypy_cache .ruff_cache .pytest_cache .hypothesis
