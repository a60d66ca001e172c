#!/usr/bin/env bash
# Trains the demo's models into OUT and calibrates the reranker; two hours on two CPU cores.
# Arguments go to the training, as in: OUT=build/models demo_models.sh --device cuda
source "$(dirname "$0")/common.sh"
OUT=${OUT:-ragvl/assets}

PYTHONPATH="benchmarks${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -m demo_models --out $OUT "$@"
ragvl data draw $WORLDS/places-dev --val 1040
ragvl calibrate $WORLDS/places-dev --split val \
    --encoder $OUT/tiny-retriever --reranker $OUT/tiny-reranker \
    --threshold adaptive --threshold f1 --threshold 'precision>=0.8' --threshold 'precision>=0.9'
