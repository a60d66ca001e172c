"""What the documents' tables share: Markdown, and how a figure is written.

A table is a function of the results in benchmarks/results, by name, and stands in the module whose
script writes them. Results of a CPU are always there; a GPU's may be missing, which a table then
says. Of a CPU only ratios are quoted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NOT_MEASURED = "not measured"

Result = dict[str, Any]
Results = Mapping[str, Result]


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *notes: str) -> str:
    """A table and what stands below it, a paragraph each."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n\n".join(["\n".join(f"| {' | '.join(cells)} |" for cells in lines), *notes])


def unmeasured(header: Sequence[str], names: int = 1) -> str:
    """The table of what has not been measured; its first `names` columns say of what."""
    return table(header, [["any"] * names + [NOT_MEASURED] * (len(header) - names)])


def goals(results: Iterable[Result | None]) -> str:
    """The goals of the results that are there, and whether they are reached."""
    header = ["of", "figure", "goal", "measured", ""]
    measured = [result for result in results if result is not None]
    if not measured:
        return table(header, [["any", "any", NOT_MEASURED, NOT_MEASURED, ""]])
    rows = []
    for goal in (goal for result in measured for goal in result["goals"]):
        at_most = goal["at_most"] is not None
        bound = goal["at_most"] if at_most else goal["at_least"]
        rows.append(
            [
                *(goal["of"], goal["what"], f"at {'most' if at_most else 'least'} {bound:g}"),
                *(f"{goal['value']:.3g}", "reached" if goal["reached"] else "**missed**"),
            ]
        )
    return table(header, rows)


# What CPUs are told apart by, as `ragvl doctor` names it, slowest first
_ISAS = ("baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx")


def name_on_cpu(benchmark: str, isa: str) -> str:
    """What results are called of a benchmark whose figures differ much from CPU to CPU."""
    assert isa in _ISAS, isa
    return f"{benchmark}_{isa}"


def on_each_cpu(results: Results, benchmark: str) -> list[Result]:
    """A benchmark's results on each kind of CPU on which it was measured."""
    names = (name_on_cpu(benchmark, isa) for isa in _ISAS)
    return [results[name] for name in names if name in results]


def times(spread: Mapping[str, float]) -> str:
    """A ratio's median, lowest and highest."""
    return f"{spread['median']:.2f}x ({spread['min']:.2f} to {spread['max']:.2f})"


def mib(peak: float | None) -> str:
    return NOT_MEASURED if peak is None else f"{peak:,.0f} MiB"


def devices(results: Iterable[Result]) -> str:
    """The machines of the results, each once."""
    return ", ".join(dict.fromkeys(result["machine"]["device"] for result in results))
