"""Every operation on a GPU, timed against other methods and against what the hardware reaches.

    make bench-gpu-ops                            # builds, then runs this
    python benchmarks/gpu_ops.py --device cpu     # a small size, to see that it runs

Needs no network and nothing but torch, triton and what builds the extension.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product, zip_longest
from typing import Annotated, Any

import bench_diffusion_noise
import bench_prefix_attention
import bench_prefix_write
import bench_relevance_head
import bench_residual_rms_norm
import bench_rotary_embedding
import bench_visual_weighted_cross_entropy
import tables
import torch
import typer
from bench_visual_weighted_cross_entropy import Size
from common import BUILD, save
from gpu import Clocks, captured, goal, print_goals
from operation import DTYPES, Method
from rich.console import Console
from rich.table import Table
from roofline import Peaks, Work, measure_peaks
from shapes import SHAPES
from tables import Result, Results, table, unmeasured

from ragvl.profiling.timing import compare, peak_mib, time_in_turn
from ragvl.runtime import resolve_device

BACKENDS = ("reference", "cpu", "triton", "cuda")
# A cache that holds all inputs would be measured in the memory's place: so many times its size
_ROTATED = 4
_MOST_ROTATED = 512
_MOST_BYTES = 16 << 30


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    Attributes:
        operation: its name.
        case: its size, in words.
        make: makes the methods, each time on tensors of their own; by name.
        baseline: the method that speed is against.
        work: what has to be computed and moved at least.
        waits: methods that wait for the GPU, which no graph can hold.
        trains: with gradients, and peak memory is measured as well.
    """

    operation: str
    case: str
    make: Callable[[], dict[str, Method]]
    baseline: str
    work: Work
    waits: tuple[str, ...] = ()
    trains: bool = False


# --- cases --------------------------------------------------------------------------------------


def cases(device: torch.device, *, small: bool) -> Iterator[Case]:
    """Everything that is timed; `small` runs in seconds on a CPU.

    Operations take turns, so that each has figures where there is no time for all of them.
    """
    operations = (
        _relevance_head_cases(device, small),
        _prefix_attention_cases(device, small),
        _prefix_write_cases(device, small),
        _residual_rms_norm_cases(device, small),
        _rotary_embedding_cases(device, small),
        _diffusion_noise_cases(device, small),
        _loss_cases(device, small),
    )
    for row in zip_longest(*operations):
        yield from (case for case in row if case is not None)


def _relevance_head_cases(device: torch.device, small: bool) -> Iterator[Case]:
    sizes = [(2, 64)] if small else [(1, 896), (20, 2048), (20, 4096), (64, 2048), (64, 5120)]
    for (batch, dim), dtype in product(sizes, DTYPES.values()):
        rows = batch * dim
        yield Case(
            "relevance_head",
            f"B={batch}, D={dim}, {_name(dtype)}",
            partial(bench_relevance_head.methods, batch, dim, dtype, device, 0),
            "eager, two rows",
            # The norm, its weight, and two products of a row; weights and head are float32
            Work(8 * rows, 0, rows * dtype.itemsize + 3 * dim * 4 + batch * 20),
        )


def _prefix_attention_cases(device: torch.device, small: bool) -> Iterator[Case]:
    bench = bench_prefix_attention
    sizes = [("tiny", 16)] if small else [("internvl2-1b", 272), ("internvl2-2b", 272)]
    sizes += [] if small else [("qwen2.5-vl-7b", 1312), ("llava-1.5-7b", 592)]
    dtypes = [torch.float32] if small else [torch.bfloat16]
    for (model, shortest), dtype, ragged in product(sizes, dtypes, (0, bench.RAGGED)):
        decoder = SHAPES[model].decoder
        lengths = bench.prefix_lengths(shortest, ragged)
        suffix = bench.SUFFIX_TOKENS
        seen = sum(suffix * n + suffix * (suffix + 1) // 2 for n in lengths)
        numbers = 2 * decoder.num_kv_heads * decoder.head_dim * sum(n + suffix for n in lengths)
        numbers += 2 * decoder.num_heads * decoder.head_dim * suffix * len(lengths)
        yield Case(
            bench.OPERATION,
            f"{model}, {shortest} to {shortest + ragged} prefix tokens, {_name(dtype)}",
            partial(bench.methods, model, shortest, dtype, device, ragged),
            "sdpa, already concatenated",
            Work(0, 4 * decoder.num_heads * decoder.head_dim * seen, numbers * dtype.itemsize),
            waits=("reference",),
        )


def _prefix_write_cases(device: torch.device, small: bool) -> Iterator[Case]:
    bench = bench_prefix_write
    sizes = [("tiny", 16)] if small else [("internvl2-2b", 272), ("llava-1.5-7b", 592)]
    dtype = torch.float32 if small else torch.bfloat16
    for (model, tokens), compression in product(sizes, (None, *bench.COMPRESSIONS)):
        decoder = SHAPES[model].decoder
        numbers = 2 * bench.BATCH * tokens * decoder.num_kv_heads * decoder.head_dim
        held = {None: dtype.itemsize, "int8": 1, "int4": 0.5}[compression]
        yield Case(
            bench.OPERATION,
            f"{bench.BATCH} prefixes of {tokens} tokens, {model}, {compression or _name(dtype)}",
            partial(bench.methods, model, tokens, compression, dtype, device),
            bench.BASELINE,
            Work(0, 0, numbers * (dtype.itemsize + held)),
            waits=("reference",),
        )


def _residual_rms_norm_cases(device: torch.device, small: bool) -> Iterator[Case]:
    bench = bench_residual_rms_norm
    dtype = torch.float32 if small else torch.bfloat16
    for rows, dim in [(2, 64)] if small else bench.CASES:
        yield Case(
            bench.OPERATION,
            f"{rows} rows, D={dim}, {_name(dtype)}",
            partial(bench.methods, rows, dim, dtype, device),
            bench.BASELINE,
            Work(0, 0, 4 * rows * dim * dtype.itemsize),
        )


def _rotary_embedding_cases(device: torch.device, small: bool) -> Iterator[Case]:
    bench = bench_rotary_embedding
    dtype = torch.float32 if small else torch.bfloat16
    for model, tokens in [("tiny", 16)] if small else bench.CASES:
        decoder = SHAPES[model].decoder
        numbers = tokens * decoder.head_dim * (decoder.num_heads + decoder.num_kv_heads + 1)
        yield Case(
            bench.OPERATION,
            f"{tokens} tokens, {model}, {_name(dtype)}",
            partial(bench.methods, model, tokens, dtype, device),
            bench.BASELINE,
            Work(0, 0, 2 * numbers * dtype.itemsize),
        )


def _diffusion_noise_cases(device: torch.device, small: bool) -> Iterator[Case]:
    mebibytes = [1] if small else [16, 256, 1024]
    dim = 64 if small else 2048
    for size, dtype, share in product(mebibytes, DTYPES.values(), (1.0, 0.75)):
        rows = size * 2**20 // dtype.itemsize // dim
        yield Case(
            "diffusion_noise",
            f"{size} MiB, {100 * share:.0f} % noised, {_name(dtype)}",
            partial(bench_diffusion_noise.methods, rows, dim, dtype, device, share),
            "eager",
            Work(0, 0, 2 * rows * dim * dtype.itemsize + (rows if share < 1 else 0)),
            waits=() if share == 1 else ("eager",),
        )


def _loss_cases(device: torch.device, small: bool) -> Iterator[Case]:
    bench = bench_visual_weighted_cross_entropy
    size = Size(64, 16, 100, torch.float32) if small else Size(8192, 2048, 151_655, torch.bfloat16)
    for labelled, head in bench.CASES:
        rows = round(size.positions * float(labelled.removesuffix(" %")) / 100)
        products = 3 if head == "trained" else 2  # logits, gradient of hidden, of the head
        weights = size.vocabulary * size.dim
        numbers = 4 * rows * size.dim + (products * weights)
        yield Case(
            bench.OPERATION,
            f"{size.positions} x {size.dim} x {size.vocabulary}, {labelled} labelled, {head} head",
            partial(bench.methods, size, labelled, head, device),
            "eager",
            Work(2 * products * rows * weights, 0, numbers * size.dtype.itemsize),
            waits=("eager", *BACKENDS, "liger, unweighted, one branch"),
            trains=True,
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- timing -------------------------------------------------------------------------------------


def measure(
    chosen: Sequence[Case], device: torch.device, peaks: Peaks, *, rounds: int, seconds: float
) -> dict[str, Any]:
    """Times every case, and says what share of the hardware's measured limit each method reaches.

    Methods take turns, each round on other tensors than the call before, more than the cache holds.
    `call_us` is one call from Python; `us` the same replayed from a CUDA graph, where a method can
    be captured: what it takes inside a captured model.

    Args:
        chosen: what to time.
        device: where.
        peaks: what the machine was measured to reach.
        rounds: samples of each method, at least two.
        seconds: cases that are not begun in this time are left out, and named.
    """
    started = time.monotonic()
    with Clocks(device) as clocks:
        measured, left_out = [], []
        for case in chosen:
            if time.monotonic() - started > seconds:
                left_out.append(f"{case.operation}, {case.case}")
                continue
            with torch.inference_mode(not case.trains):
                measured.append(_measure_case(case, device, peaks, rounds))
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return {
        "rounds": rounds,
        "peaks": asdict(peaks),
        "clocks": clocks.spreads(),
        "cases": measured,
        "left_out": left_out,
    }


def machine_peaks(device: torch.device) -> Peaks:
    """What the machine reaches in the dtype that models have on it."""
    return measure_peaks(device, torch.bfloat16 if device.type == "cuda" else torch.float32)


def _measure_case(case: Case, device: torch.device, peaks: Peaks, rounds: int) -> dict[str, Any]:
    sets = _tensor_sets(case, device)
    calls: dict[str, Callable[[], object]] = {}
    for name in sets[0]:
        rotated = [methods[name] for methods in sets]
        calls[f"{name}: call"] = partial(_call_all, rotated)
        if device.type == "cuda" and name not in case.waits:
            calls[f"{name}: graph"] = captured(rotated).replay
    samples = time_in_turn(calls, rounds=rounds, warmup=2, sample_ms=20, device=device)
    us = {name: [1e3 * ms / len(sets) for ms in times] for name, times in samples.items()}
    # What counts is a graph's replay; where a method cannot be captured, its call
    best = {name: us.get(f"{name}: graph", us[f"{name}: call"]) for name in sets[0]}
    least_us = 1e6 * case.work.seconds(peaks)
    methods = {
        name: {
            "us": figures["ms"],
            "speedup": figures["speedup"],
            "share_of_limit": least_us / figures["ms"]["median"],
            "captured": f"{name}: graph" in us,
            "call_us": compare({name: us[f"{name}: call"]}, name)[name]["ms"],
        }
        for name, figures in compare(best, case.baseline).items()
    }
    if case.trains:
        for name, figures in methods.items():
            figures["peak_mib"] = peak_mib(sets[0][name], device)
    return {
        "operation": case.operation,
        "case": case.case,
        "baseline": case.baseline,
        "flops": case.work.linear_flops + case.work.attention_flops,
        "bytes": case.work.moved_bytes,
        "least_us": least_us,
        "tensors_rotated": len(sets),
        "methods": methods,
    }


def _call_all(calls: Sequence[Method]) -> None:
    for call in calls:
        call()


def _tensor_sets(case: Case, device: torch.device) -> list[dict[str, Method]]:
    """Methods on as many sets of tensors as the cache does not hold; one where it is larger."""
    if device.type != "cuda":
        return [case.make() for _ in range(2)]
    before = torch.cuda.memory_allocated(device)
    sets = [case.make()]
    taken = max(1, torch.cuda.memory_allocated(device) - before)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    wanted = -(-_ROTATED * cache // int(case.work.moved_bytes))
    count = max(1, min(wanted, _MOST_ROTATED, _MOST_BYTES // taken))
    return sets + [case.make() for _ in range(count - 1)]


# --- goals --------------------------------------------------------------------------------------


def goals(measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each operation promises, against what was measured at the sizes of `cases`."""
    by_operation: dict[str, list[dict[str, Any]]] = {}
    for case in measured:
        by_operation.setdefault(case["operation"], []).append(case)
    promised = []
    for case in by_operation.get("relevance_head", []):
        promised.append(goal(_label(case), "us", _best(case)["us"]["median"], at_most=8))
    for case in by_operation.get("prefix_attention", []):
        ours, padded = _best(case), case["methods"]["sdpa, already concatenated"]
        unpadded = case["methods"].get("sdpa, no padding")
        if unpadded is not None:
            share = unpadded["us"]["median"] / ours["us"]["median"]
            promised.append(goal(_label(case), "rate of SDPA without padding", share, at_least=0.7))
        share = padded["us"]["median"] / ours["us"]["median"]
        promised.append(goal(_label(case), "rate of padded SDPA", share, at_least=1))
    for case in by_operation.get("diffusion_noise", []):
        if case["bytes"] >= 2 * 256 * 2**20:
            share = _best(case)["share_of_limit"]
            promised.append(goal(_label(case), "share of copy bandwidth", share, at_least=0.85))
    for case in by_operation.get("visual_weighted_cross_entropy", []):
        ours, eager = _best(case), case["methods"]["eager"]
        if " 100 % labelled" in case["case"]:
            share = ours["share_of_limit"]
            promised.append(goal(_label(case), "share of matrix rate", share, at_least=0.75))
            if ours["peak_mib"] is not None and eager["peak_mib"]:
                memory = ours["peak_mib"] / eager["peak_mib"]
                promised.append(goal(_label(case), "memory against eager", memory, at_most=0.1))
        else:
            speed = ours["speedup"]["median"]
            promised.append(goal(_label(case), "speed against eager", speed, at_least=10))
    return promised


def _label(case: dict[str, Any]) -> str:
    return f"{case['operation']}, {case['case']}"


def _best(case: dict[str, Any]) -> dict[str, Any]:
    """The figures of the fastest of our kernels."""
    ours = [case["methods"][name] for name in BACKENDS[1:] if name in case["methods"]]
    return min(ours, key=lambda figures: figures["us"]["median"])


# --- command line -------------------------------------------------------------------------------


def speed_table(results: Results) -> str:
    """Every operation on a GPU: time, share of the hardware's limit, the fastest other method."""
    result = results.get("gpu_ops")
    header = ["operation", "case", "torch", "another method", "Triton", "CUDA", "of the limit"]
    if result is None:
        return unmeasured(header, names=2)

    def time(name: str, methods: Result) -> str:
        return f"{methods[name]['us']['median']:,.1f} us" if name in methods else ""

    rows = []
    for case in result["cases"]:
        methods = case["methods"]
        ours = [name for name in ("triton", "cuda", "cpu") if name in methods]
        known = (*ours, "reference", case["baseline"])
        others = [n for n in methods if n not in known and n.split(", ")[0] not in ours]
        other = min(others, key=lambda n: methods[n]["us"]["median"], default=None)
        share = max((methods[name]["share_of_limit"] for name in ours), default=0.0)
        rows.append(
            [
                *(case["operation"], case["case"], time(case["baseline"], methods)),
                "" if other is None else f"{time(other, methods)} ({other})",
                *(time(name, methods) for name in ("triton", "cuda")),
                f"{100 * share:.0f} %",
            ]
        )
    return table(header, rows, _note(result, results.get("gpu_tests_ops")))


def _note(result: Result, tested: Result | None) -> str:
    peaks, clocks = result["peaks"], result["clocks"].get("clocks.sm")
    note = (
        f"{result['machine']['device']}, medians of {result['rounds']} rounds in one run, on "
        f"tensors that the cache does not hold; replayed from a CUDA graph where a method can be "
        f"captured. The limit: operations and bytes counted, at the measured rates of a large "
        f"product ({peaks['flops_per_second'] / 1e12:.0f} TFLOP/s) and a large copy "
        f"({peaks['bytes_per_second'] / 1e12:.2f} TB/s)."
    )
    if clocks is not None:
        note += f" Clock: {clocks['median']:.0f} MHz ({clocks['min']:.0f} to {clocks['max']:.0f})."
    if tested is not None:
        tests = tested["tests"]
        failed = tests["failures"] + tests["errors"]
        passed = tests["tests"] - failed - tests["skipped"]
        note += f" Tests there: {passed} passed, {failed} failed, {tests['skipped']} skipped."
        if "problem" in tests:
            note += f" They were {tests['problem']}."
    if result["left_out"]:
        note += f" Not measured, for lack of time: {'; '.join(result['left_out'])}."
    return note


def goals_table(results: Results) -> str:
    """What each operation promises on a GPU, and whether it keeps it."""
    return tables.goals(results.get(name) for name in ("gpu_tests_ops", "gpu_ops"))


def main(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    rounds: Annotated[int, typer.Option(min=2, help="Samples of each method.")] = 15,
    seconds: Annotated[float, typer.Option(help="For all of it.")] = 180,
) -> None:
    """Measure; write benchmarks/results/gpu_ops.json, or on a CPU the same in build."""
    where = resolve_device(device)
    small = where.type != "cuda"
    # What is begun at the last moment takes a few seconds more
    chosen = list(cases(where, small=small))
    result = measure(chosen, where, machine_peaks(where), rounds=rounds, seconds=0.9 * seconds)
    result["goals"] = [] if small else goals(result["cases"])
    path = save("gpu_ops", result, where, folder=BUILD if small else None)
    console = Console(width=160)
    table = Table("operation", "case", "method", "us", "of the limit", "speedup")
    for case in result["cases"]:
        for name, figures in case["methods"].items():
            table.add_row(
                *(case["operation"], case["case"], name),
                f"{figures['us']['median']:.1f} ± {figures['us']['iqr'] / 2:.1f}",
                f"{100 * figures['share_of_limit']:.1f} %",
                f"{figures['speedup']['median']:.2f}x",
            )
    console.print(table)
    print_goals(result["goals"], console)
    console.print(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
