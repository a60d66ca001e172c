# `make demo` and `make test` need Python 3.11+, a C++17 compiler and the package registries.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)

# What pip builds the extension with is pinned as well.
PIP := PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: help demo test lint format bench noise-learning tables tiny-models clean
help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of extras; a larger set holds the smaller ones.
$(VENV)/.demo: $(SOURCES) | $(BIN)/python
	$(PIP) -e ".[cpu,eval]"
	@touch $@

$(VENV)/.test: $(SOURCES) | $(BIN)/python
	$(PIP) -e ".[test]"
	@touch $(VENV)/.demo $@

$(VENV)/.dev: $(SOURCES) | $(BIN)/python
	$(PIP) -e ".[dev]"
	@touch $(VENV)/.demo $(VENV)/.test $@

demo: $(VENV)/.demo ## Install, then retrieve, rerank and answer over drawn pictures
	$(BIN)/ragvl demo

test: $(VENV)/.test ## Install, then run the test suite
	$(BIN)/pytest

lint: $(VENV)/.dev ## ruff, mypy on the package, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror csrc/*

format: $(VENV)/.dev ## Format every source file
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*

bench: $(VENV)/.dev ## Measure what the README's tables say, into benchmarks/results
	$(BIN)/python benchmarks/bench_relevance_head.py
	$(BIN)/python benchmarks/bench_prefix_attention.py
	$(BIN)/python benchmarks/bench_diffusion_noise.py
	$(BIN)/python benchmarks/bench_visual_weighted_cross_entropy.py
	$(BIN)/python benchmarks/bench_training_step.py
	$(BIN)/python benchmarks/bench_fast_rerank.py
	$(BIN)/python benchmarks/bench_prefix_cache.py
	$(BIN)/ragvl demo --json benchmarks/results/demo.json --no-progress
	$(MAKE) tables

noise-learning: $(VENV)/.dev ## Compare what each kind of noise teaches (hours on two cores; goes on)
	$(BIN)/python benchmarks/noise_learning.py
	$(MAKE) tables

tables: $(VENV)/.dev ## Render benchmarks/results into the documents' tables and plots
	$(BIN)/python benchmarks/render.py

tiny-models: $(VENV)/.test ## Train the demo's tiny models again (about two hours on two cores)
	$(BIN)/python -m ragvl.training.tiny --out ragvl/assets

clean: ## Remove what was built and installed
	rm -rf $(VENV) build dist
