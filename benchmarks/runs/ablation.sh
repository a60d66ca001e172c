#!/usr/bin/env bash
# Compares kinds of noise and shares of data; hours on two CPU cores. A second call goes on where
# the first was stopped, on another machine too once the runs in benchmarks/results/runs are
# committed. With grids named, only those: ablation.sh noise_gpu, or, after `make real`,
# ablation.sh real_noise real_generator
source "$(dirname "$0")/common.sh"

# What grids on the drawn world start from is benchmarks/ablations/seeing-base: a base that has seen
# gold pictures only, and no question about relevance. To train it anew, from the tower too:
#   python -m demo_models --out OUT --stage tokenizer --stage tower --stage seeing-base
drawn_world() {
    ragvl data draw $WORLDS/learn --train 1500 --questions 6
    ragvl data draw $WORLDS/places --test 520
    [ -e $WORLDS/learn/ranking.jsonl ] ||
        ragvl data ranking $WORLDS/learn $RETRIEVER --labelled 0.5 --out $WORLDS/learn/ranking.jsonl
    [ -e $RESULTS/visual_weights.json ] ||
        PYTHONPATH="benchmarks${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" benchmarks/visual_weights.py \
            benchmarks/ablations/seeing-base $WORLDS/places
}

[ $# -gt 0 ] || set -- noise low_resource
! printf '%s\n' "$@" | grep -qv ^real_ || drawn_world
for grid in "$@"; do
    out=runs/ablations/$grid kept=$RESULTS/runs/$grid failed=0
    mkdir -p $out/runs $kept
    cp -n $kept/run-*.json $out/runs/ 2>/dev/null || true # what another machine has done
    ragvl ablate benchmarks/ablations/$grid.yaml --out $out || failed=$?
    cp $out/runs/run-*.json $kept/
    [ $failed = 0 ] || exit $failed
    cp $out/ablation.json $RESULTS/ablation_$grid.json
done
