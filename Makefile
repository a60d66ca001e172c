# `make demo` and `make test` need Python 3.11+, a C++17 compiler and the package registries.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)

# What pip builds the extension with is pinned as well.
PIP := PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: help demo test lint format bench gpu-build gpu-wheels bench-gpu bench-gpu-ops bench-gpu-rerank \
    bench-gpu-train evaluate ablation tables tiny-models clean
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
	$(BIN)/python benchmarks/bench_evaluate.py
	$(BIN)/ragvl overhead ragvl/assets/tiny-reranker --json benchmarks/results/overhead_cpu.json
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

# What only parts of bench-gpu-train need, for a machine without a network
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

bench-gpu-ops: $(if $(GPU),gpu-build,$(VENV)/.dev) ## Test and time every operation on a GPU; PARTS="..."
	$(ON_GPU) benchmarks/gpu_ops.py $(PARTS:%=--part %)

bench-gpu-rerank: $(if $(GPU),gpu-build,$(VENV)/.dev) ## Rerank with real models' sizes on a GPU; PARTS="..."
	$(ON_GPU) benchmarks/gpu_rerank.py $(PARTS:%=--part %)

bench-gpu-train: $(if $(GPU),gpu-build,$(VENV)/.dev) ## Train with real models' sizes on a GPU; PARTS="..."
	$(ON_GPU) benchmarks/gpu_train.py $(PARTS:%=--part %)

# What docs/results.md says of the shipped models and of models like them, on drawn worlds.
WORLDS := runs/worlds
RETRIEVER := --encoder ragvl/assets/tiny-retriever
SHIPPED := $(RETRIEVER) --reranker ragvl/assets/tiny-reranker

evaluate: $(VENV)/.dev ## Evaluate the shipped models on places and charts, with captions (half an hour)
	$(BIN)/ragvl demo --json benchmarks/results/demo.json --no-progress
	$(BIN)/ragvl data draw $(WORLDS)/charts --subject charts --test 520
	$(BIN)/ragvl evaluate $(WORLDS)/charts --split test $(SHIPPED) --max-new-tokens 8 \
	    --generator ragvl/assets/tiny-generator --compare benchmarks/results/demo.json \
	    --out runs/evaluate/charts --no-progress
	cp runs/evaluate/charts/result.json benchmarks/results/charts.json
	for world in places charts; do \
	    $(BIN)/ragvl data draw $(WORLDS)/$$world --subject $$world --test 520 && \
	    $(BIN)/ragvl evaluate $(WORLDS)/$$world --split test $(SHIPPED) --pool gold --candidates 1000 \
	        --questions 100 --timed 0 --out runs/evaluate/$$world-unretrieved --no-progress && \
	    cp runs/evaluate/$$world-unretrieved/result.json \
	        benchmarks/results/$${world}_unretrieved.json || exit 1; \
	done
	$(BIN)/ragvl data draw $(WORLDS)/captions --train 1500 --test 200 --captions
	$(BIN)/ragvl data ranking $(WORLDS)/captions/captions.json --split train $(RETRIEVER) \
	    --depth 40 --ratio 2 --out $(WORLDS)/captions/ranking.jsonl
	$(BIN)/ragvl train reranker --config tiny-reranker --model ragvl/assets/tiny-base \
	    --data $(WORLDS)/captions/captions.json --ranking $(WORLDS)/captions/ranking.jsonl \
	    --num_train_epochs 4 --eval_strategy no --save_strategy no --report_to none \
	    --output_dir runs/evaluate/caption-reranker
	$(BIN)/ragvl evaluate $(WORLDS)/captions/captions.json --pool full $(RETRIEVER) \
	    --reranker runs/evaluate/caption-reranker --out runs/evaluate/captions --no-progress
	cp runs/evaluate/captions/result.json benchmarks/results/captions.json
	$(BIN)/ragvl evaluate $(WORLDS)/captions/captions.json --pool full $(SHIPPED) \
	    --out runs/evaluate/captions-zero-shot --no-progress
	cp runs/evaluate/captions-zero-shot/result.json benchmarks/results/captions_zero_shot.json
	$(MAKE) tables

ablation: $(VENV)/.dev ## Compare kinds of noise and shares of data (hours on two cores; goes on)
	$(BIN)/ragvl data draw $(WORLDS)/learn --train 1500 --questions 6
	$(BIN)/ragvl data draw $(WORLDS)/places --test 520
	$(BIN)/ragvl data ranking $(WORLDS)/learn $(RETRIEVER) --labelled 0.5 \
	    --out $(WORLDS)/learn/ranking.jsonl
	$(BIN)/ragvl ablate benchmarks/ablations/noise.yaml --out runs/ablations/noise
	cp runs/ablations/noise/ablation.json benchmarks/results/ablation_noise.json
	$(BIN)/ragvl ablate benchmarks/ablations/low_resource.yaml --out runs/ablations/low_resource
	cp runs/ablations/low_resource/ablation.json benchmarks/results/ablation_low_resource.json
	$(MAKE) tables

tables: $(VENV)/.dev ## Render benchmarks/results into the documents' tables and plots
	$(BIN)/python benchmarks/render.py

tiny-models: $(VENV)/.test ## Train the demo's tiny models again (about two hours on two cores)
	$(BIN)/python -m ragvl.training.tiny --out ragvl/assets
	$(BIN)/ragvl data draw $(WORLDS)/places-dev --val 1040
	$(BIN)/ragvl calibrate $(WORLDS)/places-dev --split val $(SHIPPED) \
	    --threshold adaptive --threshold f1 --threshold 'precision>=0.8' --threshold 'precision>=0.9'

clean: ## Remove what was built and installed
	rm -rf $(VENV) build dist
