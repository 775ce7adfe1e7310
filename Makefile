# make demo   runs the whole pipeline on the embedded demo corpus; make test passes the tests. Both set themselves up.
# make demo SEEDS=3 adds two more seeds of every run, and tables with intervals over them. STUDY=… runs another study.

VENV      := .venv
PYTHON    ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
               command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
               && { command -v $$p; break; }; done)
STUDY     ?= demo
CORES     ?= $(shell nproc)
PORT      ?= 6006
RESULTS   := results/$(STUDY)
SNAKEMAKE  = $(VENV)/bin/snakemake --configfile workflow/config/$(STUDY).yaml --profile workflow/profiles/local --cores $(CORES) \
             $(if $(SEEDS),--config seeds=$(SEEDS))
# Two files of tests at a time, a thread each: most tests wait for processes longer than they compute.
PYTEST_TWO = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONUNBUFFERED := 1
# img2dataset's image library would ask the network for a newer version of itself; hubs are not to be asked either.
export NO_ALBUMENTATIONS_UPDATE := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-quick gpu-check lint docs clean dry-run tensorboard snakemake-report

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## create .venv and install the project with its development tools

$(VENV)/.installed: pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
	  echo "error: no Python 3.11, 3.12 or 3.13 found."; \
	  echo "       Found: $$(python3 --version 2>/dev/null || echo no python3). Install one, e.g. 'apt install python3.11 python3.11-venv'"; \
	  echo "       or 'uv python install 3.12', or name it: make demo PYTHON=/path/to/python3.12"; exit 1; fi
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no venv module; install it, e.g. 'apt install python3-venv'"; exit 1; }
	@echo "== creating $(VENV) with $(PYTHON) and installing (about 2 GB, a few minutes)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar off -q -e '.[dev]'
	@touch $@

demo: setup  ## run the whole pipeline, download to report, on the embedded demo corpus
	@echo "== running the study $(STUDY) on $(CORES) cores"
	@$(SNAKEMAKE)
	@echo
	@$(VENV)/bin/python -m filip.report.show results=$(RESULTS)
	@echo
	@echo "report       $(RESULTS)/report.html"
	@test ! -f $(RESULTS)/explore.html || echo "explorer     $(RESULTS)/explore.html   (which word looks at which patch: open it in a browser)"
	@echo "tables       $(RESULTS)/tables/"
	@echo "TensorBoard  $(RESULTS)/runs   (look at it with: make tensorboard)"

snakemake-report: setup  ## Snakemake's own report of STUDY: the DAG, run times, and every table and figure as a file
	@$(SNAKEMAKE) --report $(RESULTS)/report-snakemake.html

dry-run: setup  ## print the DAG of STUDY=demo|ablation|base|large without running it
	@$(SNAKEMAKE) -n

tensorboard: setup  ## show the training curves of STUDY=demo in a browser
	@echo "TensorBoard  http://localhost:$(PORT)   (Ctrl-C ends it; another port: make tensorboard PORT=6007)"
	@$(VENV)/bin/tensorboard --logdir $(RESULTS)/runs --port $(PORT)

lint: setup  ## ruff, mypy and snakemake --lint
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy
	@$(SNAKEMAKE) --lint

docs: setup  ## build the documentation into site/; a broken link or a missing reference fails
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

test: setup lint  ## all checks and tests (two files of tests at a time)
	@$(VENV)/bin/python -m bench.browser
	@$(PYTEST_TWO) --ignore=tests/cluster
	@$(VENV)/bin/python -m pytest tests/cluster   # alone: its Slurm and its network names are those of the machine

test-quick: setup  ## only the tests that start no processes
	@$(PYTEST_TWO) -m 'not slow'

gpu-check: setup  ## on a machine with a GPU: correctness, speed, memory and trainings, into results/gpu-check (two hours)
	@$(VENV)/bin/python -m bench.gpu_check out=results/gpu-check

clean:  ## remove results and caches, keep .venv
	@rm -rf results site .snakemake .cache .pytest_cache .mypy_cache .ruff_cache
