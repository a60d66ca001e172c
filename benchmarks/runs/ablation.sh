#!/usr/bin/env bash
# Compares kinds of noise and shares of data; hours on two CPU cores. A second call goes on where
# the first was stopped. With grids named, only those: ablation.sh noise_gpu
source "$(dirname "$0")/common.sh"

ragvl data draw $WORLDS/learn --train 1500 --questions 6
ragvl data draw $WORLDS/places --test 520
ragvl data ranking $WORLDS/learn $RETRIEVER --labelled 0.5 --out $WORLDS/learn/ranking.jsonl
[ $# -gt 0 ] || set -- noise low_resource
for grid in "$@"; do
    ragvl ablate benchmarks/ablations/$grid.yaml --out runs/ablations/$grid
    cp runs/ablations/$grid/ablation.json $RESULTS/ablation_$grid.json
done
