"""What the benchmarks of single operations share: the table that they print and their JSON.

They measure on the CPU; gpu_ops.py takes their methods and measures them on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from common import save
from rich.console import Console
from rich.table import Table
from tables import NOT_MEASURED, Result, table
from torch import Tensor

from ragvl.profiling.timing import compare, peak_mib, time_in_turn

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # of pytest-benchmark
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Method = Callable[[], Tensor]


def speedup(_: Result, figures: Result) -> str:
    return f"{figures['speedup']['median']:,.1f}x"


def speed_table(
    result: Result,
    keys: dict[str, str],
    methods: Sequence[str],
    note: str,
    *,
    cell: Callable[[Result, Result], str] = speedup,
) -> str:
    """A row for each case, a column for each method.

    Args:
        result: what `measure_operation` wrote.
        keys: of a case, in the order of the columns, and their headings.
        methods: which.
        note: what speed is against.
        cell: makes of a case and a method's figures what the table says.
    """

    def measured(case: Result, method: str) -> str:
        figures = case["methods"].get(method)
        return NOT_MEASURED if figures is None else cell(case, figures)

    rows = [
        [*(str(case[key]) for key in keys), *(measured(case, method) for method in methods)]
        for case in result["cases"]
    ]
    device, rounds = result["machine"]["device"], result["rounds"]
    note = f"{device}. {note}; median of {rounds} rounds in one run."
    return table([*keys.values(), *methods], rows, note)


def measure_operation(
    operation: str,
    cases: Sequence[dict[str, Any]],
    methods: Callable[[dict[str, Any]], dict[str, Method]],
    baseline: str,
    *,
    rounds: int,
    threads: int,
    sample_ms: float = 20,
    memory: bool = False,
    **facts: Any,
) -> None:
    """Times each case's methods in turn, prints a table, writes <operation>_cpu.json.

    Args:
        operation: its name.
        cases: what distinguishes them, under the same names in each; goes into the JSON.
        methods: what to compare in a case, by name.
        baseline: the method that speed is against.
        rounds: samples of each method.
        threads: of torch.
        sample_ms: how long a sample lasts.
        memory: also measure each method's peak memory above its inputs, once, after its timing.
        facts: what is the same in all cases; goes into the JSON.
    """
    torch.set_num_threads(threads)
    columns = ["us", "speedup", *(["peak MiB"] if memory else [])]
    table = Table(*cases[0], "method", *columns, title=operation)
    measured = []
    for case in cases:
        calls = methods(case)
        samples = time_in_turn(calls, rounds=rounds, warmup=3, sample_ms=sample_ms, device=CPU)
        compared = compare(samples, baseline)
        measured.append({**case, "methods": compared})
        for name, figures in compared.items():
            cells = [f"{figures['ms']['median'] * 1e3:.0f}", f"{figures['speedup']['median']:.2f}x"]
            if memory:
                peak = figures["peak_mib"] = peak_mib(calls[name], CPU)
                cells.append("?" if peak is None else f"{peak:.0f}")
            table.add_row(*map(str, case.values()), name, *cells)
    result = {"rounds": rounds, **facts, "baseline": baseline, "cases": measured}
    path = save(f"{operation}_cpu", result, CPU)
    console = Console()
    console.print(table)
    console.print(f"wrote {path}")
