"""vLLM on the same checkpoint and the same prompts, in a process of its own environment."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors.torch import load_file, save_file

from ragvl import Document, Reranker

_HERE = Path(__file__).resolve().parent
_WEIGHTS = "model.safetensors"

# The rest are its defaults. A CPU's blocks are of 32 tokens at least
SETTINGS: dict[str, Any] = {
    "enable_prefix_caching": True,
    "block_size": 32,
    "max_model_len": 1024,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "kv_cache_memory_bytes": 3 << 30,
    "limit_mm_per_prompt": {"image": 1},
    # As ragvl reads pictures: torchvision scales them a little differently
    "mm_processor_kwargs": {"backend": "pil"},
    "disable_log_stats": True,
    "seed": 0,
}
_VARIABLES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in one process with what calls it
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(_HERE / "start"),
}


class VllmError(RuntimeError):
    """vLLM's process ended; its own words are on standard error."""


class VllmScorer:
    """Scores as a `Reranker` does, by vLLM; a context manager, which ends vLLM's process.

    Args:
        python: of the environment that vLLM is installed in.
        folder: the checkpoint, as `publish_names` leaves it.
        reranker: the same checkpoint's; gives the prompts and the answers' tokens.
        dtype: of vLLM, as torch names it.
        threads: of vLLM's products.

    Raises:
        VllmError: it could not be started.
    """

    def __init__(
        self, python: Path, folder: Path, reranker: Reranker, dtype: str, *, threads: int
    ) -> None:
        self.reranker = reranker
        (yes,), (no,) = reranker.yes_token_ids, reranker.no_token_ids
        self.settings = {**SETTINGS, "dtype": dtype}
        arguments = [str(folder), str(yes), str(no), json.dumps(self.settings)]
        variables = {**_VARIABLES, "OMP_NUM_THREADS": str(threads)}
        if (openmp := python.parent.parent / "lib" / "libiomp5.so").exists():
            variables["LD_PRELOAD"] = str(openmp)  # as its documentation advises
        self._process = subprocess.Popen(
            [str(python), str(_HERE / "worker.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        self.versions: dict[str, str] = self._reply()

    def __enter__(self) -> VllmScorer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()  # an end of input is an end of work

    def score(
        self, queries: Sequence[str], documents: Sequence[Document], *, known_as: str
    ) -> list[float]:
        """Every document's relevance to each query, query by query.

        Args:
            queries: scored together.
            documents: each with a picture's path and a caption.
            known_as: pictures that were scored under this name before are known to vLLM.
        """
        prompts = [
            {
                "token_ids": self._one_for_the_picture(query, document),
                "image": str(document.image),
                "uuid": f"{known_as} {document.image}",
            }
            for query in queries
            for document in documents
        ]
        assert self._process.stdin is not None
        print(json.dumps(prompts), file=self._process.stdin, flush=True)
        return self._reply()

    def _one_for_the_picture(self, query: str, document: Document) -> list[int]:
        """The prompt, of a picture's tokens only the first: vLLM puts in the others itself."""
        picture = self.reranker.mllm.model.config.image_token_index
        ids = [id for part in self.reranker.split_prompt(query, document) for id in part]
        runs = ((id, list(same)) for id, same in groupby(ids))
        return [id for id, same in runs for id in (same[:1] if id == picture else same)]

    def _reply(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()
            raise VllmError(f"vLLM's process ended with {self._process.returncode}")
        return json.loads(line)


def publish_names(folder: Path) -> None:
    """Gives a LLaVA's vision tower the names of published checkpoints, which vLLM looks for.

    transformers reads both, and writes shorter ones.
    """
    short, published = "vision_tower.", "vision_tower.vision_model."
    weights = {
        published + name.removeprefix(short) if name.startswith(short) else name: tensor
        for name, tensor in load_file(folder / _WEIGHTS).items()
    }
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
