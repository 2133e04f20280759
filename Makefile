# make demo    the environment, then the main job on the embedded model
# make test    the environment, then the tests (minutes)
# make test-slow  those that take longer, alone
# make test-all   both
# make test-image  the image of infra/docker, built and run (podman, buildah, runc, mmdebstrap, root)
# make server-up  the servers of infra/stacks/server.yaml on this machine; make server-down ends them

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export BIPLINE_DATA ?= $(abspath ../shared/data)
# Two test workers of one thread each; a worker that took all cores would wait for the other.
WORKERS ?= 2
# The slow ones often wait, for servers and for programs they start.
SLOW_WORKERS ?= 3
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
APART := $(PIP) --no-deps --upgrade --target
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-slow test-all test-image check environment server-up server-down clean

demo: environment
	$(BIN)/bipline demo

test: environment
	$(PYTEST) -m "not slow and not alone"

test-slow: WORKERS := $(SLOW_WORKERS)
test-slow: environment
	$(PYTEST) -m "slow and not alone"

# Both in one go: modules with quick and slow tests make what these share once.
test-all: WORKERS := $(SLOW_WORKERS)
test-all: environment
	$(PYTEST) -m "not alone"

test-image: environment
	$(PYTEST) -n 0 -s -m alone

check: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# PostgreSQL, MLflow, an S3 endpoint and ZenML's server on this machine, for infra/stacks/server.yaml.
server-up: environment
	$(BIN)/python -m infra.stacks.server up .bipline-server

server-down:
	$(BIN)/python -m infra.stacks.server down .bipline-server

environment: $(VENV)/installed

# kfp pins older libraries than the rest takes, so it lies in a folder that only its own processes
# find; so do the libraries of ZenML's server. All three are installed at once.
$(VENV)/installed: pyproject.toml constraints.txt infra/kubeflow/requirements.txt \
		infra/stacks/server-requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(APART) $(VENV)/kubeflow --requirement infra/kubeflow/requirements.txt & kubeflow=$$!; \
	$(APART) $(VENV)/server --requirement infra/stacks/server-requirements.txt & server=$$!; \
	$(PIP) --constraint constraints.txt --editable ".[all,dev]" && wait $$kubeflow && wait $$server
	touch $@

clean:
	rm -rf .bipline build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
