"""The README's example: six pictures of the drawn world, reranked by the shipped tiny model.

python benchmarks/readme_example.py    # after a change of the model or of the pictures
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from typing import Any

import torch
from common import ROOT, save
from tables import Results, table

COMMAND = [
    *("ragvl", "rerank", "What color is the roof of Lulules tower in the forest?"),
    *("docs/pictures", "--captions", "docs/pictures/captions.txt"),
    *("--model", "ragvl/assets/tiny-reranker"),
]


def ranked() -> dict[str, Any]:
    """What the command answers with `--json`."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ragvl.cli", *COMMAND[1:], "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def readme_example(results: Results) -> str:
    """The command, and the table that it prints."""
    program, verb, question, *rest = COMMAND
    command = f'{program} {verb} "{question}" \\\n    {shlex.join(rest)}'
    rows = [
        [
            *(f"`{one['picture']}`", one["caption"], f"{one['relevance']:.4f}"),
            "yes" if one["kept"] else "no",
        ]
        for one in results["readme_example"]["results"]
    ]
    listing = table(["document", "caption", "relevance", "kept"], rows)
    return f"```bash\n{command}\n```\n\n{listing}"


if __name__ == "__main__":
    print(save("readme_example", ranked(), torch.device("cpu")))
