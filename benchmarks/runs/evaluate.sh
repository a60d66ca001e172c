#!/usr/bin/env bash
# Evaluates the shipped models on places and charts, and a reranker trained here on captions.
# Half an hour on two CPU cores.
source "$(dirname "$0")/common.sh"
OUT=runs/evaluate

ragvl demo --json $RESULTS/demo.json --no-progress

ragvl data draw $WORLDS/charts --subject charts --test 520
ragvl evaluate $WORLDS/charts --split test $SHIPPED --max-new-tokens 8 \
    --generator ragvl/assets/tiny-generator --compare $RESULTS/demo.json \
    --out $OUT/charts --no-progress
cp $OUT/charts/result.json $RESULTS/charts.json

# The reranker alone: every picture of the gold pool is a candidate
for world in places charts; do
    ragvl data draw $WORLDS/$world --subject $world --test 520
    ragvl evaluate $WORLDS/$world --split test $SHIPPED --pool gold --candidates 1000 \
        --questions 100 --timed 0 --out $OUT/$world-unretrieved --no-progress
    cp $OUT/$world-unretrieved/result.json $RESULTS/${world}_unretrieved.json
done

ragvl data draw $WORLDS/captions --train 1500 --test 200 --captions
ragvl data ranking $WORLDS/captions/captions.json --split train $RETRIEVER \
    --depth 40 --ratio 2 --out $WORLDS/captions/ranking.jsonl
ragvl train reranker --config tiny-reranker --model ragvl/assets/tiny-base \
    --data $WORLDS/captions/captions.json --ranking $WORLDS/captions/ranking.jsonl \
    --num_train_epochs 4 --eval_strategy no --save_strategy no --report_to none \
    --output_dir $OUT/caption-reranker
ragvl evaluate $WORLDS/captions/captions.json --pool full $RETRIEVER \
    --reranker $OUT/caption-reranker --out $OUT/captions --no-progress
cp $OUT/captions/result.json $RESULTS/captions.json
ragvl evaluate $WORLDS/captions/captions.json --pool full $SHIPPED \
    --out $OUT/captions-zero-shot --no-progress
cp $OUT/captions-zero-shot/result.json $RESULTS/captions_zero_shot.json
