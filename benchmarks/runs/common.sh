# What every run begins with: it stops at the first failure and works from the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONSAFEPATH=1 # the installed ragvl, which has the extension beside it
PYTHON=${PYTHON:-.venv/bin/python}
ragvl() { "$PYTHON" -m ragvl.cli "$@"; }

RESULTS=benchmarks/results
WORLDS=runs/worlds
RETRIEVER="--encoder ragvl/assets/tiny-retriever"
SHIPPED="$RETRIEVER --reranker ragvl/assets/tiny-reranker"
