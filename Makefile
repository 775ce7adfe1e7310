# make demo   runs the whole pipeline on the embedded demo corpus; make test passes the tests. Both set themselves up.
# make run STUDY=… runs another study. SEEDS=5 trains every run with five seeds; tables have intervals over them.
# GPU=v100 (a100, h100), with any target, installs a PyTorch with kernels for that GPU, once.
# CPU=avx2, with any target, computes as a CPU without AVX-512, VNNI and bfloat16 would.

VENV      := .venv
ifeq ($(origin PYTHON),undefined)   # looked for once: with ?= each use would start every Python again
PYTHON    := $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
               command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null \
               && { command -v $$p; break; }; done)
endif
# What makes and fills .venv. A Python that the user names has to be the one in .venv; else any that fits will do.
INSTALLER  = $(or $(PYTHON),$(wildcard $(VENV)/bin/python))
INSTALL    = if [ -z "$(INSTALLER)" ]; then \
                 echo "error: no Python 3.11, 3.12, 3.13 or 3.14 found, only $$(python3 --version 2>/dev/null || echo 'no python3'). Install one, e.g."; \
                 echo "       'apt install python3.13 python3.13-venv', or name it: make demo PYTHON=/path/to/python3.13"; exit 1; fi; \
             $(INSTALLER) -c 'import sys; sys.exit(sys.version_info < (3, 7))' >/dev/null 2>&1 || { \
                 echo "error: PYTHON=$(PYTHON) does not run, or is older than 3.7: name a Python 3.11 to 3.14"; exit 1; }; \
             $(INSTALLER) workflow/install.py $(if $(filter file,$(origin PYTHON)),,--chosen) $(if $(findstring command,$(origin GPU)),--gpu $(GPU))
STUDY     ?= demo
CORES     ?= $(shell env -u OMP_NUM_THREADS nproc)
PORT      ?= 6006
STUDIES    = $(sort $(notdir $(basename $(wildcard workflow/config/*.yaml))))
RESULTS   := results/$(STUDY)
SNAKEMAKE  = $(VENV)/bin/snakemake --configfile workflow/config/$(STUDY).yaml --profile workflow/profiles/local --cores $(CORES) \
             $(if $(SEEDS),--config seeds=$(SEEDS))
# Files of tests, one more at a time than there are cores, a thread each: tests wait for processes as much as they compute.
WORKERS   ?= $(shell n=$$(env -u OMP_NUM_THREADS nproc); echo $$((n < 8 ? n + 1 : 9)))
PYTEST     = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
RUFF       = $(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
LINT       = $(VENV)/bin/lint-imports --no-cache && $(VENV)/bin/mypy

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PYTHONUNBUFFERED := 1
# img2dataset's image library would ask the network for a newer version of itself; hubs are not to be asked either.
export NO_ALBUMENTATIONS_UPDATE := 1
# Containers set this often; then each process compiles all that it imports: torch in 3.2 seconds instead of 1.3.
export PYTHONDONTWRITEBYTECODE :=

ifeq ($(origin CPU),command line)
ifneq ($(CPU),avx2)
$(error CPU=$(CPU): only CPU=avx2 is known, which computes as a CPU with AVX2 and nothing newer; without CPU= it is this machine's own)
endif
export ONEDNN_MAX_CPU_ISA := AVX2
export ATEN_CPU_CAPABILITY := avx2
export LATE_INTERACTION_ISA := avx2
endif

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev lock demo run study-exists test test-all size gpu-check lint docs dist clean clean-results \
        dry-run tensorboard snakemake-report

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup:  ## create .venv with what the demo needs; test, lint and docs add their tools
	@$(INSTALL) demo

setup-dev:  ## the same with the development tools
	@$(INSTALL) dev

# For every Python, and all extras but img2dataset, which holds back pandas, OpenCV and webdataset: uv gives it an environment.
# uv reads no pip.conf: UV_DEFAULT_INDEX names another index. PyTorch 2.10's wheel is the last with kernels for a V100 (sm_70).
LOCKED    := data train eval report workflow slurm demo photos export lora all warm marian s3 dev oracles
CHOOSE     = $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --custom-compile-command 'make lock' \
             --no-emit-package late-interaction $(LOCKED:%=--extra %) pyproject.toml
lock: setup-dev  ## choose the newest versions anew: workflow/envs/lock.txt
	@$(CHOOSE) --upgrade --output-file workflow/envs/lock.txt
	@cp workflow/envs/lock.txt workflow/envs/v100.txt
	@echo torch==2.10.0 | $(CHOOSE) --constraint - --output-file workflow/envs/v100.txt

demo:  ## run the whole pipeline, download to report, on the embedded demo corpus
	@if [ "$(STUDY)" != demo ]; then echo "error: make demo runs the demo; the study $(STUDY): make run STUDY=$(STUDY)"; exit 1; fi
	@$(MAKE) --no-print-directory run

run: study-exists setup  ## run any study: make run STUDY=binding
	@echo "== running the study $(STUDY) on $(CORES) cores"
	@$(VENV)/bin/python -m workflow.run $(STUDY) --cores $(CORES) $(if $(SEEDS),--config seeds=$(SEEDS))
	@echo
	@$(VENV)/bin/python -m filip.report.show results=$(RESULTS)
	@echo
	@echo "report    $(RESULTS)/report.html   (all tables: $(RESULTS)/tables/)"
	@test ! -f $(RESULTS)/explore.html || echo "explorer  $(RESULTS)/explore.html   (which word looks at which patch)"
	@test ! -d $(RESULTS)/export || echo "exported  $(RESULTS)/export/   (with the licence in README.md)"
	@echo "curves    make tensorboard STUDY=$(STUDY)"
	@test $(STUDY) != demo || echo 'next      . .venv/bin/activate && filip search docs/scenes "a jellyfish"'

study-exists:
	@if [ ! -f "workflow/config/$(STUDY).yaml" ]; then \
	  echo "error: there is no study '$(STUDY)': no file workflow/config/$(STUDY).yaml. Known: $(STUDIES)"; exit 1; fi

snakemake-report: study-exists setup  ## Snakemake's own report of STUDY: the DAG, run times, and every table and figure as a file
	@$(SNAKEMAKE) --report $(RESULTS)/report-snakemake.html

dry-run: study-exists setup  ## print the steps of STUDY=demo|ablation|base|large and their commands, without running them
	@$(SNAKEMAKE) -n -p
	@$(VENV)/bin/python -m filip.study.check $(STUDY)

tensorboard: setup  ## show the training curves of STUDY=demo in a browser
	@echo "TensorBoard  http://localhost:$(PORT)   (Ctrl-C ends it; another port: make tensorboard PORT=6007)"
	@$(VENV)/bin/tensorboard --logdir $(RESULTS)/runs --port $(PORT)

lint: setup-dev  ## ruff, the floors of imports, mypy
	@$(RUFF)
	@$(LINT)

docs: setup-dev  ## build the documentation into site/; a broken link or a missing reference fails
	@$(VENV)/bin/zensical build --strict --config-file mkdocs.yml
	@echo "documentation  site/index.html   (open it in a browser)"

dist: setup-dev  ## build a wheel of each package into dist/, and check what they hold
	@$(VENV)/bin/uv build -q --wheel --clear --out-dir dist . && $(VENV)/bin/uv build -q --wheel --out-dir dist late-interaction
	@$(VENV)/bin/uvx -q check-wheel-contents --ignore W009 dist/*.whl   # W009: filip_demo and filip_research lie beside filip

# What takes long of the linting runs beside the tests, which take longer; what it finds is told at the end.
# A new .venv has no bytecode: without the first collection every worker compiles what all of them import.
test: setup-dev  ## lint, the tests without a mark and the three commands of `filip new`: up to ten minutes, no root
	@$(RUFF)
	@found=$$(mktemp); ($(LINT)) >$$found 2>&1 & lint=$$!; \
	test -d $(VENV)/lib/python*/site-packages/torch/nn/__pycache__ || \
	  $(VENV)/bin/python -m pytest --collect-only -q >/dev/null 2>&1 || true; \
	$(PYTEST) -m '(not slow and not system) or smoke'; tests=$$?; \
	wait $$lint; lint=$$?; test $$lint = 0 || { echo; cat $$found; echo "error: make lint fails"; }; rm -f $$found; \
	test $$tests = 0 && test $$lint = 0

test-all: test  ## make test, then all other tests; what the machine lacks is skipped, with the command that installs it
	@$(PYTEST) -m '(slow or system) and not smoke'

size: setup-dev  ## files, lines and tokens of each package
	@$(VENV)/bin/python -m bench.size

gpu-check: setup-dev  ## on a machine with a GPU: correctness, speed and trainings, into results/gpu-check
	@$(VENV)/bin/python -m bench.gpu_check out=results/gpu-check device=$(or $(DEVICE),cuda) sizes=$(or $(SIZES),full)

clean:  ## remove caches and the built documentation; .venv and results stay
	@rm -rf site dist .snakemake .cache .pytest_cache .mypy_cache .ruff_cache

clean-results: study-exists  ## remove results/STUDY, trained models included; asks, or CONFIRM=yes
	@if [ ! -d "$(RESULTS)" ]; then echo "there is nothing at $(RESULTS)"; exit 0; fi; \
	if [ "$(CONFIRM)" != yes ]; then \
	  printf 'Remove %s (%s), its trained models included? Type yes: ' "$(RESULTS)" "$$(du -sh "$(RESULTS)" | cut -f1)"; \
	  read -r answer || true; [ "$$answer" = yes ] || { echo; echo "error: nothing was removed; without asking: make clean-results STUDY=$(STUDY) CONFIRM=yes"; exit 1; }; fi; \
	rm -rf "$(RESULTS)"
