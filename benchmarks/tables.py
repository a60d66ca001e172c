"""One function for each table of the documents: results in, Markdown out.

A function asks `load` for results by name and gets None for what has not been measured, which the
table then says. Of a CPU only ratios are quoted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ragvl.ablation.ablation import table as ablation_table
from ragvl.evaluation.metrics import difference

NOT_MEASURED = "not measured"
METHODS = {
    "serial_generate": "one candidate at a time, `generate` (the release)",
    "padded_batch": "one padded batch, all logits",
    "stock_cache_warm": "one at a time, prefixes in Hugging Face's cache, warm",
    "cross_encoder": "sentence-transformers `CrossEncoder`",
    "fast_rerank_cold": "**`ragvl.fast_rerank`, cold**",
    "fast_rerank_warm": "**`ragvl.fast_rerank`, warm**",
}
# In the order in which the tables have them
GPU_MODELS = (
    *("internvl2-1b", "internvl2-2b", "qwen3-vl-2b", "qwen2.5-vl-3b", "qwen2.5-vl-7b"),
    *("llava-1.5-7b", "llava-1.5-13b"),
)
GPU_IMAGE_TOKENS = ("", "_256", "_576", "_1296")  # parts of a model; the first is all of them
GPU_TRAINED = ("internvl2-1b", "internvl2-2b", "llava-1.5-7b")
FAMILIES = {
    "llava": "LLaVA",
    "internvl": "InternVL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
}

Result = dict[str, Any]
Load = Callable[[str], Result | None]


# --- fast_rerank --------------------------------------------------------------------------------


def fast_rerank(load: Load) -> str:
    """Speed and memory by method on the CPU, a column for each model and length of suffix."""
    result = load("fast_rerank_cpu")
    if result is None:
        rows = [[label, NOT_MEASURED] for label in METHODS.values()]
        return _table(["", "CPU, speed"], rows)
    cases = result["cases"]

    def speedup(case: Result, method: str) -> str:
        figures = case["methods"].get(method)
        return "" if figures is None else _range(figures["speedup"])

    def memory(method: str) -> str:
        size = cases[0]["methods"][method]["peak_mib"]
        return NOT_MEASURED if size is None else f"{size:,.0f} MiB"

    rows = [
        [label, *(speedup(case, method) for case in cases), memory(method)]
        for method, label in METHODS.items()
        if method in cases[0]["methods"]
    ]
    header = ["", *map(_case_name, cases), "memory"]
    difference = max(case["max_score_difference"] for case in cases)
    tokens = _one({case["model"]["image_tokens"] for case in cases})
    note = (
        f"{result['machine']['device']}, float32, {result['num_documents']} candidates of {tokens} "
        f"image tokens, a new question each round; median (lowest to highest) of "
        f"{result['rounds']} rounds in one run, against the first row. Memory is the peak above "
        f"what the loaded models and cached prefixes hold, in the first column's case. All "
        f"methods' scores agree within {difference:.0e}."
    )
    return f"{_table(header, rows)}\n\n{note}"


def _case_name(case: Result) -> str:
    model, suffix = case["model"], case["prompt_tokens"]["suffix"][1]
    family = FAMILIES[model["family"]]
    return f"{family}, {model['parameters'] / 1e6:,.0f} M, {suffix} suffix tokens"


def gpu_models(load: Load) -> list[Result]:
    """Results of the models that were measured on a GPU, some at one number of image tokens."""
    stems = [f"gpu_rerank_{name}{part}" for name in GPU_MODELS for part in GPU_IMAGE_TOKENS]
    return [result for stem in stems if (result := load(stem))]


def gpu_rerank(load: Load) -> str:
    """Times on the GPU, a row for each model, number of image tokens and length of suffix."""
    header = [
        *("model", "image tokens", "suffix tokens", "warm p50", "p90", "p99", "at best"),
        *("cold p50", "at best", "`generate`", "padded batch", "CrossEncoder", "stock cache, warm"),
    ]
    results = gpu_models(load)
    if not results:
        return _table(header, [["any", *[NOT_MEASURED] * (len(header) - 1)]])
    rows, left_out = [], []
    for result in results:
        left_out += [f"{result['model']}, {what}" for what in result["left_out"]]
        for case in result["cases"]:
            others = ("serial_generate", "padded_batch", "cross_encoder", "stock_cache_warm")
            found = [case["methods"].get(name) for name in others]
            rows.append(
                [
                    case["model"]["name"],
                    f"{case['model']['image_tokens']:,}",
                    str(case["prompt_tokens"]["suffix"][1]),
                    *(f"{case['warm_ms'][p]:.2f} ms" for p in ("p50", "p90", "p99")),
                    f"{case['least_ms']['warm']:.2f} ms",
                    f"{case['cold_ms']['p50']:.0f} ms",
                    f"{case['least_ms']['cold']:.0f} ms",
                    *("" if f is None else f"{f['ms']['median']:.0f} ms" for f in found),
                ]
            )
    calls = results[0]["cases"][0]["warm_ms"]["calls"], results[0]["cases"][0]["cold_ms"]["calls"]
    rates = [
        f"{result['model']} {row['pairs_per_second']['median']:,.0f} ({row['image_tokens']} tokens)"
        for result in results
        for row in result["throughput"]
    ]
    note = (
        f"{_machines(results)}, bfloat16, {results[0]['num_documents']} candidates; percentiles of "
        f"{calls[0]:,} warm and {calls[1]:,} cold calls, other methods' medians of "
        f"{results[0]['rounds']} rounds in the same run. At best: operations and bytes counted, at "
        f"the rates of a large product and a large copy measured in the run. Warm pairs a second, "
        f"many queries in one call: {', '.join(rates)}."
    )
    if left_out:
        note += f" Not measured, for lack of time or memory: {'; '.join(left_out)}."
    return f"{_table(header, rows)}\n\n{note}"


def gpu_rerank_goals(load: Load) -> str:
    """What reranking promises on a GPU, right and fast, and whether it keeps it."""
    others = ("checks", "checks_internvl2-1b", "tiers")
    results = [result for part in others if (result := load(f"gpu_rerank_{part}"))]
    results += gpu_models(load)
    goals = {"goals": [goal for result in results for goal in result["goals"]]}
    return _goals(goals if results else None)


def gpu_rerank_tiers(load: Load) -> str:
    """How a query's time falls with the share of known documents, by tier."""
    result = load("gpu_rerank_tiers")
    header = ["model", "tier", "none known", "50 %", "90 %", "100 %", "pays from"]
    if result is None:
        return _table(header, [["any", "any", *[NOT_MEASURED] * 5]])
    rows = [
        [
            *(model["model"], row["tier"]),
            *(f"{found['ms']['median']:.1f} ms" for found in row["by_share"].values()),
            f"{100 * row['break_even']:.0f} %",
        ]
        for model in result["models"]
        for row in model["tiers"]
    ]
    return f"{_table(header, rows)}\n\n{_machines([result])}, medians of {result['rounds']} rounds."


def _machines(results: Sequence[Result]) -> str:
    return ", ".join(dict.fromkeys(result["machine"]["device"] for result in results))


# --- prefix cache -------------------------------------------------------------------------------


def prefix_cache_costs(load: Load) -> str:
    """What one more of each thing costs a candidate, in percent of a cold candidate."""
    results = {"CPU": load("prefix_cache_cpu"), "GPU": load("prefix_cache_cuda")}
    header = ["one more", *(f"{device}: {way}" for device in results for way in ("cold", "warm"))]
    labels = {
        "candidates": "candidate",
        "image tokens": "image token of every candidate",
        "suffix tokens": "suffix token of every candidate",
        "queries": "query over the same candidates, in one `score`",
    }

    def cells(result: Result | None, what: str) -> list[str]:
        if result is None:
            return [NOT_MEASURED] * 2
        slopes = {name: found["ms_per_one_more"] for name, found in result["scaling"].items()}
        share = 1 if what == "candidates" else result["num_documents"]
        whole = slopes["candidates"]["cold"]
        return [f"{100 * slopes[what][way] / share / whole:.3g} %" for way in ("cold", "warm")]

    rows = [
        [label, *(cell for result in results.values() for cell in cells(result, what))]
        for what, label in labels.items()
    ]
    notes = []
    for result in filter(None, results.values()):
        model = result["model"]
        slopes = result["scaling"]["image tokens"]["ms_per_one_more"]
        notes.append(
            f"{result['machine']['device']}: the model `{model['name']}` in {model['dtype']} with "
            f"{result['num_documents']} candidates of {model['image_tokens']} image tokens, where "
            f"not varied; slopes through medians of {result['rounds']} rounds. The attention "
            f"alone, measured apart, grows with an image token by "
            f"{100 * slopes['attention'] / slopes['warm']:.0f} % of what a warm call does."
        )
    return "\n\n".join([_table(header, rows), *notes])


def prefix_cache_bookkeeping(load: Load) -> str:
    """What one prefix costs beside its own work, by how many there are."""
    result = load("prefix_cache_bookkeeping")
    header = ["prefixes on the device", "to find one", "to keep one more"]
    if result is None:
        return _table(header, [["any", NOT_MEASURED, NOT_MEASURED]])
    first, *_ = points = result["by_prefixes"]
    rows = [
        [
            f"{point['prefixes']:,}",
            *(f"{point[n]['min'] / first[n]['min']:.2f}x" for n in ("known", "new")),
        ]
        for point in points
    ]
    note = (
        f"{result['machine']['device']}: the time of the bookkeeping against that with "
        f"{first['prefixes']} prefixes; fastest of {result['rounds']} rounds in one run."
    )
    return "\n\n".join([_table(header, rows), note])


def prefix_cache_bytes(load: Load) -> str:
    """What a picture takes in published models; computed, not measured."""
    result = load("prefix_cache_bytes")
    kinds = {"kv": "keys and values", "int8": "in int8", "features": "visual tokens"}
    header = ["model", "image tokens", *kinds.values(), "100,000 pictures, keys and values"]
    if result is None:
        return _table(header, [["any", *[NOT_MEASURED] * (len(header) - 1)]])
    rows = [
        [
            row["model"],
            f"{row['image_tokens']:,}",
            *(f"{row[kind] / 2**20:.1f} MiB" for kind in kinds),
            f"{100_000 * row['kv'] / 2**40:.2f} TiB",
        ]
        for row in result["models"]
    ]
    return _table(header, rows)


def prefix_cache_tiers(load: Load) -> str:
    """What known and unknown documents cost in each tier, and from which share of hits it pays."""
    results = {"CPU": load("prefix_cache_cpu"), "GPU": load("prefix_cache_cuda")}
    columns = {"hit": "known", "miss": "unknown", "break_even": "pays from a hit rate of"}
    header = [
        "tier",
        *(f"{device}: {label}" for device in results for label in columns.values()),
    ]
    found = {
        device: {row["tier"]: row for row in result["tiers"]}
        for device, result in results.items()
        if result is not None
    }
    names = dict.fromkeys(name for rows in found.values() for name in rows) or ["any"]

    def cells(device: str, name: str) -> list[str]:
        row = found.get(device, {}).get(name)
        if row is None:
            return [NOT_MEASURED] * len(columns)
        return [
            f"{row['hit']['median']:.2f}x",
            f"{row['miss']['median']:.2f}x",
            f"{100 * row['break_even']:.0f} %",
        ]

    rows = [[name, *(cell for device in results for cell in cells(device, name))] for name in names]
    notes = [
        f"{result['machine']['device']}: speed of a question about documents that the tier has, or "
        f"has not and keeps from then on, against no cache; medians of {result['rounds']} rounds. "
        f"The device tier is full; files are in the system's cache. {_memory(result['memory'])}"
        for result in filter(None, results.values())
    ]
    return "\n\n".join([_table(header, rows), *notes])


def _memory(memory: Result) -> str:
    return (
        f"The device tier takes {100 * memory['overhead']:.1f} % more than the keys and values of "
        f"the {memory['kv_bytes'] / 2**20:,.0f} MiB measured: the ends of last pages."
    )


def prefix_cache_compression(load: Load) -> str:
    """Speed, size and error of keys and values in a byte each, and of a model in bfloat16."""
    results = {"CPU": load("prefix_cache_cpu"), "GPU": load("prefix_cache_cuda")}
    header = ["", "bytes of a document", "speed", "largest difference of a score", "mean"]
    rows, notes = [], []
    for device, result in results.items():
        if result is None:
            rows.append([device, *[NOT_MEASURED] * (len(header) - 1)])
            continue
        found = [
            (row["compression"].replace("None", "exact"), row, row["bytes_per_document"])
            for row in result["compression"]
        ]
        exact = found[0][2]
        if result["bfloat16"] is not None:
            found.append(("the whole model in bfloat16", result["bfloat16"], exact / 2))
        rows += [
            [
                f"{device}: {name}",
                f"{100 * size / exact:.0f} %",
                f"{row['speed']['median']:.2f}x",
                f"{row['max_score_difference']:.1e}",
                f"{row['mean_score_difference']:.1e}",
            ]
            for name, row, size in found
        ]
        first, other = result["templates"]["caption"], result["templates"]["instruction-first"]
        notes.append(
            f"{result['machine']['device']}, {found[1][1]['pairs']} pairs, random weights in "
            f"{result['model']['dtype']}. The template `instruction-first`: "
            f"{other['suffix_tokens']} suffix tokens instead of {first['suffix_tokens']}, "
            f"{other['speed']['median']:.2f}x as fast."
        )
    return "\n\n".join([_table(header, rows), *notes])


# --- operations ---------------------------------------------------------------------------------


def prefix_attention(load: Load) -> str:
    """Speed of the backends against torch's attention over a stock cache."""
    return _operation(
        load,
        "prefix_attention",
        {"model": "heads of", "prefix": "prefix tokens", "dtype": "dtype"},
        ["sdpa, already concatenated", "reference", "cpu"],
        lambda result: (
            f"Speed is against concatenating the new keys to a stock, padded cache and torch's "
            f"attention; {result['batch']} suffixes of {result['suffix']} tokens"
        ),
    )


def relevance_head(load: Load) -> str:
    """Speed of the backends against the product with the whole vocabulary."""
    return _operation(
        load,
        "relevance_head",
        {"batch": "prompts", "hidden_size": "hidden", "dtype": "dtype"},
        ["eager, two rows", "reference", "cpu"],
        lambda result: (
            f"Speed is against the product with a whole vocabulary of {result['vocabulary']:,}"
        ),
    )


def diffusion_noise(load: Load) -> str:
    """Speed of the backends against eager code."""
    return _operation(
        load,
        "diffusion_noise",
        {"rows": "rows", "hidden_size": "hidden", "dtype": "dtype"},
        ["copy alone", "reference", "cpu"],
        lambda result: (
            f"Speed is against clone, `randn_like`, multiply, add and masked write, "
            f"{100 * result['marked']:.0f} % of the rows marked"
        ),
    )


def visual_weighted_cross_entropy(load: Load) -> str:
    """Speed and memory of the backends, with gradients, against eager code on all logits."""

    def memory(case: Result, figures: Result) -> str:
        if figures["peak_mib"] is None:
            return _speedup(case, figures)
        extra = max(0.0, figures["peak_mib"] - case["gradients_mib"])
        return f"{_speedup(case, figures)}, {extra:,.0f} MiB"

    return _operation(
        load,
        "visual_weighted_cross_entropy",
        {"labelled": "labelled", "head": "head"},
        ["eager", "reference", "cpu"],
        lambda result: (
            f"Loss and gradients of {result['positions']:,} positions, hidden size "
            f"{result['dim']:,}, a vocabulary of {result['vocabulary']:,}, {result['dtype']}, "
            f"against both branches' logits in float32. Memory is the peak above inputs and "
            f"gradients returned"
        ),
        cell=memory,
    )


def _speedup(_: Result, figures: Result) -> str:
    return f"{figures['speedup']['median']:,.1f}x"


def _operation(
    load: Load,
    name: str,
    keys: dict[str, str],
    methods: list[str],
    explain: Callable[[Result], str],
    *,
    cell: Callable[[Result, Result], str] = _speedup,
) -> str:
    """A row for each case, whose names `keys` translates; a column for each method, on the CPU.

    `cell` makes what stands there of the case and the method's figures.
    """
    header = [*keys.values(), *methods]
    result = load(f"{name}_cpu")
    if result is None:
        return _table(header, [[*["any"] * len(keys), *[NOT_MEASURED] * len(methods)]])

    def measured(case: Result, method: str) -> str:
        figures = case["methods"].get(method)
        return NOT_MEASURED if figures is None else cell(case, figures)

    rows = [
        [*(str(case[key]) for key in keys), *(measured(case, method) for method in methods)]
        for case in result["cases"]
    ]
    note = (
        f"{result['machine']['device']}. {explain(result)}; median of {result['rounds']} rounds in "
        f"one run."
    )
    return f"{_table(header, rows)}\n\n{note}"


def gpu_ops(load: Load) -> str:
    """Every operation on a GPU: time, share of the hardware's limit, the fastest other way."""
    result = load("gpu_ops_times")
    header = ["operation", "case", "torch", "another way", "Triton", "CUDA", "of the limit"]
    if result is None:
        return _table(header, [["any", "any", *[NOT_MEASURED] * (len(header) - 2)]])

    def time(name: str, methods: Result) -> str:
        return f"{methods[name]['us']['median']:,.1f} us" if name in methods else ""

    rows = []
    for case in result["cases"]:
        methods = case["methods"]
        ours = [name for name in ("triton", "cuda", "cpu") if name in methods]
        others = [n for n in methods if n not in (*ours, "reference", case["baseline"])]
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
    peaks = result["peaks"]
    clocks = result["clocks"].get("clocks.sm")
    note = (
        f"{result['machine']['device']}, medians of {result['rounds']} rounds in one run, on "
        f"tensors that the cache does not hold; replayed from a CUDA graph where a method can be "
        f"captured. The limit: operations and bytes counted, at the measured rates of a large "
        f"product ({peaks['flops_per_second'] / 1e12:.0f} TFLOP/s) and a large copy "
        f"({peaks['bytes_per_second'] / 1e12:.2f} TB/s)."
    )
    if clocks is not None:
        note += f" Clock: {clocks['median']:.0f} MHz ({clocks['min']:.0f} to {clocks['max']:.0f})."
    if (part := load("gpu_ops_tests")) is not None:
        tests = part["tests"]
        failed = tests["failures"] + tests["errors"]
        passed = tests["tests"] - failed - tests["skipped"]
        note += f" Tests there: {passed} passed, {failed} failed, {tests['skipped']} skipped."
        if "problem" in tests:
            note += f" They were {tests['problem']}."
    if (part := load("gpu_ops_sanitizer")) is not None:
        verdicts = (f"{tool} {verdict}" for tool, verdict in part["sanitizer"].items())
        note += f" compute-sanitizer: {', '.join(verdicts)}."
    if result["left_out"]:
        note += f" Not measured, for lack of time: {'; '.join(result['left_out'])}."
    return f"{_table(header, rows)}\n\n{note}"


def gpu_ops_goals(load: Load) -> str:
    """What each operation promises on a GPU, and whether it keeps it."""
    parts = ("gpu_ops_tests", "gpu_ops_times", "gpu_ops_sanitizer")
    results = [result for part in parts if (result := load(part))]
    goals = {"goals": [goal for result in results for goal in result["goals"]]}
    return _goals(goals if results else None)


def _goals(result: Result | None) -> str:
    header = ["of", "figure", "goal", "measured", ""]
    if result is None:
        return _table(header, [["any", "any", *[NOT_MEASURED] * 2, ""]])
    rows = []
    for found in result["goals"]:
        at_most = found["at_most"] is not None
        bound = found["at_most"] if at_most else found["at_least"]
        rows.append(
            [
                *(found["of"], found["what"], f"at {'most' if at_most else 'least'} {bound:g}"),
                *(f"{found['found']:.3g}", "reached" if found["reached"] else "**missed**"),
            ]
        )
    return _table(header, rows)


# --- training -----------------------------------------------------------------------------------


def training_step(load: Load) -> str:
    """Time and memory of a training step by kind of noise, a row for each model and way."""
    results = {"CPU": load("training_step_cpu")}
    names = dict.fromkeys(
        name
        for result in results.values()
        if result is not None
        for case in result["cases"]
        for name in case["arms"]
    ) or ["any"]

    def cell(figures: Result) -> str:
        peak = "" if figures["peak_mib"] is None else f", {figures['peak_mib']:,.0f} MiB"
        return f"{1 / figures['speedup']['median']:.2f}x{peak}"

    rows = []
    for device, result in results.items():
        if result is None:
            rows.append([device, "any", "any", *[NOT_MEASURED] * len(names)])
            continue
        for case in result["cases"]:
            trained = f"adapters of rank {case['rank']}" if case["rank"] else "the decoder"
            trained += ", checkpointing" * case["gradient_checkpointing"]
            arms = [cell(case["arms"][name]) for name in names]
            rows.append([device, case["model"], trained, *arms])
    header = ["", "model", "trained", *names]
    notes = [
        f"{device}: {result['machine']['device']}, {result['dtype']}, random weights, batches of "
        f"{result['batch_size']}, medians of {result['rounds']} rounds in one run. Time is against "
        f"plain fine-tuning; memory is the peak above model, gradients and optimizer."
        for device, result in results.items()
        if result is not None
    ]
    return "\n\n".join([_table(header, rows), *notes])


def gpu_train(load: Load) -> str:
    """Time, tokens a second and memory of a step on a GPU by kind of noise; the largest batches."""
    results = [result for name in GPU_TRAINED if (result := load(f"gpu_train_{name}"))]
    header = ["model", "labelled", "noise", "time", "of plain", "tokens/s", "memory", "batch"]
    if not results:
        return _table(header, [["any", "any", "any", *[NOT_MEASURED] * (len(header) - 3)]])
    rows, left_out = [], []
    for result in results:
        left_out += [f"{result['model']}, {what}" for what in result["left_out"]]
        for case in result["cases"]:
            for arm, figures in case["arms"].items():
                ms, largest = figures["ms"]["median"], result["largest_batch"].get(arm)
                peak = figures["peak_mib"]
                rows.append(
                    [
                        *(result["model"], case["labelled"], arm, f"{ms:.0f} ms"),
                        f"{1 / figures['speedup']['median']:.2f}x",
                        f"{1e3 * figures['tokens'] / ms:,.0f}",
                        NOT_MEASURED if peak is None else f"{peak:,.0f} MiB",
                        "" if largest is None else str(largest),
                    ]
                )
    first = results[0]
    note = (
        f"{_machines(results)}, {first['dtype']}, random weights, adapters of rank 16; "
        f"{first['batch_size']} sequences of {first['num_tokens']:,} tokens with one picture; "
        f"medians of {first['rounds']} rounds in one run. Memory is the peak above model, "
        f"gradients and optimizer. Batch: the largest that fits, to a sixteenth."
    )
    if left_out:
        note += f" Not measured, for lack of time: {'; '.join(left_out)}."
    return f"{_table(header, rows)}\n\n{note}"


def gpu_train_goals(load: Load) -> str:
    """What noise-injected training promises on a GPU, and whether it keeps it."""
    results = [result for part in GPU_TRAINED if (result := load(f"gpu_train_{part}"))]
    goals = {"goals": [goal for result in results for goal in result["goals"]]}
    return _goals(goals if results else None)


# --- demo ---------------------------------------------------------------------------------------


def demo(load: Load) -> str:
    """What reranking does to the demo's questions, by pool, in percent."""
    result = load("demo")
    recalls = [f"recall@{k}" for k in (1, 2, 5, 10, 20)]
    header = ["pool", "order", *recalls, "precision", "f1", "answers right"]
    rows = []
    for pool in ("full", "gold"):
        for order, way in (("retrieved", "retrieved"), ("reranked", "natural")):
            if result is None:
                rows.append([pool, order, *[NOT_MEASURED] * (len(header) - 2)])
                continue
            found = result["pools"][pool]
            figures = [found[order][name] for name in recalls]
            figures += [found["kept"][way]["precision"], found["kept"][way]["f1"]]
            figures.append(found["answers"][way]["accuracy"])
            rows.append([pool, order, *(f"{100 * figure['value']:.1f}" for figure in figures)])
    if result is None:
        return _table(header, rows)
    sizes = {pool: found["num_documents"] for pool, found in result["pools"].items()}
    settings = result["settings"]
    note = (
        f"{result['num_questions']} test questions; {sizes['full']:,} pictures in the full "
        f"pool, {sizes['gold']:,} in the gold one; {settings['num_candidates']} candidates, of "
        f"which the first {settings['top_k']} at or above a relevance of "
        f"{result['thresholds']['natural']:g} are kept."
    )
    return f"{_table(header, rows)}\n\n{note}"


# --- evaluation ---------------------------------------------------------------------------------

_FOUND = ("recall@1", "recall@2", "recall@5", "recall@10", "recall@20", "mrr", "ndcg@10")


def documents_found(load: Load) -> str:
    """Of each drawn world, pool and order: where the gold documents are, with intervals."""
    rows = []
    for name, world in (("demo", "places"), ("charts", "charts")):
        result = load(name)
        for pool in ("full", "gold"):
            for order in ("retrieved", "reranked"):
                found = None if result is None else result["pools"][pool][order]
                rows.append([world, pool, order, *_figures(found, _FOUND)])
    return _table(["world", "pool", "order", *_FOUND], rows)


def documents_kept(load: Load) -> str:
    """What each threshold keeps of the demo's world, and how many answers are right from it."""
    header = ["pool", "kept", "relevance from", "precision", "recall", "F1", "answers right"]
    result = load("demo")
    if result is None:
        return _table(header, [["any", *[NOT_MEASURED] * (len(header) - 1)]])
    rows = []
    for pool, found in result["pools"].items():
        for way, answers in found["answers"].items():
            limit = result["thresholds"].get(way)
            rows.append(
                [
                    pool,
                    _WAYS.get(way, way),
                    "" if limit is None else f"{limit:.3f}",
                    *_figures(found["kept"].get(way), ("precision", "recall", "f1"), missing=""),
                    *_figures(answers, ("accuracy",)),
                ]
            )
    estimated_on = result["estimated_on"]
    note = (
        f"The first {result['settings']['top_k']} of {result['settings']['num_candidates']} "
        f"candidates, {result['num_questions']} questions, percent with 95 % intervals; thresholds "
        f"from {estimated_on['num_questions']} other questions ({estimated_on['data']}) of the "
        f"{estimated_on['pool']} pool: for the other one no precision is promised."
    )
    for name, why in estimated_on["refused"].items():
        note += f" `{name}` was asked for and refused: {why}."
    return f"{_table(header, rows)}\n\n{note}"


_WAYS = {
    "retrieved": "the retriever's first",
    "gold": "(gold pictures)",
    "none": "(no picture)",
}


def answers_by_category(load: Load) -> str:
    """Right answers of the demo's world by category and evidence, full pool."""
    result = load("demo")
    ways = ("none", "retrieved", "natural", "gold")
    header = ["category", *(_WAYS.get(way, way) for way in ways)]
    if result is None:
        return _table(header, [["any", *[NOT_MEASURED] * len(ways)]])
    answers = result["pools"]["full"]["answers"]
    rows = [
        [
            f"{category} ({count})",
            *(_figures(answers[way]["by_category"], (category,))[0] for way in ways),
        ]
        for category, count in result["categories"].items()
    ]
    return _table(header, rows)


def cross_domain(load: Load) -> str:
    """The models of one drawn world in another."""
    header = ["", "places", "charts", "change"]
    worlds = load("demo"), load("charts")
    measures = {
        "recall@1, retrieved": ("retrieved", "recall@1"),
        "recall@1, reranked": ("reranked", "recall@1"),
        "recall@20, either": ("retrieved", "recall@20"),
        "F1 of what is kept": ("kept", "natural", "f1"),
        "answers right, from the retriever's first": ("answers", "retrieved", "accuracy"),
        "answers right, from what is kept": ("answers", "natural", "accuracy"),
        "answers right, from gold pictures": ("answers", "gold", "accuracy"),
        "answers right, without pictures": ("answers", "none", "accuracy"),
    }
    if all(world is not None for world in worlds):
        measures |= {
            f"precision at `{name}`": ("kept", name, "precision")
            for name in worlds[0]["thresholds"]
            if name.startswith("precision") and name in worlds[1]["thresholds"]
        }
    compared = {
        label: [None if world is None else _at(world["pools"]["full"], path) for world in worlds]
        for label, path in measures.items()
    }
    alone = load("places_unretrieved"), load("charts_unretrieved")
    for name in ("recall@1", "recall@20"):
        compared[f"{name}, reranking the whole gold pool"] = [
            None if world is None else world["pools"]["gold"]["reranked"][name] for world in alone
        ]
    rows = []
    for label, figures in compared.items():
        change = NOT_MEASURED
        if figures[0] is not None and figures[1] is not None:
            gap = difference(figures[1], figures[0])
            change = f"{100 * gap.value:+.1f} ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
        rows.append([label, *map(_figure, figures), change])
    if alone[1] is None:
        return _table(header, rows)
    note = (
        f"The last two rows are of the reranker alone: the first {alone[1]['num_questions']} "
        f"questions, each with all {alone[1]['pools']['gold']['num_documents']} pictures of the "
        f"gold pool for candidates (places: {_pool_size(alone[0])}); a random order has "
        f"{2000 / alone[1]['pools']['gold']['num_documents']:.1f} % of them among its first 20."
    )
    return f"{_table(header, rows)}\n\n{note}"


def _pool_size(result: Result | None) -> str:
    return NOT_MEASURED if result is None else str(result["pools"]["gold"]["num_documents"])


def caption_retrieval(load: Load) -> str:
    """Pictures found by their captions, before reranking and after."""
    measures = ("recall@1", "recall@5", "recall@10")
    rows = []
    for name, order, label in (
        ("captions", "retrieved", "retrieved"),
        ("captions_zero_shot", "reranked", "reranked by the demo's reranker, of questions"),
        ("captions", "reranked", "reranked by one trained on captions"),
    ):
        result = load(name)
        found = None if result is None else result["pools"]["full"][order]
        rows.append([label, *_figures(found, measures)])
    result = load("captions")
    if result is None:
        return _table(["", *measures], rows)
    note = (
        f"{result['num_questions']} captions, {result['pools']['full']['num_documents']} pictures, "
        f"{result['settings']['num_candidates']} candidates: no order of them finds more than "
        f"{_figures(result['pools']['full']['retrieved'], ('recall@20',))[0]} percent."
    )
    return f"{_table(['', *measures], rows)}\n\n{note}"


def ablation_noise(load: Load) -> str:
    """What each kind of noise teaches the demo's generator."""
    return _ablation(load("ablation_noise"))


def ablation_low_resource(load: Load) -> str:
    """What a share of the data teaches the demo's reranker."""
    return _ablation(load("ablation_low_resource"))


def _ablation(result: Result | None) -> str:
    if result is None:
        return _table(["arm", ""], [["any", NOT_MEASURED]])
    header, *rows = ablation_table(result)
    note = (
        f"Percent of {result['num_questions']} test questions; mean of "
        f"{len(result['seeds'])} seeds with Student's 95 % interval, "
        f"{result['settings']['max_steps']} steps."
    )
    return f"{_table(header, rows)}\n\n{note}"


def overhead(load: Load) -> str:
    """What reranking adds to a query, and noise to a training step."""
    result = load("overhead_cpu")
    header = ["way", "time", "memory"]
    if result is None:
        return _table(header, [["any", NOT_MEASURED, NOT_MEASURED]])
    rows = []
    for stage, what in (("rerank", "a query"), ("train", "a training step")):
        for way, figures in result.get(stage, {}).items():
            peak = figures["peak_mib"]
            time = f"{1 / figures['speedup']['median']:.2f}x"
            rows.append(
                [f"{what}: {way}", time, NOT_MEASURED if peak is None else f"{peak:,.0f} MiB"]
            )
    note = (
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores, float32; a query against "
        f"the first way, a step against plain fine-tuning."
    )
    return f"{_table(header, rows)}\n\n{note}"


def evaluate_speed(load: Load) -> str:
    """A whole evaluation against scoring pair by pair."""
    result = load("evaluate_cpu")
    labels = {
        "generate": "a call of `generate` for each pair (the release)",
        "one_pair": "a call of `Reranker.score` for each pair",
        "evaluate": "**`ragvl evaluate`**",
    }
    header = ["pairs are scored by", "retrieved and reranked", "and answered"]
    if result is None:
        return _table(header, [[label, *[NOT_MEASURED] * 2] for label in labels.values()])
    rows = [
        [label, *(_range(result[part][way]["speedup"]) for part in ("ranked", "whole"))]
        for way, label in labels.items()
    ]
    note = (
        f"{result['machine']['device']}, float32: {result['num_questions']} questions over both "
        f"pools, {result['num_pairs']:,} pairs of {result['num_documents']:,} documents; median "
        f"(lowest to highest) of {result['rounds']} rounds in one run, against the first row."
    )
    return f"{_table(header, rows)}\n\n{note}"


def _figures(found: Result | None, names: Sequence[str], missing: str = NOT_MEASURED) -> list[str]:
    return [missing if found is None else _figure(found.get(name)) for name in names]


def _figure(figure: Result | None) -> str:
    """Percent, with the ends of its interval."""
    if figure is None:
        return NOT_MEASURED
    if figure["value"] is None:
        return "–"  # nothing was kept
    low, value, high = (100 * figure[key] for key in ("low", "value", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _at(found: Result, path: Sequence[str]) -> Result:
    for key in path:
        found = found[key]
    return found


# --- shared -------------------------------------------------------------------------------------


def _range(spread: dict[str, float]) -> str:
    return f"{spread['median']:.2f}x ({spread['min']:.2f} to {spread['max']:.2f})"


def _one(values: set[Any]) -> Any:
    (value,) = values
    return value


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


TABLES: dict[str, Callable[[Load], str]] = {
    function.__name__: function
    for function in (
        fast_rerank,
        gpu_rerank,
        gpu_rerank_goals,
        gpu_rerank_tiers,
        prefix_cache_costs,
        prefix_cache_bookkeeping,
        prefix_cache_bytes,
        prefix_cache_tiers,
        prefix_cache_compression,
        prefix_attention,
        relevance_head,
        diffusion_noise,
        visual_weighted_cross_entropy,
        gpu_ops,
        gpu_ops_goals,
        training_step,
        gpu_train,
        gpu_train_goals,
        demo,
        documents_found,
        documents_kept,
        answers_by_category,
        cross_domain,
        caption_retrieval,
        ablation_noise,
        ablation_low_resource,
        overhead,
        evaluate_speed,
    )
}
