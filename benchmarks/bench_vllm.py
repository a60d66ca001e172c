"""ragvl against vLLM, with the same model and the same prompts, on the CPU.

Both keep what they computed of a document: vLLM whole blocks of 32 tokens, ragvl all of its prefix.
They take turns in one run; it fails if their scores differ.

    make bench-vllm    # installs vLLM, too; about ten minutes on two CPU cores
    python benchmarks/bench_vllm.py --num-documents 4    # prints, writes nothing
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import BUILD, save
from gpu import goal, print_goals
from models import write_model
from peers.vllm.scorer import VllmScorer, publish_names
from rich.console import Console
from shapes import SHAPES
from tables import Result, Results, goals, name_on_cpu, on_each_cpu, table, times, unmeasured
from transformers.utils import logging as transformers_logging
from workload import fitting_questions, write_documents

from ragvl import Document, Reranker
from ragvl.ops.backends import compiled
from ragvl.ops.int8_linear import slow_products_problem
from ragvl.profiling.timing import compare, time_in_turn

PYTHON = BUILD / "peers" / "vllm" / "bin" / "python"
CPU = torch.device("cpu")
PEER_DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "int8": "bfloat16"}  # by ragvl's
AT_ONCE = (1, 8)  # queries in a call
SUFFIX_TOKENS = 30
TOLERANCE = 1e-5  # between two methods' scores in float32: rounding, in another order of additions
_MOST_CAPTION_TOKENS = 160  # in a prefix, the turn's beginning and a last page's end included

WARM, COLD, SHORT = "ragvl_warm", "ragvl_cold", "ragvl_instruction_first"
ROWS = {
    WARM: ("vllm_warm", "known pictures"),
    COLD: ("vllm_cold", "pictures never seen"),
    SHORT: ("vllm_warm", "known pictures, the template `instruction-first`"),
}

Score = Callable[[Sequence[str]], list[float]]


@dataclass(frozen=True)
class Scored:
    """A method and what it gave in each round."""

    score: Score
    rounds: list[list[float]]

    def ask(self, questions: Sequence[Sequence[str]]) -> None:
        """The next round's questions, scored together."""
        self.rounds.append(self.score(questions[len(self.rounds)]))


def measure(
    python: Path, model: str, image_tokens: int, *, rounds: int, num_documents: int
) -> dict[str, Any]:
    """Times both in each dtype, with one query in a call and with several.

    Args:
        python: of the environment that vLLM is installed in.
        model: a LLaVA's name in `SHAPES`.
        image_tokens: what a picture becomes, a square number.
        rounds: samples of each method, at least 2.
        num_documents: candidates a question.

    Raises:
        RuntimeError: the methods' scores differ by more than rounding.
        VllmError: vLLM could not be started.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = write_model(folder, SHAPES[model], image_tokens=image_tokens)
        publish_names(folder)
        documents = write_documents(folder, num_documents)
        cases: list[dict[str, Any]] = []
        for dtype in PEER_DTYPES:
            if dtype == "int8" and slow_products_problem() is not None:
                continue
            measured = _measure_dtype(python, folder, dtype, documents, rounds)
            versions, settings = measured.pop("versions"), measured.pop("settings")
            cases += measured["cases"]
    return {
        "model": {"name": model, "parameters": parameters, "image_tokens": image_tokens},
        "num_documents": num_documents,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "peer": {**versions, "settings": settings},
        "cases": cases,
    }


def _measure_dtype(
    python: Path, folder: Path, dtype: str, documents: Sequence[Document], rounds: int
) -> dict[str, Any]:
    cold = Reranker.from_pretrained(
        folder, dtype=dtype, device="cpu", layers="fused", prefix_cache=None
    )
    mllm = cold.mllm
    tokens = len(documents) * (mllm.model.config.image_seq_length + _MOST_CAPTION_TOKENS)
    room = tokens * mllm.kv_layout.bytes_per_token()
    warm = Reranker(mllm, prefix_cache=room)
    short = Reranker(mllm, template="instruction-first", prefix_cache=room)
    with ExitStack() as stack:
        peer = stack.enter_context(
            VllmScorer(python, folder, cold, PEER_DTYPES[dtype], threads=torch.get_num_threads())
        )
        visits = count()

        def unknown_to_vllm(queries: Sequence[str]) -> list[float]:
            return peer.score(queries, documents, known_as=f"visit {next(visits)}")

        cases = []
        for at_once in AT_ONCE:
            drawn = fitting_questions(cold, documents[0], at_once * (rounds + 1), SUFFIX_TOKENS)
            questions = [drawn[i : i + at_once] for i in range(0, len(drawn), at_once)]
            methods: dict[str, Score] = {
                "vllm_warm": partial(peer.score, documents=documents, known_as="known"),
                WARM: partial(_score, warm, documents),
                SHORT: partial(_score, short, documents),
            }
            if at_once == 1:
                methods["vllm_cold"] = unknown_to_vllm
                methods[COLD] = partial(_score, cold, documents)
            cases.append({"dtype": dtype, "at_once": at_once, **_measure_case(methods, questions)})
            cases[-1]["suffix_tokens"] = {
                name: len(reranker.split_prompt(drawn[0], documents[0])[1])
                for name, reranker in ((WARM, warm), (SHORT, short))
            }
            # What both had from before the first round must still be there after the last
            for reranker in (warm, short):
                if evicted := reranker.prefix_cache.statistics()["device"].evictions:
                    raise RuntimeError(f"{evicted} documents were lost: give more memory")
        return {"cases": cases, "versions": peer.versions, "settings": peer.settings}


def _measure_case(methods: dict[str, Score], questions: Sequence[Sequence[str]]) -> dict[str, Any]:
    """One round of questions after another, the first to warm up."""
    scored = {name: Scored(score, []) for name, score in methods.items()}
    calls = {name: partial(one.ask, questions) for name, one in scored.items()}
    samples = time_in_turn(calls, rounds=len(questions) - 1, device=CPU)
    same_prompt = torch.tensor([one.rounds for name, one in scored.items() if name != SHORT])
    return {
        "methods": compare(samples, "vllm_warm"),
        "against": {
            ours: compare(samples, theirs)[ours]["speedup"]
            for ours, (theirs, _) in ROWS.items()
            if ours in samples
        },
        "max_score_difference": (same_prompt.amax(0) - same_prompt.amin(0)).max().item(),
    }


def _score(
    reranker: Reranker, documents: Sequence[Document], queries: Sequence[str]
) -> list[float]:
    return reranker.score([(query, one) for query in queries for one in documents]).tolist()


def _goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    exact, rounded = {WARM: 1.7, COLD: 1.1, SHORT: 4.0}, {WARM: 2.2}
    return [
        goal(_title(case), f"speed over vLLM, {ROWS[ours][1]}", speed["median"], at_least=bound)
        for case in result["cases"]
        for ours, speed in case["against"].items()
        if (bound := (rounded if case["dtype"] == "int8" else exact).get(ours)) is not None
    ]


def _title(case: Result) -> str:
    ours, theirs = case["dtype"], PEER_DTYPES[case["dtype"]]
    dtype = ours if ours == theirs else f"{ours} (vLLM: {theirs})"
    return f"{dtype}, {_calls(case)}"


def _calls(case: Result) -> str:
    return "one query a call" if case["at_once"] == 1 else f"{case['at_once']} queries a call"


def vllm_table(results: Results) -> str:
    """How many times as fast as vLLM, for each dtype and number of queries in a call."""
    measured = on_each_cpu(results, "vllm")
    return "\n\n".join(map(_table_of, measured)) or unmeasured(["", "float32", "bfloat16"])


def _table_of(result: Result) -> str:
    cases = result["cases"]
    rows = [
        [label, *(times(c["against"][ours]) if ours in c["against"] else "" for c in cases)]
        for ours, (_, label) in ROWS.items()
    ]
    model, peer, tokens = result["model"], result["peer"], cases[0]["suffix_tokens"]
    exact = max(c["max_score_difference"] for c in cases if c["dtype"] == "float32")
    rounded = max(c["max_score_difference"] for c in cases if c["dtype"] == "bfloat16")
    return "\n\n".join(
        [
            table(
                ["", *map(_title, cases)],
                rows,
                f"{result['machine']['device']} ({result['machine']['cpu kernels']}): how many "
                f"times as fast as vLLM {peer['vllm']}'s CPU build, of pictures that it knows "
                f"too where ours are known; median (lowest to highest) of "
                f"{result['rounds']} rounds in one run. LLaVA of "
                f"{model['parameters'] / 1e6:,.0f} M parameters, {result['num_documents']} "
                f"candidates of {model['image_tokens']} image tokens, {tokens[WARM]} tokens after "
                f"the prefix ({tokens[SHORT]} with `instruction-first`, which vLLM is not given). "
                f"vLLM has prefix caching "
                f"on, blocks of {peer['settings']['block_size']} tokens, pictures named by uuid "
                f'and as many threads; ragvl has `layers="fused"`. '
                f"Scores of one prompt agree within {exact:.0e} in float32 "
                f"and {rounded:.0e} in bfloat16.",
            ),
            goals([result]),
        ]
    )


def main(
    python: Annotated[Path, typer.Option(help="Of the environment with vLLM.")] = PYTHON,
    model: Annotated[str, typer.Option(help="A LLaVA's shape.")] = "mid",
    image_tokens: Annotated[int, typer.Option(help="What a picture becomes, a square.")] = 256,
    rounds: Annotated[int, typer.Option(min=2, help="Samples of each method.")] = 9,
    num_documents: Annotated[int, typer.Option(min=1, help="Candidates a question.")] = 20,
) -> None:
    """Measure, print the goals and write benchmarks/results/vllm_<isa>.json.

    Only the default model is written, since that is what the documents' table is about.
    """
    if not python.exists():
        raise typer.BadParameter(f"vLLM is not installed in {python}: make bench-vllm installs it")
    transformers_logging.disable_progress_bar()
    result = measure(python, model, image_tokens, rounds=rounds, num_documents=num_documents)
    result["goals"] = _goals(result)
    print_goals(result["goals"], Console(width=160))
    default = (model, image_tokens, num_documents) == ("mid", 256, 20)
    if default:
        print(f"wrote {save(name_on_cpu('vllm', compiled().cpu_isa()), result, CPU)}")


if __name__ == "__main__":
    typer.run(main)
