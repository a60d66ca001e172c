"""What cached prefixes cost and save: per candidate, token and query, per tier, per compression.

python benchmarks/bench_prefix_cache.py                 # about ten minutes on two CPU cores
python benchmarks/bench_prefix_cache.py --model tiny    # seconds; prints, writes nothing
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import typer
from common import save
from models import write_model
from shapes import PUBLISHED, SHAPES, Shape
from tables import NOT_MEASURED, Result, Results, table
from transformers.utils import logging as transformers_logging
from workload import fitting_questions, unseen, write_documents

from ragvl import Document, PrefixCache, Reranker
from ragvl.compression import COMPRESSIONS
from ragvl.mllm import MLLM
from ragvl.ops import prefix_attention
from ragvl.prefix_cache import (
    PagePool,
    page_table,
    pages_in_turn,
)
from ragvl.profiling.timing import compare, peak_mib, spread, time_in_turn
from ragvl.runtime import resolve_device, resolve_dtype

DEFAULT_MODEL = {"cpu": "mid", "cuda": "internvl2-2b"}
NUM_DOCUMENTS = 20
# What is varied, one at a time; the others stay at 20 candidates, the model's own number of image
# tokens, suffixes of 30 tokens and one query
CANDIDATES = (1, 5, 10, 20)
IMAGE_TOKENS = (64, 144, 256, 400, 576)
SUFFIX_TOKENS = (30, 40, 55, 80)
QUERIES = (1, 2, 5, 10)
NUM_QUESTIONS = 40  # enough for every round to ask another

Spread = dict[str, float]
Pairs = list[tuple[str, Document]]


def measure(model: str, device: torch.device, *, rounds: int) -> dict[str, Any]:
    """Everything about one model; what goes into the JSON.

    Args:
        model: a name in `SHAPES`.
        device: where.
        rounds: samples of each point, 2 to 15.
    """
    shape = SHAPES[model]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = folder / "model"
        mllm = _load(checkpoint, shape, device)
        documents = write_documents(folder, NUM_DOCUMENTS)
        questions = _questions(mllm, documents, 30)
        return {
            "model": {
                "name": model,
                "dtype": str(mllm.dtype).removeprefix("torch."),
                "image_tokens": shape.image_tokens,
            },
            "num_documents": NUM_DOCUMENTS,
            "rounds": rounds,
            "scaling": {
                "candidates": _by_candidates(mllm, documents, questions, rounds),
                "image tokens": _by_image_tokens(shape, device, documents, rounds),
                "suffix tokens": _by_suffix_tokens(mllm, documents, rounds),
                "queries": _by_queries(mllm, documents, questions, rounds),
            },
            "tiers": hits_and_misses(
                measure_tiers(mllm, documents, questions, folder / "cache", rounds)
            ),
            "compression": _compression(mllm, documents, questions, rounds),
            "bfloat16": _bfloat16(checkpoint, mllm, documents, questions, rounds),
            "templates": _templates(mllm, documents, questions, rounds),
            "memory": _memory(mllm, documents),
        }


def published_bytes() -> list[dict[str, Any]]:
    """What one picture takes in published models, counted from their shapes; see `Shape`."""
    return [
        {
            "model": name,
            "image_tokens": shape.image_tokens,
            **{
                compression or "kv": round(
                    shape.image_tokens * shape.kv_bytes_per_token(compression)
                )
                for compression in (None, *COMPRESSIONS)
            },
            "features": shape.image_tokens * shape.feature_bytes_per_token,
        }
        for name, shape in PUBLISHED.items()
    ]


# --- scaling ------------------------------------------------------------------------------------


def _by_candidates(
    mllm: MLLM, documents: Sequence[Document], questions: Sequence[str], rounds: int
) -> dict[str, Any]:
    return _with_slopes(
        {count: _one_query(mllm, documents[:count], questions, rounds) for count in CANDIDATES}
    )


def _by_image_tokens(
    shape: Shape, device: torch.device, documents: Sequence[Document], rounds: int
) -> dict[str, Any]:
    """The same decoder behind pictures of other sizes, and its attention to prefixes alone."""
    points = {}
    for image_tokens in IMAGE_TOKENS:
        with tempfile.TemporaryDirectory() as folder:
            mllm = _load(Path(folder), shape, device, image_tokens)
            questions = _questions(mllm, documents, 30)
            points[image_tokens] = {
                **_one_query(mllm, documents, questions, rounds),
                "attention": _attention(mllm, image_tokens, len(documents), rounds),
            }
    return _with_slopes(points)


def _by_suffix_tokens(mllm: MLLM, documents: Sequence[Document], rounds: int) -> dict[str, Any]:
    points = {}
    reranker = Reranker(mllm, prefix_cache=None)
    for tokens in SUFFIX_TOKENS:
        questions = _questions(mllm, documents, tokens)
        length = len(reranker.split_prompt(questions[0], documents[0])[1])
        points[length] = _one_query(mllm, documents, questions, rounds)
    return _with_slopes(points)


def _by_queries(
    mllm: MLLM, documents: Sequence[Document], questions: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Several queries over the same documents in one call of `score`."""
    points = {}
    for count in QUERIES:
        pairs = [(question, d) for question in questions[:count] for d in documents]
        points[count] = _time(mllm, [pairs], rounds)
    return _with_slopes(points)


def _one_query(
    mllm: MLLM, documents: Sequence[Document], questions: Sequence[str], rounds: int
) -> dict[str, Spread]:
    """Cold and warm times of one query over `documents`, a new question each round."""
    queries = [[(question, document) for document in documents] for question in questions]
    return _time(mllm, queries, rounds)


def _time(mllm: MLLM, queries: Sequence[Pairs], rounds: int) -> dict[str, Spread]:
    def score_next(reranker: Reranker, coming: Iterator[Pairs]) -> None:
        reranker.score(next(coming), progress=False)

    rerankers = {"cold": Reranker(mllm, prefix_cache=None), "warm": Reranker(mllm)}
    calls = {
        name: partial(score_next, reranker, itertools.cycle(queries))
        for name, reranker in rerankers.items()
    }
    samples = time_in_turn(calls, rounds=rounds, device=mllm.device)
    return {name: spread(times) for name, times in samples.items()}


def _attention(mllm: MLLM, prefix_tokens: int, batch: int, rounds: int) -> Spread:
    """The decoder's attention alone: suffixes of 30 tokens, in every layer."""
    layout, suffix_tokens = mllm.kv_layout, 30
    ((kv_heads, head_dim),) = set(layout.shapes)
    num_heads = mllm.model.config.get_text_config().num_attention_heads
    pool = PagePool(layout, batch * -(-prefix_tokens // 16), mllm.device)
    prefixes = pages_in_turn([prefix_tokens] * batch)
    kv = torch.randn(1, kv_heads, prefix_tokens, head_dim)
    kv = kv.to(mllm.device, layout.dtype)
    write = pool.writer(prefixes, [prefix_tokens] * batch)
    for layer in range(len(layout.shapes)):  # memory that nobody has written to reads as one page
        write(layer, *[kv.expand(batch, -1, -1, -1)] * 2)
    table = page_table(prefixes, pool.size // batch)
    lengths = torch.full((batch,), suffix_tokens, dtype=torch.int32)
    starts = torch.arange(batch, dtype=torch.int32) * suffix_tokens
    tensors = [table, torch.full_like(lengths, prefix_tokens), starts, lengths]
    batches = pool.batches(*(t.to(mllm.device) for t in tensors), suffix_tokens)
    q, k, v = (
        torch.randn(batch * suffix_tokens, heads, head_dim, device=mllm.device, dtype=layout.dtype)
        for heads in (num_heads, kv_heads, kv_heads)
    )

    def attend() -> None:
        for prefix in batches:
            prefix_attention(q, k, v, prefix, scale=head_dim**-0.5)

    calls = {"": attend}
    return spread(time_in_turn(calls, rounds=rounds, sample_ms=50, device=mllm.device)[""])


def _with_slopes(points: dict[int, dict[str, Spread]]) -> dict[str, Any]:
    """The points, and by least squares what one more costs, in milliseconds."""
    counts = list(points)
    slopes = {
        name: float(np.polyfit(counts, [points[n][name]["median"] for n in counts], 1)[0])
        for name in points[counts[0]]
    }
    return {"points": [{"x": n, **points[n]} for n in counts], "ms_per_one_more": slopes}


# --- tiers --------------------------------------------------------------------------------------


def measure_tiers(
    mllm: MLLM,
    documents: Sequence[Document],
    questions: Sequence[str],
    folder: Path,
    rounds: int,
    *,
    known_shares: Sequence[float] = (0.0, 1.0),
    keeps: Sequence[Literal["auto", "kv", "features"]] = ("kv", "features"),
) -> list[dict[str, Any]]:
    """One query over documents of which a tier has a share, against using no cache.

    The device tier is full, as it is after a while: an unknown document takes the memory of one
    that goes.

    Args:
        mllm: the model.
        documents: what is known where the share is 1; unknown ones take the place of the last.
        questions: one a call, in turn.
        folder: for the disk tier.
        rounds: samples of each share in each tier.
        known_shares: from 0 to 1, with both ends.
        keeps: what the host and disk tiers hold.

    Returns:
        By tier `by_share`, milliseconds and speed over no cache at each share, as spreads;
        `break_even`, the share of known documents from which on the tier saves time: a known
        document costs what it does at a share of 1, an unknown one what it does at 0, which is the
        plain work and writing it down.
    """
    tokens = max(len(Reranker(mllm).split_prompt(questions[0], d)[0]) for d in documents)
    known_bytes = len(documents) * (tokens + 16) * mllm.kv_layout.bytes_per_token()
    # Room for the known ones and for four times as many others, which three rounds nearly fill
    caches = {"device": PrefixCache(5 * known_bytes)}
    below = 8 * known_bytes  # so that a round's unknown ones push no known one out
    for keep in keeps:
        caches[f"host, {keep}"] = PrefixCache("scratch", host_bytes=below, keep=keep)
        caches[f"disk, {keep}"] = PrefixCache(
            "scratch", folder=folder / keep, disk_bytes=below, keep=keep
        )
    tiers = {
        name: Tier(_warmed(mllm, cache, documents), name.partition(",")[0])
        for name, cache in caches.items()
    }
    plain = Reranker(mllm, prefix_cache=None)
    return tier_rows(tiers, plain, documents, questions, rounds, known_shares, others=unseen)


class Tier(NamedTuple):
    """A reranker that has a cache with the known documents in it.

    Attributes:
        reranker: the reranker.
        counted: which of its cache's statistics counts the hits.
    """

    reranker: Reranker
    counted: str


def tier_rows(
    tiers: Mapping[str, Tier],
    plain: Reranker,
    documents: Sequence[Document],
    questions: Sequence[str],
    rounds: int,
    known_shares: Sequence[float],
    *,
    others: Callable[[Sequence[Document], int], list[Document]],
    warmup: int = 3,
) -> list[dict[str, Any]]:
    """What `measure_tiers` gives, of any tiers.

    Args:
        tiers: by name.
        plain: the reranker that keeps nothing.
        documents: see `measure_tiers`, as the next three.
        questions: one a call, in turn.
        rounds: samples of each share in each tier.
        known_shares: from 0 to 1, with both ends.
        others: documents in the place of such documents that no cache has; of another number,
            others again.
        warmup: calls of each before the first round.

    Raises:
        RuntimeError: a tier did not serve what it has.
    """
    coming = itertools.cycle(questions)
    numbers = itertools.count()

    def ask(reranker: Reranker, share: float) -> None:
        known = round(share * len(documents))
        mixed = [*documents[:known], *others(documents[known:], next(numbers))]
        reranker.score([(q, d) for q in [next(coming)] for d in mixed], progress=False)

    calls = {"no cache": partial(ask, plain, 0.0)}
    for name, tier in tiers.items():
        for share in known_shares:
            calls[f"{name}: {share}"] = partial(ask, tier.reranker, share)
    samples = time_in_turn(calls, rounds=rounds, warmup=warmup, device=plain.mllm.device)
    figures = compare(samples, "no cache")

    rows = []
    for name, tier in tiers.items():
        served = tier.reranker.prefix_cache.statistics()[tier.counted].hits
        if served < len(documents) * rounds:
            raise RuntimeError(f"the tier {name} served {served} documents only: there is a bug")
        by_share = {share: figures[f"{name}: {share}"] for share in known_shares}
        # In units of the time without a cache, by ratios within a round, as speeds are
        known, unknown = (1 / by_share[share]["speedup"]["median"] for share in (1.0, 0.0))
        break_even = max(0.0, (unknown - 1) / (unknown - known))
        rows.append(
            {
                "tier": name,
                "by_share": {str(share): row for share, row in by_share.items()},
                "break_even": break_even,
            }
        )
    return rows


def hits_and_misses(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `tier_rows` gave, all known and all unknown."""
    return [
        {
            "tier": row["tier"],
            "hit": row["by_share"]["1.0"]["speedup"],
            "miss": row["by_share"]["0.0"]["speedup"],
            "break_even": row["break_even"],
        }
        for row in rows
    ]


# --- compression, dtype, template ---------------------------------------------------------------


def _compression(
    mllm: MLLM, documents: Sequence[Document], questions: Sequence[str], rounds: int
) -> list[dict[str, Any]]:
    rerankers = {
        str(compression): Reranker(mllm, prefix_cache=PrefixCache(compression=compression))
        for compression in (None, *COMPRESSIONS)
    }
    compared = compare_warm(rerankers, documents, questions, rounds)
    return [
        {
            "compression": name,
            "bytes_per_document": bytes_held(reranker) / len(documents),
            **compared[name],
        }
        for name, reranker in rerankers.items()
    ]


def _bfloat16(
    checkpoint: Path,
    mllm: MLLM,
    documents: Sequence[Document],
    questions: Sequence[str],
    rounds: int,
) -> dict[str, Any] | None:
    """bfloat16 against float32, where float32 is the default."""
    if mllm.dtype != torch.float32:
        return None
    half = Reranker.from_pretrained(checkpoint, device=mllm.device, dtype="bfloat16")
    rerankers = {"float32": Reranker(mllm), "bfloat16": half}
    return compare_warm(rerankers, documents, questions, rounds)["bfloat16"]


def _templates(
    mllm: MLLM, documents: Sequence[Document], questions: Sequence[str], rounds: int
) -> dict[str, Any]:
    """The suffix of another template is shorter; its scores are other scores."""
    rerankers = {name: Reranker(mllm, template=name) for name in ("caption", "instruction-first")}
    compared = compare_warm(rerankers, documents, questions, rounds)
    return {
        name: {
            "suffix_tokens": len(reranker.split_prompt(questions[0], documents[0])[1]),
            "speed": compared[name]["speed"],
        }
        for name, reranker in rerankers.items()
    }


def compare_warm(
    rerankers: dict[str, Reranker],
    documents: Sequence[Document],
    questions: Sequence[str],
    rounds: int,
) -> dict[str, dict[str, Any]]:
    """Speed and scores of each against the first's, about known documents.

    Args:
        rerankers: by name, each with a cache; what is not known yet is computed first.
        documents: of one query.
        questions: one a call, in turn.
        rounds: samples of each.
    """
    pairs = [(question, document) for question in questions for document in documents]
    scores = {name: r.score(pairs, progress=False) for name, r in rerankers.items()}

    def ask(reranker: Reranker) -> Callable[[], object]:
        coming = itertools.cycle(questions)
        return lambda: reranker.score([(q, d) for q in [next(coming)] for d in documents])

    (first, reranker), *_ = rerankers.items()
    calls = {name: ask(reranker) for name, reranker in rerankers.items()}
    samples = time_in_turn(calls, rounds=rounds, device=reranker.mllm.device)
    differences = {name: (each - scores[first]).abs() for name, each in scores.items()}
    return {
        name: {
            "speed": figures["speedup"],
            "max_score_difference": differences[name].max().item(),
            "mean_score_difference": differences[name].mean().item(),
            "pairs": len(pairs),
        }
        for name, figures in compare(samples, first).items()
    }


# --- memory -------------------------------------------------------------------------------------


def _memory(mllm: MLLM, documents: Sequence[Document]) -> dict[str, float | None]:
    """Bytes of the keys and values of known documents, and what is held for them."""
    reranker = Reranker(mllm)
    reranker.score([("?", documents[0])])  # the model is tried out at first
    tokens = sum(len(reranker.split_prompt("?", document)[0]) for document in documents)
    peak = peak_mib(lambda: reranker.warm(documents, progress=False), mllm.device)
    needed, held = tokens * mllm.kv_layout.bytes_per_token(), bytes_held(reranker)
    return {
        "kv_bytes": needed,
        "held_bytes": held,
        "overhead": held / needed - 1,
        "peak_bytes_while_warming": None if peak is None else peak * 2**20,
    }


# --- shared -------------------------------------------------------------------------------------


def _load(
    folder: Path, shape: Shape, device: torch.device, image_tokens: int | None = None
) -> MLLM:
    dtype = resolve_dtype("auto", device)
    write_model(folder, shape, image_tokens=image_tokens, device=device, dtype=dtype)
    return MLLM.from_pretrained(folder, device=device)


def _questions(mllm: MLLM, documents: Sequence[Document], suffix_tokens: int) -> list[str]:
    reranker = Reranker(mllm, prefix_cache=None)
    return fitting_questions(reranker, documents[0], NUM_QUESTIONS, suffix_tokens)


def _warmed(mllm: MLLM, cache: PrefixCache, documents: Sequence[Document]) -> Reranker:
    reranker = Reranker(mllm, prefix_cache=cache)
    reranker.warm(documents, progress=False)
    return reranker


def bytes_held(reranker: Reranker) -> int:
    """Bytes of the prefixes on the device."""
    return reranker.prefix_cache.statistics()["device"].bytes


# --- tables -------------------------------------------------------------------------------------


_DEVICES = {"CPU": "cpu", "GPU": "cuda"}


def _by_device(results: Results) -> dict[str, Result | None]:
    """The CPU's result and the GPU's, which may be missing."""
    return {"CPU": results["prefix_cache_cpu"], "GPU": results.get("prefix_cache_cuda")}


def costs_table(results: Results) -> str:
    """What one more of each thing costs a candidate, in percent of a cold candidate."""
    by_device, calls = _by_device(results), ("cold", "warm")
    labels = {
        "candidates": "candidate",
        "image tokens": "image token of every candidate",
        "suffix tokens": "suffix token of every candidate",
        "queries": "query over the same candidates, in one `score`",
    }

    def cells(result: Result | None, what: str) -> list[str]:
        if result is None:
            return [NOT_MEASURED] * 2
        slopes = {name: line["ms_per_one_more"] for name, line in result["scaling"].items()}
        share = 1 if what == "candidates" else result["num_documents"]
        whole = slopes["candidates"]["cold"]
        return [f"{100 * slopes[what][call] / share / whole:.3g} %" for call in calls]

    notes = []
    for result in filter(None, by_device.values()):
        model = result["model"]
        slopes = result["scaling"]["image tokens"]["ms_per_one_more"]
        notes.append(
            f"{result['machine']['device']}: the model `{model['name']}` in {model['dtype']} with "
            f"{result['num_documents']} candidates of {model['image_tokens']} image tokens, where "
            f"not varied; slopes through medians of {result['rounds']} rounds. The attention "
            f"alone, measured apart, grows with an image token by "
            f"{100 * slopes['attention'] / slopes['warm']:.0f} % of what a warm call does."
        )
    return table(
        ["one more", *(f"{device}: {call}" for device in by_device for call in calls)],
        [
            [label, *(cell for result in by_device.values() for cell in cells(result, what))]
            for what, label in labels.items()
        ],
        *notes,
    )


def bytes_table(results: Results) -> str:
    """What a picture takes in published models; computed, not measured."""
    compressed = {compression: f"in {compression}" for compression in COMPRESSIONS}
    kinds = {"kv": "keys and values", **compressed, "features": "visual tokens"}
    rows = [
        [
            row["model"],
            f"{row['image_tokens']:,}",
            *(f"{row[kind] / 2**20:.1f} MiB" for kind in kinds),
            f"{100_000 * row['kv'] / 2**40:.2f} TiB",
        ]
        for row in results["prefix_cache_bytes"]["models"]
    ]
    header = ["model", "image tokens", *kinds.values(), "100,000 pictures, keys and values"]
    return table(header, rows)


def tiers_table(results: Results) -> str:
    """What known and unknown documents cost in each tier, and from which share of hits it pays."""
    by_device = _by_device(results)
    visual = {device: results.get(f"visual_tokens_{kind}") for device, kind in _DEVICES.items()}
    columns = ("known", "unknown", "pays from a hit rate of")
    tiers = {
        device: {
            row["tier"]: row
            for result in (by_device[device], visual[device])
            if result is not None
            for row in result["tiers"]
        }
        for device in by_device
    }

    def cells(device: str, tier: str) -> list[str]:
        row = tiers[device].get(tier)
        if row is None:
            return [NOT_MEASURED] * len(columns)
        hit, miss = row["hit"]["median"], row["miss"]["median"]
        return [f"{hit:.2f}x", f"{miss:.2f}x", f"{100 * row['break_even']:.0f} %"]

    notes = [
        f"{result['machine']['device']}: speed of a question about documents that the tier has, or "
        f"has not and keeps from then on, against no cache; medians of {result['rounds']} rounds. "
        f"The device tier is full; files are in the system's cache. The device tier takes "
        f"{100 * result['memory']['overhead']:.1f} % more than the keys and values of the "
        f"{result['memory']['kv_bytes'] / 2**20:,.0f} MiB measured: the ends of last pages."
        for result in by_device.values()
        if result is not None
    ]
    notes += [
        f"Visual tokens, where no prefix can be reused: the model `{result['model']['name']}` in "
        f"{result['model']['dtype']} and a template with the query first, "
        f"documents a question: {result['num_documents']}, rounds: {result['rounds']}; the vision "
        f"tower takes "
        f"{100 * result['vision_share']['median']:.0f} % of a question without a cache."
        for result in visual.values()
        if result is not None
    ]
    return table(
        ["tier", *(f"{device}: {column}" for device in by_device for column in columns)],
        [
            [tier, *(cell for device in by_device for cell in cells(device, tier))]
            for tier in dict.fromkeys(tier for rows in tiers.values() for tier in rows)
        ],
        *notes,
    )


def compression_table(results: Results) -> str:
    """Speed, size and error of compressed keys and values, and of a model in bfloat16."""
    header = ["", "bytes of a document", "speed", "largest difference of a score", "mean"]
    rows, notes = [], []
    for device, result in _by_device(results).items():
        if result is None:
            rows.append([device, *[NOT_MEASURED] * (len(header) - 1)])
            continue
        by_name = {row["compression"]: row for row in result["compression"]}
        exact = by_name["None"]["bytes_per_document"]
        measured = [("exact", by_name["None"])]
        measured += [(name, by_name.get(name)) for name in COMPRESSIONS]
        if result["bfloat16"] is not None:
            half = {**result["bfloat16"], "bytes_per_document": exact / 2}
            measured.append(("the whole model in bfloat16", half))
        for name, row in measured:
            cells = [NOT_MEASURED] * (len(header) - 1)
            if row is not None:
                cells = [
                    f"{100 * row['bytes_per_document'] / exact:.0f} %",
                    f"{row['speed']['median']:.2f}x",
                    f"{row['max_score_difference']:.1e}",
                    f"{row['mean_score_difference']:.1e}",
                ]
            rows.append([f"{device}: {name}", *cells])
        first, other = result["templates"]["caption"], result["templates"]["instruction-first"]
        notes.append(
            f"{result['machine']['device']}, {by_name['None']['pairs']} pairs, random weights in "
            f"{result['model']['dtype']}. The template `instruction-first`: "
            f"{other['suffix_tokens']} suffix tokens instead of {first['suffix_tokens']}, "
            f"{other['speed']['median']:.2f}x as fast."
        )
    return table(header, rows, *notes)


def main(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    model: Annotated[str | None, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = None,
    rounds: Annotated[int, typer.Option(min=2, max=15, help="Samples of each point.")] = 5,
) -> None:
    """Measure and write benchmarks/results/prefix_cache_{cpu,cuda,bytes}.json."""
    transformers_logging.disable_progress_bar()
    where = resolve_device(device)
    if model is not None and model not in SHAPES:
        raise typer.BadParameter(f"unknown model {model!r}; known: {', '.join(SHAPES)}")
    result = measure(model or DEFAULT_MODEL[where.type], where, rounds=rounds)
    print(json.dumps(result, indent=1))
    if model is None:
        print(f"wrote {save(f'prefix_cache_{where.type}', result, where)}")
        print(f"wrote {save('prefix_cache_bytes', {'models': published_bytes()}, where)}")


if __name__ == "__main__":
    typer.run(main)
