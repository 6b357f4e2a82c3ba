# Every target makes its own environment in .venv first; nothing else has to be done.
#   make demo      the main job on the bundled model, in minutes, with a table
#   make test      every test but the longest
#   make test-all  every test
#   make check     style, types and import directions
#   make faults    long commands killed, starved and interrupted, files damaged: SECONDS=300 SEED=0
#   make fuzz      every parser with many odd inputs: EXAMPLES=2000
#   make screenshots   the pictures of docs/report.md, from the demo's report in Chromium
#   make bench     speed beside the peers' way and the limit
# TORCH=keep uses the torch that PYTHON already has and leaves it as it is.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= pinned
PY := $(VENV)/bin/python
SECONDS ?= 300
SEED ?= 0
EXAMPLES ?= 2000
READY := $(VENV)/.ready-$(TORCH)
PIP := $(PY) -m pip -qq --disable-pip-version-check --no-input
# Its metadata asks for torchvision, which it never imports, and for a requests of 2021, which nothing else here accepts.
ATTACKS := --no-deps torchattacks==3.5.1

export PYTHONUNBUFFERED = 1
export TOKENIZERS_PARALLELISM = false
# Many tests start processes, each of which would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-all check bench faults fuzz screenshots clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

install: $(READY)

demo: $(READY)
	@echo "==> keylayers demo"
	@$(PY) -m keylayers demo

test: $(READY)
	@$(PY) -c 'import sys; from tests.report.browser import chromium; sys.exit(not chromium())' \
	  || echo "==> no Chromium on this machine: tests/report/test_browser.py is skipped (apt-get install chromium)"
	@echo "==> pytest, two processes"
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist worksteal $(ARGS)

test-all: ARGS += -m "long or not long"
test-all: test

check: $(READY)
	@echo "==> ruff check" && $(PY) -m ruff check .
	@echo "==> ruff format --check" && $(PY) -m ruff format --check .
	@echo "==> mypy" && $(PY) -m mypy
	@echo "==> lint-imports" && $(VENV)/bin/lint-imports --no-logo

faults: $(READY)
	@echo "==> faults, $(SECONDS) seconds of them"
	@$(PY) -m faults --seconds $(SECONDS) --seed $(SEED) --page docs/faults.md

fuzz: $(READY)
	@echo "==> fuzzing"
	@EXAMPLES=$(EXAMPLES) OMP_NUM_THREADS=1 $(PY) -m pytest -q tests/fuzz --hypothesis-profile=fuzz

bench: $(READY)
	@echo "==> benchmarks"
	@$(PY) -m benchmarks

screenshots: $(READY)
	@echo "==> screenshots of the demo's report"
	@$(PY) -m tests.report.screenshots runs/demo

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# An environment made for the other kind of torch is made anew; one that is up to date costs nothing.
$(VENV)/.ready-pinned: pyproject.toml constraints.txt
	@echo "==> making $(VENV) with $$($(PYTHON) --version 2>&1)"
	@$(PYTHON) -c 'import sys; sys.exit("keylayers needs Python 3.10 or later: make PYTHON=/path/to/it ..." if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -m venv $$(test -e $(VENV)/.ready-keep && echo --clear) $(VENV)
	@echo "==> installing torch, transformers, peft, trl and the rest (one to three minutes, about 2 GB)"
	@$(PIP) install -c constraints.txt -e '.[dev,quant]'
	@$(PIP) install $(ATTACKS)
	@touch $@

$(VENV)/.ready-keep: pyproject.toml
	@echo "==> making $(VENV) over $$($(PYTHON) --version 2>&1) and the torch it has"
	@$(PYTHON) -c 'import sys; sys.exit("keylayers needs Python 3.10 or later: make PYTHON=/path/to/it ..." if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -m venv $$(test -e $(VENV)/.ready-pinned && echo --clear) --system-site-packages $(VENV)
	@$(PY) -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' > $(VENV)/torch.txt 2>/dev/null \
	  || { echo "TORCH=keep: no torch beside $(PYTHON); give PYTHON= the interpreter that has it (not one in a virtual environment)"; exit 2; }
	@echo "==> keeping $$(cat $(VENV)/torch.txt); installing what else is missing"
	@$(PIP) install --retries 1 --timeout 20 -c $(VENV)/torch.txt -e '.[dev,quant]' 2> $(VENV)/pip.log \
	  || { grep -m 1 ERROR $(VENV)/pip.log; echo "==> no packages could be installed: using only what this machine has"; \
	       pwd > "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/keylayers.pth"; }
	@$(PIP) install --retries 1 --timeout 20 $(ATTACKS) 2> /dev/null || echo "==> without torchattacks"
	@touch $@
