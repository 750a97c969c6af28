# `make demo` and `make test` work on a fresh machine with Python 3.11, pip and make.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Two OpenMP threads that wait for each other by spinning cost more than they bring on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE

OLDEST := .venv-oldest

# Of `make gpu`: where results go, and seconds.
OUT ?= work_dirs/gpu
DEADLINE ?= 330

.PHONY: help demo test test-fast test-slow test-hostile test-oldest gpu lint format clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(READY): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev]'
	# imaug, which mmdet imports, brings both OpenCV wheels into one folder: the headless one, which needs no
	# graphics libraries of the system, must be the one written last.
	$(BIN)/python -m pip install --force-reinstall --no-deps 'opencv-python-headless<4.13'
	touch $@

demo: $(READY)  ## train, test, draw and export a detector and a segmentor on real digits
	$(BIN)/attnzoo demo

test: $(READY)  ## the test suite, one process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test-fast: $(READY)  ## of each test that is quick the first case
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --fast

test-slow: $(READY)  ## what takes minutes
	$(BIN)/python -m pytest -m slow

$(OLDEST)/.ready: setup.cfg tests/oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --editable '.[dev]' --constraint tests/oldest.txt
	$(OLDEST)/bin/python -m pip install --force-reinstall --no-deps 'opencv-python-headless<4.13'
	touch $@

test-oldest: $(OLDEST)/.ready  ## contract, golden, adapter, checkpoint and export tests at the lowest versions
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n auto --dist worksteal tests/backbones tests/heads \
		tests/kernels tests/test_package.py tests/tools/running/test_checkpoint.py tests/tools/test_export.py

test-hostile: $(READY)  ## thousands of hostile inputs, drawn at random
	rm -f work_dirs/hostile.jsonl && mkdir -p work_dirs
	ATTNZOO_CAMPAIGN=whole ATTNZOO_CAMPAIGN_REPORT="$(CURDIR)/work_dirs/hostile.jsonl" OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n auto --timeout=5400 tests/hostile
	cat work_dirs/hostile.jsonl

gpu:  ## check, time and tune the kernels on a GPU, with nothing installed but PyTorch, Triton and timm
	mkdir -p .site && ln -sfn "$(CURDIR)" .site/attnzoo
	PYTHONPATH="$(CURDIR)/.site" PYTHONUNBUFFERED=1 TRITON_CACHE_DIR="$(CURDIR)/.triton" \
		$(PYTHON) -m attnzoo gpu --out "$(OUT)" --deadline $(DEADLINE)

lint: $(READY)  ## ruff's format and lint, mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	# mypy wants the root under the package's name.
	mkdir -p .venv/typing && ln -sfn "$(CURDIR)" .venv/typing/attnzoo
	MYPYPATH=.venv/typing $(BIN)/mypy --package attnzoo

format: $(READY)  ## let ruff rewrite
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## the environment and what was built
	rm -rf .venv .venv-oldest .site .triton build dist *.egg-info work_dirs
