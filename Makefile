# make help lists the targets. Everything lives in .venv; a target sets it up first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
UV := $(BIN)/uv
DEMO := outputs/demo
PEERS := outputs/peers

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-wheel test-all test-slurm test-cuda lint format typecheck check resolution lock docs bench endurance clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with the locked versions (skipped when nothing changed)

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Setting up $(VENV): once, a few minutes, mostly the download of torch"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5,<1'
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup ## Embed and evaluate a few bundled voices, end to end, and write a page to look at
	@$(BIN)/balr extract resources/demo/metadata.csv embeddings/model=demo --force --save-dir $(DEMO)
	@$(BIN)/balr evaluate $(DEMO) resources/demo/trials.csv
	@echo "page     $$($(BIN)/balr report $(DEMO))"

test: setup ## Run the default tests, two at a time
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-wheel: setup ## Build the wheel, install it and run it from another folder
	$(BIN)/python -m pytest -m slow tests/test_commands.py -k wheel

test-all: setup ## Run all tests, slow ones too, that this machine can run
	$(BIN)/python -m pytest -m ''

test-slurm: setup ## Run the tests on a SLURM cluster of this machine (Debian, root; about 5 minutes)
	@command -v slurmctld munged >/dev/null || apt-get install --yes --quiet slurm-wlm munge
	$(BIN)/python -m pytest -m slurm

test-cuda: setup ## Run the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m cuda

lint: setup ## Check style and format
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

typecheck: setup ## Check types
	$(BIN)/mypy

check: lint typecheck test ## Lint, types and default tests

resolution: setup ## Check that an install without the lock gets torch and torchaudio that fit together
	$(BIN)/python -m pytest -m network tests/test_resolution.py

lock: setup ## Write requirements.lock anew from pyproject.toml
	$(UV) pip compile pyproject.toml --quiet --extra dev --universal --python-version 3.11 --upgrade \
		--no-header --no-annotate --no-emit-index-url --output-file requirements.lock

docs: setup ## Build the documentation site into site/, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup ## Measure speed beside its peers, about 40 minutes, and write docs/benchmarks.md
	@for library in onnxruntime pyannote.audio sherpa-onnx speechbrain; do \
		$(UV) venv --quiet --allow-existing --python $(BIN)/python $(PEERS)/$$library && \
		$(UV) pip install --quiet --python $(PEERS)/$$library/bin/python \
			$$library soundfile 'torch==2.11.*' 'torchaudio==2.11.*' || \
		{ echo "$$library cannot be installed and is left out"; rm -rf $(PEERS)/$$library; }; \
	done
	PYTHONPATH=tests $(BIN)/python scripts/bench.py --peers $(PEERS) --write docs/benchmarks.md

endurance: setup ## Measure memory, resume and the cost of flushing in bulk, about 30 minutes
	PYTHONPATH=tests $(BIN)/python scripts/endurance.py outputs/endurance

clean: ## Remove .venv and caches, keep outputs
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
