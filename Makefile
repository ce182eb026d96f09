# Everything a newcomer runs; `make help` lists it. Needs Python 3.11 or newer with pip, and make.

SHELL := /bin/bash
PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed
VLLM := .venv-vllm/.installed
# tests that take minutes each
SLOW := $(addprefix tests/pipeline/test_,kernels.py families.py recipes.py pipeline.py) tests/playground/test_browser.py

# DVC's stages call `python`: let it be the environment's.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help repository venv fetch repro quick site archive bench setup-vllm test test-slow test-vllm test-all lint play lab clean

help: ## this list
	@echo "make TARGET [MODELS='a b'] [PYTHON=python3.12] [PIP_FLAGS='--extra-index-url ...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

repository:
	@git rev-parse HEAD >/dev/null 2>&1 || { echo "This folder is not a git repository with a commit (a downloaded zip" \
	  "has none), and DVC needs one: install git, clone the repository, or make one here with" \
	  "'git init && git add . && git commit -m start'." >&2; exit 1; }

venv: $(INSTALLED) ## make .venv with the pinned dependencies and this package

$(INSTALLED): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "Python %d.%d is too old: install 3.11 or newer, or name it, as in make PYTHON=python3.12." % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the pinned packages of requirements.lock: a few minutes."
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

fetch: venv ## fetch models and check them, as in make fetch MODELS="a b"; ids are in data/models.yaml
	@test -n "$(MODELS)" || { echo 'Name the models, as in make fetch MODELS="smollm2-135m".'; exit 1; }
	@for model in $(MODELS); do $(BIN)/python -m esr.pipeline.run fetch --model $$model || exit 1; done
	$(BIN)/esr check $(MODELS)

repro: repository venv ## run the study, of other models with MODELS="a b": what is not up to date, then numbers beside the committed
	$(if $(MODELS),$(BIN)/esr select $(MODELS))
	@$(BIN)/esr plan --changed --over 15
	$(BIN)/python -m esr.pipeline.kernels $(BIN)/dvc repro
	$(BIN)/python -m esr.reporting.tables compare

quick: repository venv ## run the study at scale smoke, in minutes; overwrites numbers, figures and executed notebooks
	$(BIN)/python -m esr.pipeline.kernels $(BIN)/dvc exp run --set-param scale=smoke
	@echo "This was scale smoke. To go back: git restore params.yaml dvc.lock paper notebooks/executed && .venv/bin/dvc checkout"

site: venv ## the site in site/: notebooks, figures, claims, and pages of the responses that are in data/
	$(BIN)/python -m esr.publishing.site

archive: venv ## responses, judgements and intermediates of the finished study in one file with checksums, dist/esr-data.tar.gz
	$(BIN)/python -m esr.publishing.archive make
	$(BIN)/python -m esr.publishing.readme

bench: repository venv ## time the engine beside transformers and vLLM on the same trials: ten minutes on two free cores
	$(BIN)/dvc repro fetch
	$(BIN)/python -m benchmarks.run

setup-vllm: $(VLLM) ## make .venv-vllm with vLLM for CPUs and vllm-lens, for `backend: vllm` and `make bench`: 3.4 GB; on GPUs see docs/vllm.md

$(VLLM): vllm-requirements.txt
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@echo "Installing the pinned packages of $<: a few minutes."
	.venv-vllm/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS) --no-deps --ignore-requires-python -r $<
	touch $@

test: venv ## the tests one waits for: science, exact edits, every notebook on a tiny replica; two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile $(addprefix --ignore ,$(SLOW))

test-slow: venv ## what takes longer: forked kernels, replicas of the published models, the README's recipes, the pipeline at scale smoke; ends at the first failure
	$(BIN)/python -m pytest -x $(SLOW)

test-vllm: venv $(VLLM) ## the contract of both backends on vLLM, and what must not pass it unsteered; minutes
	ESR_TEST_VLLM=1 $(BIN)/python -m pytest -s tests/engine/test_vllm.py

test-all: test test-slow ## both

lint: venv ## check style, formatting, types, imports, and that notebooks are stripped of outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/nbstripout --verify --keep-id $(wildcard notebooks/*.ipynb benchmarks/*.ipynb)

play: venv ## open the playground as a page without code: steer a model and read what it writes
	$(BIN)/voila notebooks/playground.ipynb

lab: venv ## open JupyterLab with the notebooks
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

clean: ## remove .venv, .venv-vllm, unfinished work, downloaded wheels and tool caches; results and judges' replies stay
	test ! -d .cache || find .cache -mindepth 2 -maxdepth 2 ! -path .cache/esr/judgements -exec rm -rf {} +
	rm -rf .venv .venv-vllm .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
