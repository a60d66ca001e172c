#!/usr/bin/env bash
# Trains the demo's reranker once more, with the template instruction-first in place of caption, and
# evaluates it beside the shipped one: same base, same recipe, same samples. An hour on one CPU core.
source "$(dirname "$0")/common.sh"
LEARN=$WORLDS/shipped # what the shipped reranker was trained on
OUT=runs/templates
TRAINED=$OUT/instruction-first

ragvl data draw $LEARN --train 4000 --val 200 --questions 12
for split in train val; do
    [ -e $OUT/$split.jsonl ] ||
        ragvl data ranking $LEARN --split $split $RETRIEVER --labelled 0.5 --out $OUT/$split.jsonl
done
grep -qs "finished.: true" $TRAINED/ragvl_run.json ||
    ragvl train reranker --config tiny-reranker --model ragvl/assets/tiny-base \
        --data $LEARN --ranking $OUT/train.jsonl --eval_ranking $OUT/val.jsonl --eval_split val \
        --template instruction-first --output_dir $TRAINED --resume_from_checkpoint last
for world in places charts; do
    ragvl data draw $WORLDS/$world --subject $world --test 520
    ragvl evaluate $WORLDS/$world --split test $SHIPPED --timed 0 \
        --out $OUT/$world-caption --no-progress
    ragvl evaluate $WORLDS/$world --split test $RETRIEVER --reranker $TRAINED \
        --timed 0 --out $OUT/$world-instruction-first --no-progress
    for template in caption instruction-first; do
        cp $OUT/$world-$template/result.json $RESULTS/templates_${world}_${template//-/_}.json
    done
done
