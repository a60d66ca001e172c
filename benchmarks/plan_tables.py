"""What `ragvl plan` knows, from the other benchmarks' results, and what it says of three sizes.

`render.py` writes ragvl/profiling/measured.json from these results: a command that is installed
without them plans with the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from shapes import SHAPES
from tables import Results, table

from ragvl.compression import COMPRESSIONS, page_tokens
from ragvl.profiling import plan as planning
from ragvl.profiling.plan import KEPT, Demand, Plan, Rooms, Times, plan, sizes_of, times_of

DOCUMENTS = (10**6, 10**8, 10**9)
_MODEL = "mid"  # whose times were measured
_ROOMS = Rooms(device=8 << 30, host=32 << 30, disk=4 << 40)


def measured(results: Results) -> dict[str, Any]:
    """What `ragvl.profiling.plan.measured` reads.

    Times are those of the run that compares methods: of a query by itself, as large a share as it
    has where numbers of candidates are compared, and of each candidate. Of other tiers they are by
    how many times as fast as nothing kept each was.
    """
    cached, (case, *_) = results["prefix_cache_cpu"], results["fast_rerank_cpu"]["cases"]
    candidates = results["fast_rerank_cpu"]["num_documents"]
    whole = {
        name: case["methods"][f"fast_rerank_{name}"]["ms"]["median"] for name in ("cold", "warm")
    }
    query = whole["warm"] * _share_of_query(cached["scaling"]["candidates"], candidates)
    cold, warm = ((ms - query) / candidates for ms in whole.values())
    speeds = {tier["tier"]: tier["hit"]["median"] for tier in cached["tiers"]}
    kv = {
        "device": warm,
        **{tier: warm * speeds["device"] / speeds[f"{tier}, kv"] for tier in ("host", "disk")},
    }
    # Visual tokens were measured from host memory; on the device they are no slower
    features = {tier: cold / speeds[f"{tier}, features"] for tier in ("host", "disk")}
    # What is compressed is read where it lies, in about the time of what is not
    compressed = dict.fromkeys(COMPRESSIONS, kv)
    by_kept = {"kv": kv, **compressed, "features": {"device": features["host"], **features}}
    features_bytes = cached["model"]["image_tokens"] * SHAPES[_MODEL].decoder.hidden_size * 4
    models = {
        one["model"]: {kept: one[kept] for kept in KEPT if kept in one}
        for one in results["prefix_cache_bytes"]["models"]
    }
    overhead = cached["memory"]["overhead"]
    held = {row["compression"]: row["bytes_per_document"] for row in cached["compression"]}
    models[_MODEL] = {
        compression or "kv": round(
            held[str(compression)] / (1 + overhead * page_tokens(compression) / page_tokens(None))
        )
        for compression in (None, *COMPRESSIONS)
        if str(compression) in held
    } | {"features": features_bytes}
    return {
        "models": models,
        "page_overhead": overhead,
        "times": {_MODEL: {"query": query, "miss": cold, "hits": by_kept}},
    }


def _share_of_query(scaling: Mapping[str, Any], candidates: int) -> float:
    """What a warm call of so many spends on none of them, by the line through all calls."""
    points, slope = scaling["points"], scaling["ms_per_one_more"]["warm"]
    at_none = fmean(point["warm"]["median"] - slope * point["x"] for point in points)
    return max(at_none, 0.0) / (max(at_none, 0.0) + slope * candidates)


def forget() -> None:
    """What was read of measured.json, which has changed."""
    planning.measured.cache_clear()


def plan_bytes_table(results: Results) -> str:
    """What is kept of so many pictures, for every model that was measured."""
    rows = []
    for one in results["prefix_cache_bytes"]["models"]:
        sizes = sizes_of(one["model"])
        for count in DOCUMENTS:
            rows.append(
                [
                    *(one["model"], f"{count:.0e}".replace("e+0", "e")),
                    *(_size(count * size) for size in sizes.values()),
                ]
            )
    names = {"kv": "keys and values", "features": "visual tokens"}
    header = ["model", "pictures", *(names.get(kept, f"in {kept}") for kept in sizes)]
    return table(header, rows, "Bytes in bfloat16, as they were counted for one picture.")


def plan_table(results: Results) -> str:
    """What each choice takes at three sizes, on machines as the one that was measured."""
    times = times_of(_MODEL)
    assert isinstance(times, Times)
    rows = []
    for count in DOCUMENTS:
        demand = Demand(count, queries_per_second=100, hit_rate=0.9)
        plans = plan(demand, _ROOMS, sizes_of(_MODEL), times)
        best = plans.best()
        rows += [_row(count, one, is_best=one is best) for one in plans.every]
    header = ["pictures", "kept", "bytes in all", "documents kept", "replicas", ""]
    return table(
        header,
        rows,
        f"{results['fast_rerank_cpu']['machine']['device']} a replica, a model of 44 M parameters "
        "(256 image tokens, float32), 100 queries a second with 20 candidates, a hit rate of 0.9, "
        "a load of 0.7; 8 GiB on the device and 32 GiB in host memory of each replica, 4 TiB of "
        "disk in all. Computed by `ragvl plan` from measured times of one machine.",
    )


def _row(count: int, one: Plan, *, is_best: bool) -> list[str]:
    return [
        f"{count:.0e}".replace("e+0", "e"),
        {"kv": "keys and values", "features": "visual tokens"}.get(one.kept, one.kept),
        _size(one.total_bytes),
        f"{one.share_kept:.1%}" if one.kept != "nothing" else "",
        "too many" if one.replicas is None else f"{one.replicas:,}",
        "**fewest, exact**" if is_best else "",
    ]


def _size(count: float) -> str:
    for unit in ("GiB", "TiB", "PiB"):
        count /= 1024 if unit != "GiB" else 2**30
        if count < 1024 or unit == "PiB":
            return f"{count:,.1f} {unit}"
    raise AssertionError
