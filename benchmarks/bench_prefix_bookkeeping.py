"""What the device tier's bookkeeping costs, by how many prefixes it holds.

python benchmarks/bench_prefix_bookkeeping.py   # a minute on two CPU cores
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import torch
import typer
from common import save
from tables import Results, table

from ragvl.mllm import KvLayout
from ragvl.prefix_cache import PAGE_TOKENS, CachedPrefix, DeviceTier, PagePool
from ragvl.profiling.timing import spread

PREFIXES = (100, 1_000, 10_000, 100_000)


def measure(
    rounds: int, *, known: Sequence[int] = PREFIXES, steps: int = 1000
) -> list[dict[str, Any]]:
    """What a lookup of one prefix, and taking one more, costs in a full device tier of so many.

    With the smallest pages that there are: the time is that of the bookkeeping alone.

    Returns:
        For each number of known prefixes, microseconds a step, as spreads: `known`, to look one up
        and let it go; `new`, to evict one and keep another.
    """
    layout = KvLayout.uniform(1, 1, 1, torch.float32)
    tiers = {}
    for count in known:
        pool = PagePool(layout, count, torch.device("cpu"))
        page_bytes = layout.bytes_per_token() * PAGE_TOKENS
        tiers[count] = DeviceTier(pool, page_bytes, keep=True, wait_seconds=60.0)
        for i in range(count):
            _insert(tiers[count], str(i))
    names = itertools.count()

    def look_up(tier: DeviceTier) -> None:
        with tier.lease() as lease:
            if tier.use("0", lease) is None:
                raise RuntimeError("what was kept just now is gone: there is a bug")

    calls = {}
    for count, tier in tiers.items():
        calls[f"new {count}"] = lambda tier=tier: _insert(tier, f"new {next(names)}")
    for count, tier in tiers.items():
        calls[f"known {count}"] = partial(look_up, tier)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _, (name, call) in itertools.product(range(rounds), calls.items()):
        for tier in tiers.values():  # which new ones may have pushed out
            _insert(tier, "0")
        start = time.perf_counter()
        for _ in range(steps):
            call()
        samples[name].append((time.perf_counter() - start) / steps * 1e6)
    return [
        {
            "prefixes": count,
            "known": spread(samples[f"known {count}"]),
            "new": spread(samples[f"new {count}"]),
        }
        for count in known
    ]


def _insert(tier: DeviceTier, key: str) -> None:
    with tier.lease() as lease:
        if tier.use(key, lease) is None:
            (pages,) = tier.reserve([1], lease)
            tier.insert(CachedPrefix(key, [0], "", 1, pages), lease)


def bookkeeping_table(results: Results) -> str:
    """What one prefix costs beside its own work, by how many there are."""
    result = results["prefix_cache_bookkeeping"]
    first, *_ = points = result["by_prefixes"]
    rows = [
        [
            f"{point['prefixes']:,}",
            *(f"{point[n]['min'] / first[n]['min']:.2f}x" for n in ("known", "new")),
        ]
        for point in points
    ]
    return table(
        ["prefixes on the device", "to find one", "to keep one more"],
        rows,
        f"{result['machine']['device']}: the time of the bookkeeping against that with "
        f"{first['prefixes']} prefixes; fastest of {result['rounds']} rounds in one run.",
    )


def main(
    rounds: Annotated[int, typer.Option(min=2, help="Samples of each point.")] = 5,
) -> None:
    """Measure and write benchmarks/results/prefix_cache_bookkeeping.json."""
    result = {"rounds": rounds, "by_prefixes": measure(rounds)}
    print(f"wrote {save('prefix_cache_bookkeeping', result, torch.device('cpu'))}")


if __name__ == "__main__":
    typer.run(main)
