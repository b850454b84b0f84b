# `make demo` and `make test` need Python 3.11+ and nothing else: they make .venv and install from PyPI.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do $$p -c 'import sys; sys.exit(not (3,11)<=sys.version_info[:2]<(3,14))' 2>/dev/null && { command -v $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALL = ./.ci/install.sh "$(PYTHON)" $(VENV)
# a machine that is new knows no packages; one that is offline may have them all
APT = { apt-get update -qq || true; } && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends

.PHONY: help settings-pages install install-dev demo test test-slow test-calibration test-ceph test-clusters test-clusters-quick test-containers test-ui test-triton test-tensorrt lint clean

help:
	@echo "make demo       install, then the whole graph on simulated data: runs/demo"
	@echo "make test       install, then the test suite (about 25 minutes on 2 cores)"
	@echo "make test-slow  the tests that take longer (faults injected into whole runs)"
	@echo "make test-calibration  are false-alarm rates what they say (6 minutes); prints the figures"
	@echo "make test-ceph  as root: installs Ceph from Debian, and tests the store on its S3 gateway (minutes)"
	@echo "make test-clusters  as root: installs SLURM and an ssh server from Debian, then every test of steps as batch jobs"
	@echo "make test-clusters-quick  of these, success, retry, kill and cancel; needs the packages in .ci/packages"
	@echo "make test-containers  as root: installs podman from Debian, builds the images' recipes and the cpu image (20 GB of disk)"
	@echo "make test-ui  as root: installs Chromium from Debian, makes the demo, then looks at its pages; screenshots in build/ui"
	@echo "make test-triton  installs NVIDIA's Triton server from PyPI and tests searches on it"
	@echo "make test-tensorrt  installs NVIDIA's TensorRT-RTX (95 MB) and has its parser and builder accept the networks"
	@echo "make settings-pages  writes the generated part of docs/settings.md and docs/site-settings.md"
	@echo "make lint       ruff"
	@echo "make clean      removes .venv and runs/demo"

$(BIN)/.installed: pyproject.toml constraints.txt .ci/install.sh
	$(INSTALL) "." && touch $@

$(BIN)/.installed-dev: pyproject.toml constraints.txt .ci/install.sh
	$(INSTALL) ".[dev]" && touch $@ $(BIN)/.installed

install: $(BIN)/.installed
install-dev: $(BIN)/.installed-dev

demo: install
	$(BIN)/aframe init runs/demo --preset demo
	$(BIN)/aframe run runs/demo

# a worker that dies ends the tests: with another in its place pytest-xdist's loadscope waits for ever at the end
test: install-dev
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --max-worker-restart 0

test-slow: install-dev
	$(BIN)/python -m pytest -m slow

test-calibration: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or not slow" -rP tests/sensitivity/test_sensitivity_calibration*.py

test-ceph: install-dev
	$(APT) ceph-mon ceph-osd radosgw >/dev/null
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ceph $(BIN)/python -m pytest -rP tests/store

test-clusters: install-dev
	$(APT) $$(sed 's/#.*//' .ci/packages) slurmdbd mariadb-server postgresql openssh-server >/dev/null
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m clusters tests/clusters

test-clusters-quick: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m quick tests/clusters

test-containers: install-dev
	$(APT) podman buildah runc catatonit fuse-overlayfs debootstrap >/dev/null
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m containers -rP tests/containers

test-ui: install-dev demo
	command -v chromium >/dev/null || { $(APT) chromium; } >/dev/null
	$(INSTALL) ".[dev,ui]"
	AFRAME_UI_RUN=runs/demo OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ui tests/ui

# the server's environment is beside this project's: it needs another numpy
test-triton: export AFRAME_TRITON_ENV ?= $(CURDIR)/.venv-triton
test-triton: install-dev
	$(BIN)/aframe serve --install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m triton -rP tests/triton

# TensorRT itself is on no package index; this one builds without a GPU, and is kept out of the environment
test-tensorrt: install-dev
	$(BIN)/python -m pip install -q --no-deps --target .tensorrt-rtx --upgrade tensorrt-rtx-cu13-libs==1.7.1.116 tensorrt-rtx-cu13-bindings==1.7.1.116
	PYTHONPATH=.tensorrt-rtx OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m tensorrt -rP -p no:logging tests/engine

settings-pages: install
	sed -i '/^<!-- generated/q' docs/settings.md
	sed -i '/^<!-- generated/q' docs/site-settings.md
	(echo; $(BIN)/aframe config keys --markdown) >> docs/settings.md
	(echo; $(BIN)/aframe config keys --site --markdown) >> docs/site-settings.md

lint: install-dev
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) .tensorrt-rtx .venv-triton .venv-triton.lock runs/demo
