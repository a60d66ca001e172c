# `make demo` and `make test` need Python 3.11+, a C++17 compiler and the package registries.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)

# What pip builds the extension with is pinned as well.
PIP := PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: help demo serve test lint format docs docs-serve wheel bench bench-vllm gpu-build gpu-wheels bench-gpu bench-gpu-tests bench-gpu-ops bench-gpu-rerank \
    bench-gpu-train evaluate ablation real tables tiny-models clean
help: ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# pip puts the checkout on Python's path, too, where the finder that it installs beside has no need of it.
# transformers would take kernels/ for the package of that name, and look through all packages for its
# version: half a second of every process.
INSTALL = $(PIP) -e ".[$(EXTRAS)]" && \
    sed -i '/^\//d' $(VENV)/lib/python3.*/site-packages/_editable_skbc_ragvl.pth

# A stamp for each set of extras; a larger set holds the smaller ones.
$(VENV)/.demo: EXTRAS := cpu,eval
$(VENV)/.demo: $(SOURCES) | $(BIN)/python
	$(INSTALL)
	@touch $@

$(VENV)/.serve: EXTRAS := cpu,eval,serve
$(VENV)/.serve: $(SOURCES) | $(BIN)/python
	$(INSTALL)
	@touch $(VENV)/.demo $@

$(VENV)/.docs: EXTRAS := docs
$(VENV)/.docs: $(SOURCES) | $(BIN)/python
	$(INSTALL)
	@touch $@

$(VENV)/.test: EXTRAS := test
$(VENV)/.test: $(SOURCES) | $(BIN)/python
	$(INSTALL)
	@touch $(VENV)/.demo $(VENV)/.serve $(VENV)/.docs $@

$(VENV)/.dev: EXTRAS := dev
$(VENV)/.dev: $(SOURCES) | $(BIN)/python
	$(INSTALL)
	@touch $(VENV)/.demo $(VENV)/.serve $(VENV)/.docs $(VENV)/.test $@

demo: $(VENV)/.demo ## Install, then retrieve, rerank and answer over drawn pictures
	$(BIN)/ragvl demo

serve: $(VENV)/.serve ## Install, then serve the demo's world and its page on http://127.0.0.1:8000
	$(BIN)/ragvl serve --demo

# One process more than there are cores, since some tests wait; what they start is compiled once
test: $(VENV)/.test ## Install, then run the test suite
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n $$($(BIN)/python -c "import os; print(min(8, os.cpu_count() + 1))") \
	    --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev ## ruff, mypy on the package, clang-format, workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror csrc/*
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/zizmor --offline --quiet .github

format: $(VENV)/.dev ## Format every source file
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*

# Wheels of the other Pythons are tried without torch: for them it comes with CUDA only
wheel: $(VENV)/.dev ## Build an sdist and a manylinux wheel for each Python here, and try them
	rm -rf dist
	$(BIN)/python wheels/make.py --extension-only

docs: $(VENV)/.docs ## Build the documentation site into build/site; a warning is an error
	$(BIN)/python benchmarks/build_site.py

docs-serve: $(VENV)/.docs ## The site on http://127.0.0.1:8000, built anew at each change
	$(BIN)/zensical serve

bench: $(VENV)/.dev ## Measure what the README's tables say, into benchmarks/results
	$(BIN)/python benchmarks/bench_relevance_head.py
	$(BIN)/python benchmarks/bench_prefix_attention.py
	$(BIN)/python benchmarks/bench_prefix_write.py
	$(BIN)/python benchmarks/bench_residual_rms_norm.py
	$(BIN)/python benchmarks/bench_rotary_embedding.py
	$(BIN)/python benchmarks/bench_dtypes.py
	$(BIN)/python benchmarks/bench_int8_linear.py
	$(BIN)/python benchmarks/bench_bfloat16_linear.py
	$(BIN)/python benchmarks/bench_layers.py
	$(BIN)/python benchmarks/bench_diffusion_noise.py
	$(BIN)/python benchmarks/bench_visual_weighted_cross_entropy.py
	$(BIN)/python benchmarks/bench_training_step.py
	$(BIN)/python benchmarks/bench_fast_rerank.py
	$(BIN)/python benchmarks/bench_prefix_cache.py
	$(BIN)/python benchmarks/bench_visual_tokens.py
	$(BIN)/python benchmarks/bench_prefix_bookkeeping.py
	$(BIN)/python benchmarks/bench_evaluate.py
	$(BIN)/python benchmarks/bench_startup.py
	$(BIN)/python benchmarks/bench_serve.py
	$(BIN)/python benchmarks/bench_ray_serve.py
	$(BIN)/ragvl overhead ragvl/assets/tiny-reranker --json benchmarks/results/overhead_cpu.json
	$(MAKE) tables

PEER := build/peers/vllm/bin
$(PEER)/python: benchmarks/peers/vllm/requirements.txt
	$(PYTHON) -m venv --clear build/peers/vllm
	$(PEER)/pip install --disable-pip-version-check -r $<
	$(PEER)/pip uninstall --yes torchaudio torchcodec  # no builds for torch's CPU version on PyPI
	@touch $@

bench-vllm: $(VENV)/.dev $(PEER)/python ## Measure against vLLM's CPU build, which is installed (3.5 GB)
	$(BIN)/python benchmarks/bench_vllm.py
	$(MAKE) tables

# On a GPU machine with its own Python, torch and packages, and no network. Elsewhere the same
# commands run in .venv at a small size.
GPU := $(shell nvidia-smi -L 2>/dev/null)
ON_GPU := $(if $(GPU),PYTHONPATH=$(CURDIR)/build/gpu $(PYTHON),$(BIN)/python)

CUDA ?= ON
gpu-build: # The extension for this machine's GPU, without touching the machine's packages
	$(PYTHON) -m pip install --quiet --no-index --no-deps --no-build-isolation --upgrade \
	    --target build/gpu -C build-dir=build/gpu-objects -C cmake.define.RAGVL_CUDA=$(CUDA) \
	    -C cmake.define.CMAKE_CUDA_ARCHITECTURES=native .

	$(if $(wildcard build/wheels),$(PYTHON) -m pip install --quiet --no-index --no-deps --upgrade \
	    --target build/gpu build/wheels/*.whl)

# What benchmarks/runs need besides, for a machine without a network
GPU_PYTHON_VERSION ?= 3.12
GPU_WHEELS := annotated-types docstring_parser faiss-cpu jsonargparse pydantic pydantic_core \
    simplemma typeshed_client typing-inspection
gpu-wheels: $(BIN)/python ## Fetch into build/wheels what a GPU machine may lack
	$(BIN)/pip download --quiet --disable-pip-version-check --dest build/wheels --no-deps \
	    --only-binary :all: --python-version $(GPU_PYTHON_VERSION) \
	    $(filter $(addsuffix ==%,$(GPU_WHEELS)),$(file <constraints.txt))

# Builds by itself, as its first part: what fails there must not keep the others from running
MINUTES ?= 8
bench-gpu: $(if $(GPU),,$(VENV)/.dev) ## All that follows on a GPU, the most important first; MINUTES=8
	$(ON_GPU) benchmarks/gpu_all.py --minutes $(MINUTES) $(AGAIN:%=--again %) $(BUNDLE:%=--bundle %)

bench-gpu-tests: $(if $(GPU),gpu-build,$(VENV)/.dev) ## Run what tests are for a GPU, there; PARTS="..."
	$(ON_GPU) benchmarks/gpu_tests.py $(PARTS:%=--part %)

bench-gpu-ops: $(if $(GPU),gpu-build,$(VENV)/.dev) ## Time every operation on a GPU
	$(ON_GPU) benchmarks/gpu_ops.py

bench-gpu-rerank: $(if $(GPU),gpu-build,$(VENV)/.dev) ## Rerank with real models' sizes on a GPU; PARTS="..."
	$(ON_GPU) benchmarks/gpu_rerank.py $(PARTS:%=--part %)

bench-gpu-train: $(if $(GPU),gpu-build,$(VENV)/.dev) ## Train with real models' sizes on a GPU; PARTS="..."
	$(ON_GPU) benchmarks/gpu_train.py $(PARTS:%=--part %)

# What docs/results.md says of the shipped models and of models like them, on drawn worlds
RUN := PYTHON=$(CURDIR)/$(BIN)/python benchmarks/runs

evaluate: $(VENV)/.dev ## Evaluate the shipped models on places and charts, with captions (half an hour)
	$(RUN)/evaluate.sh
	$(MAKE) tables

ablation: $(VENV)/.dev ## Compare kinds of noise and shares of data (hours on two cores; goes on)
	$(RUN)/ablation.sh
	$(MAKE) tables

real: $(VENV)/.dev ## Fetch real pictures and weights by name; evaluate on them (an hour or two; goes on)
	$(RUN)/real.sh
	$(MAKE) tables

tables: $(VENV)/.dev ## Render benchmarks/results into the documents' tables and plots
	$(BIN)/python benchmarks/render.py

tiny-models: $(VENV)/.test ## Train the demo's tiny models again (about two hours on two cores)
	$(RUN)/demo_models.sh

clean: ## Remove what was built and installed
	rm -rf $(VENV) build dist .cache
