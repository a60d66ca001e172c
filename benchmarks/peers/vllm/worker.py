"""Scores by vLLM, for scorer.py: runs in vLLM's own environment, not in ragvl's.

    python worker.py FOLDER YES NO SETTINGS    # SETTINGS are keyword arguments of vllm.LLM, as JSON

YES and NO are the answers' token ids. A request is a line of JSON on standard input: a list of
prompts, each with `token_ids` (one for the picture), `image` (a path) and `uuid` (the picture's
name in vLLM's caches). The answer is a line on standard output: the probability of Yes against No,
for each prompt.
"""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

import torch
import vllm
from PIL import Image
from vllm import LLM, SamplingParams


def score(llm: LLM, prompts: list[dict[str, Any]], yes: int, no: int) -> list[float]:
    """Yes against No for each prompt; all are given at once."""
    sampling = SamplingParams(
        temperature=0.0, max_tokens=1, logprobs=2, allowed_token_ids=[yes, no]
    )
    inputs = [
        {
            "prompt_token_ids": prompt["token_ids"],
            # Opened, not decoded: that is done only if vLLM does not know the picture
            "multi_modal_data": {"image": [Image.open(prompt["image"])]},
            "multi_modal_uuids": {"image": [prompt["uuid"]]},
        }
        for prompt in prompts
    ]
    outputs = llm.generate(inputs, sampling, use_tqdm=False)
    return [math.exp(output.outputs[0].logprobs[0][yes].logprob) for output in outputs]


def main() -> None:
    """Loads the model, says with a line of versions that it is there, then answers requests."""
    folder, yes, no, settings = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what vLLM and its libraries print is no reply
    llm = LLM(folder, logprobs_mode="processed_logprobs", **json.loads(settings))
    print(json.dumps({"vllm": vllm.__version__, "torch": torch.__version__}), file=replies)
    for line in sys.stdin:
        print(json.dumps(score(llm, json.loads(line), int(yes), int(no))), file=replies)


if __name__ == "__main__":
    main()
