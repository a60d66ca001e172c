"""Renders the figures of benchmarks/results into the documents' tables.

A document says where a table goes, and what stands between the marks is replaced:

    <!-- begin table: fast_rerank -->
    <!-- end table: fast_rerank -->

    python benchmarks/render_tables.py           # writes README.md and docs/*.md
    python benchmarks/render_tables.py --check   # changes nothing; exits 1 if one is out of date
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parent.parent
NOT_MEASURED = "not measured"
METHODS = {
    "serial_generate": "one candidate at a time, `generate` (the release)",
    "padded_batch": "one padded batch, all logits",
    "cross_encoder": "sentence-transformers `CrossEncoder`",
    "fast_rerank": "**`ragvl.fast_rerank`**",
}

Result = dict[str, Any]
Load = Callable[[str], Result | None]
_TABLE = re.compile(
    r"(?P<begin><!-- begin table: (?P<name>\w+) -->\n).*?(?P<end><!-- end table: (?P=name) -->)",
    re.DOTALL,
)
_MARK = re.compile(r"<!-- (?:begin|end) table: \w+ -->")


def fast_rerank(load: Load) -> str:
    """Speed and memory by method. Of the CPU only ratios within its own run."""
    cpu, gpu = load("fast_rerank_cpu"), load("fast_rerank_cuda")

    def speedup(result: Result | None, method: str) -> str:
        if result is None:
            return NOT_MEASURED
        spread = result["methods"][method]["speedup"]
        return f"{spread['median']:.2f}x ({spread['min']:.2f} to {spread['max']:.2f})"

    def memory(result: Result | None, method: str) -> str:
        size = None if result is None else result["methods"][method]["peak_mib"]
        return NOT_MEASURED if size is None else f"{size:,.0f} MiB"

    def milliseconds(result: Result | None, method: str) -> str:
        if result is None:
            return NOT_MEASURED
        return f"{result['methods'][method]['ms']['median']:.1f} ms"

    rows = [
        [
            label,
            speedup(cpu, method),
            memory(cpu, method),
            speedup(gpu, method),
            milliseconds(gpu, method),
            memory(gpu, method),
        ]
        for method, label in METHODS.items()
    ]
    header = ["", "CPU, speed", "CPU, memory", "GPU, speed", "GPU, time", "GPU, memory"]
    notes = [_fast_rerank_note(result) for result in (cpu, gpu) if result is not None]
    return "\n\n".join([_table(header, rows), *notes])


def _fast_rerank_note(result: Result) -> str:
    model = result["model"]
    return (
        f"{result['machine']['device']}: a LLaVA of {model['parameters'] / 1e6:,.0f} M parameters "
        f"in {model['dtype']}, {result['num_documents']} candidates of "
        f"{model['image_tokens']} image tokens, a new question each round; median (lowest to "
        f"highest) of {result['rounds']} rounds in one run, against the first row. Memory is the "
        f"peak above what the loaded models hold. All methods' scores agree within "
        f"{result['max_score_difference']:.0e}."
    )


def relevance_head(load: Load) -> str:
    """Speed of the backends against the product with the whole vocabulary."""
    found = {"CPU": load("relevance_head_cpu"), "GPU": load("relevance_head_cuda")}
    columns = [
        (device, method)
        for device, methods in {
            "CPU": ["eager, two rows", "reference", "cpu"],
            "GPU": ["eager, two rows", "reference", "triton", "cuda"],
        }.items()
        for method in methods
    ]
    cases = {
        device: {
            (case["batch"], case["hidden_size"], case["dtype"]): case["methods"]
            for case in result["cases"]
        }
        for device, result in found.items()
        if result is not None
    }
    measured = dict.fromkeys(key for by_case in cases.values() for key in by_case)

    def speedup(device: str, method: str, key: tuple[int, int, str]) -> str:
        figures = cases.get(device, {}).get(key, {}).get(method)
        return NOT_MEASURED if figures is None else f"{figures['speedup']['median']:,.1f}x"

    rows = [
        [*map(str, key), *(speedup(device, method, key) for device, method in columns)]
        for key in measured or [("any", "any", "any")]
    ]
    header = ["prompts", "hidden", "dtype", *(f"{device}: {method}" for device, method in columns)]
    notes = [
        f"{device}: {result['machine']['device']}. Speed is against the product with a whole "
        f"vocabulary of {result['vocabulary']:,}, median of {result['rounds']} rounds in one run."
        for device, result in found.items()
        if result is not None
    ]
    return "\n\n".join([_table(header, rows), *notes])


def demo(load: Load) -> str:
    """What reranking does to the demo's questions, by pool, in percent."""
    result = load("demo")
    names = [*(f"recall@{k}" for k in (1, 2, 5, 10, 20)), "precision", "f1"]
    header = ["pool", "order", *names, "answers right"]
    answers = {"retriever": "without_reranking", "reranked": "with_reranking"}
    rows = []
    for pool in ("full", "gold"):
        for order, answer in answers.items():
            if result is None:
                cells = [NOT_MEASURED] * (len(names) + 1)
            else:
                figures = result["pools"][pool]
                values = [figures[order][name] for name in names]
                cells = [f"{100 * v:.1f}" for v in [*values, figures["answer_accuracy"][answer]]]
            rows.append([pool, order, *cells])
    if result is None:
        return _table(header, rows)
    documents = result["num_documents"]
    note = (
        f"{result['num_questions']} test questions; {documents['full']:,} pictures in the full "
        f"pool, {documents['gold']:,} in the gold one; {result['num_candidates']} candidates, of "
        f"which the first {result['top_k']} at or above a relevance of {result['threshold']:g} are "
        "kept."
    )
    return f"{_table(header, rows)}\n\n{note}"


TABLES: dict[str, Callable[[Load], str]] = {
    "fast_rerank": fast_rerank,
    "relevance_head": relevance_head,
    "demo": demo,
}


def render(text: str, load: Load) -> str:
    """`text` with every marked table filled in.

    Raises:
        ValueError: a mark without its other half, or of an unknown table.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in TABLES:
            raise ValueError(f"unknown table {name!r}; known: {', '.join(TABLES)}")
        return f"{match['begin']}{TABLES[name](load)}\n{match['end']}"

    stray = _MARK.search(_TABLE.sub("", text))
    if stray:
        raise ValueError(f"{stray[0]} has no other half")
    return _TABLE.sub(fill, text)


def main(
    check: Annotated[bool, typer.Option(help="Change nothing; exit 1 if out of date.")] = False,
    root: Annotated[Path, typer.Option(help="The repository.")] = ROOT,
) -> None:
    """Render benchmarks/results into README.md and docs/*.md."""

    def load(name: str) -> Result | None:
        path = root / "benchmarks" / "results" / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    outdated = False
    for path in [*root.glob("README.md"), *sorted(root.glob("docs/*.md"))]:
        text = path.read_text(encoding="utf-8")
        try:
            rendered = render(text, load)
        except ValueError as error:
            raise SystemExit(f"{path}: {error}") from error
        if rendered != text:
            outdated = True
            print(f"{path}: {'out of date; run `make tables`' if check else 'rendered'}")
            if not check:
                path.write_text(rendered, encoding="utf-8")
    if check and outdated:
        raise SystemExit(1)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    typer.run(main)
