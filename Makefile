PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUICK := not ray and not s3 and not slow and not gpu and not cluster
# tests/marks.py says how many processes, and divides the tests among them; --no-loadscope-reorder: in its order
PYTEST := $(BIN)/python -m pytest -n auto --no-loadscope-reorder --durations 20 --durations-min 1
# hundreds of processes import this code, and each would compile it
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install check lint test test-cluster simulate demo screenshots serve clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.compiled  ## make .venv with the pinned dependencies

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; call make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[demo,test]'
	@touch $@

# on all CPUs, where pip would use one, and without the packages' own tests; a file that this Python cannot read is left
$(VENV)/.compiled: $(VENV)/.installed
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
	@touch $@

check: install lint  ## lint, and all tests that need no Ray, S3 server, GPU or patience: for use while you write
	$(PYTEST) -q -m '$(QUICK)'

lint: $(VENV)/.installed  ## check rules and format (ruff) and types (mypy, strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install  ## run all tests but those of test-cluster (what needs root, Ceph, a GPU or data skips where it is absent)
	$(PYTEST) -m 'not cluster'

test-cluster: install  ## disturb a cluster of four nodes on this machine in every way: killed, cut off, taken back, full
	$(BIN)/python -m pytest tests/ray_jobs/nodes

SEEDS ?= 1000
FIRST ?= 0
simulate: install  ## simulate SEEDS=1000 nights with faults, from seed FIRST=0; a seed that fails replays exactly
	OMP_NUM_THREADS=1 $(BIN)/python -m simulation --first $(FIRST) --seeds $(SEEDS)

demo: install  ## index Python's own documentation, serve it, ask three questions, stop everything (KEEP=1: serve on)
	$(BIN)/python -m demo.run_demo

screenshots: install  ## take the pictures of the pages for docs/, with the demo's data; needs chromium
	$(BIN)/python -m demo.screenshots docs

serve: install  ## serve the demo's store until interrupted
	$(BIN)/dpr serve .demo/store

clean:  ## remove the environment, the demo's store and caches
	rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
