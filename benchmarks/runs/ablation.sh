#!/usr/bin/env bash
# Compares kinds of noise and shares of data; hours on two CPU cores. A second call goes on where
# the first was stopped. With grids named, only those: ablation.sh noise_gpu, or, after `make real`,
# ablation.sh real_noise
source "$(dirname "$0")/common.sh"
BASE=runs/models/seeing-base

# What grids on the drawn world start from: a base that has seen gold pictures only, and no question
# about relevance
drawn_world() {
    [ -e $BASE/model.safetensors ] ||
        PYTHONPATH="benchmarks${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -m demo_models \
            --out runs/models --stage tokenizer --stage tower --stage seeing-base
    ragvl data draw $WORLDS/learn --train 1500 --questions 6
    ragvl data draw $WORLDS/places --test 520
    ragvl data ranking $WORLDS/learn $RETRIEVER --labelled 0.5 --out $WORLDS/learn/ranking.jsonl
    [ -e $RESULTS/visual_weights.json ] ||
        "$PYTHON" benchmarks/visual_weights.py $BASE $WORLDS/places
}

[ $# -gt 0 ] || set -- noise low_resource
[ "$*" = real_noise ] || drawn_world
for grid in "$@"; do
    ragvl ablate benchmarks/ablations/$grid.yaml --out runs/ablations/$grid
    cp runs/ablations/$grid/ablation.json $RESULTS/ablation_$grid.json
done
