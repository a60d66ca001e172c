"""What a collection of documents needs: memory, disk and replicas, by what is kept of them.

    bytes(kept)   = documents * bytes of one
    at(tier)      = share of these bytes that the tier's room takes, the fastest tier first
    time(query)   = its own time + candidates * (sum over tiers of hit_rate * at(tier) * time(tier)
                    + the rest * time of a miss)
    replicas      = the fewest whose rooms and time together answer the queries at the load wanted

Documents have owners among the replicas, so that their rooms add up. What was measured comes along
(`measured`), from benchmarks/results; a time that was not is given by whoever plans.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from ragvl.compression import COMPRESSIONS, Compression, page_tokens
from ragvl.messages import quoted, shown
from ragvl.retriever.index import num_subvectors

Kept = Literal["kv", Compression, "features", "nothing"]
Tier = Literal["device", "host", "disk"]

TIERS: tuple[Tier, ...] = get_args(Tier)
KEPT: tuple[Kept, ...] = get_args(Kept)
_MAX_REPLICAS = 10**7
_ID_BYTES = 8  # of a vector's number, beside its code


@dataclass(frozen=True)
class Times:
    """Milliseconds of one candidate, and of a query besides.

    Attributes:
        miss: with nothing known of it.
        hits: by what is kept and where; of what is not there nothing is known.
        query: of a query, however many candidates it has.
    """

    miss: float
    hits: Mapping[Kept, Mapping[Tier, float]]
    query: float = 0.0

    @classmethod
    def of_a_device(
        cls,
        miss: float,
        hit: float,
        features: float | None,
        sizes: Mapping[Kept, int],
        bandwidths: Mapping[Tier, float],
    ) -> Times:
        """Times of hits on a device, and of other tiers by how fast their bytes come.

        Args:
            miss: of a candidate with nothing known of it.
            hit: of one whose prefix is on the device.
            features: of one whose visual tokens are on the device, if that is known.
            sizes: bytes of a document.
            bandwidths: bytes a second from each tier to the device.
        """
        known: dict[Kept, float] = {"kv": hit, **dict.fromkeys(COMPRESSIONS, hit)}
        if features is not None:
            known["features"] = features
        return cls(
            miss,
            {
                kept: {
                    "device": ms,
                    **{
                        tier: ms + 1e3 * sizes[kept] / bandwidth
                        for tier, bandwidth in bandwidths.items()
                    },
                }
                for kept, ms in known.items()
                if kept in sizes
            },
        )


@dataclass(frozen=True)
class Demand:
    """What is asked for.

    Attributes:
        documents: how many there are.
        queries_per_second: of all users together.
        hit_rate: the share of candidates that was asked for before, or made warm.
        candidates: that are reranked for a query.
        load: the share of a replica's time that may be taken, so that queries seldom wait.
        dim: of the vectors in the index.

    Raises:
        ValueError: a number is out of its range.
    """

    documents: int
    queries_per_second: float
    hit_rate: float
    candidates: int = 20
    load: float = 0.7
    dim: int = 512

    def __post_init__(self) -> None:
        for name in ("documents", "candidates", "dim"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 or more")
        if not 0 < self.queries_per_second < math.inf:
            raise ValueError(f"queries_per_second={self.queries_per_second}: expected above 0")
        if not 0 <= self.hit_rate <= 1:
            raise ValueError(f"hit_rate={self.hit_rate}: expected a share from 0 to 1")
        if not 0 < self.load <= 1:
            raise ValueError(f"load={self.load}: expected a share above 0, at most 1")


@dataclass(frozen=True)
class Rooms:
    """Bytes for what is kept.

    Attributes:
        device: of a replica, less the model and what it computes with.
        host: of a replica.
        disk: of all replicas together.

    Raises:
        ValueError: one is below 0.
    """

    device: int
    host: int = 0
    disk: int = 0

    def __post_init__(self) -> None:
        for tier in TIERS:
            if getattr(self, tier) < 0:
                raise ValueError(f"{tier}: expected 0 bytes or more, not {getattr(self, tier)}")

    def of(self, replicas: int) -> dict[Tier, int]:
        """What so many have together."""
        return {
            "device": replicas * self.device,
            "host": replicas * self.host,
            "disk": self.disk,
        }


@dataclass(frozen=True)
class Plan:
    """What it takes to keep one thing of each document.

    Attributes:
        kept: what.
        document_bytes: of one document.
        total_bytes: of all of them.
        used: bytes by tier, of all replicas together.
        share_kept: of the documents, those that a tier has room for.
        replicas: how many; None if no number is enough.
        query_ms: a query's time in a replica.
    """

    kept: Kept
    document_bytes: float
    total_bytes: float
    used: Mapping[Tier, float]
    share_kept: float
    replicas: int | None
    query_ms: float

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**vars(self), "used": dict(self.used)}


@dataclass(frozen=True)
class Plans:
    """What there is to choose from.

    Attributes:
        every: by what is kept.
        miss_costs: milliseconds that a miss costs more than a hit on the device, where known.
        index_memory: bytes of the index's codes, by `DiskStore` or "ivfpq".
        index_disk: bytes of the vectors, on disk.
    """

    every: Sequence[Plan]
    miss_costs: Mapping[Kept, float]
    index_memory: int
    index_disk: int

    def best(self, *, may_change_scores: bool = False) -> Plan:
        """The one with the fewest replicas, of several the one with the fewest bytes.

        Args:
            may_change_scores: take what is compressed, too.
        """
        allowed = [one for one in self.every if may_change_scores or one.kept not in COMPRESSIONS]
        return min(allowed, key=lambda one: (one.replicas or math.inf, one.total_bytes))


def plan(demand: Demand, rooms: Rooms, sizes: Mapping[Kept, int], times: Times) -> Plans:
    """What each choice of what to keep takes.

    Args:
        demand: what is asked for.
        rooms: where it may be kept.
        sizes: bytes of a document, by what is kept.
        times: of a candidate; a choice without times is left out.

    Raises:
        ValueError: a tier has room, and it is not known how long a hit in it takes.
    """
    kinds: list[Kept] = [kept for kept in KEPT if kept in sizes and kept in times.hits]
    for kept in kinds:
        for tier in TIERS:
            if rooms.of(1)[tier] and tier not in times.hits[kept]:
                raise ValueError(f"how long a hit takes that comes from {tier} is not known")
    costs = {
        kept: times.miss - times.hits[kept]["device"]
        for kept in kinds
        if "device" in times.hits[kept]
    }
    every = [_planned(demand, rooms, kept, sizes[kept], times) for kept in kinds]
    every.append(_planned(demand, rooms, "nothing", 0, times))
    return Plans(
        every,
        costs,
        index_memory=demand.documents * (num_subvectors(demand.dim) + _ID_BYTES),
        index_disk=demand.documents * demand.dim * 4,
    )


def _planned(demand: Demand, rooms: Rooms, kept: Kept, size: int, times: Times) -> Plan:
    document_bytes = size * (1 + _page_overhead(kept))
    total = demand.documents * document_bytes

    def at(replicas: int) -> tuple[dict[Tier, float], float]:
        """Bytes by tier, and a query's milliseconds."""
        used: dict[Tier, float] = {}
        left = total
        for tier, room in rooms.of(replicas).items():
            used[tier] = min(left, room)
            left -= used[tier]
        hits = sum(
            demand.hit_rate * taken / total * times.hits[kept][tier]
            for tier, taken in used.items()
            if taken
        )
        known = demand.hit_rate * (1 - left / total) if total else 0.0
        return used, times.query + demand.candidates * (hits + (1 - known) * times.miss)

    def is_enough(replicas: int) -> bool:
        return demand.queries_per_second * at(replicas)[1] / 1e3 <= replicas * demand.load

    low, high = 0, 1  # the fewest lie above `low`, at most at `high`
    while high <= _MAX_REPLICAS and not is_enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    used, query_ms = at(high)
    replicas = high if high <= _MAX_REPLICAS else None
    share = sum(used.values()) / total if total else 0.0
    return Plan(kept, document_bytes, total, used, share, replicas, query_ms)


def _page_overhead(kept: Kept) -> float:
    """What the ends of last pages take, of the bytes that are used."""
    in_pages: dict[Kept, Compression | None] = {"kv": None, **{name: name for name in COMPRESSIONS}}
    if kept not in in_pages:
        return 0.0
    return measured()["page_overhead"] * page_tokens(in_pages[kept]) / page_tokens(None)


@cache
def measured() -> dict[str, Any]:
    """What was measured: `models`, with bytes of a picture; `page_overhead`; `times` by model."""
    text = (files("ragvl.profiling") / "measured.json").read_text(encoding="utf-8")
    return json.loads(text)


def sizes_of(model: str) -> dict[Kept, int]:
    """Bytes of a picture that is kept, in bfloat16, by what is kept.

    Raises:
        ValueError: the model is not among the measured ones.
    """
    models = measured()["models"]
    if model not in models:
        raise ValueError(
            f"{quoted(model)}: its bytes are not known (known are {shown(', '.join(models))}); "
            "give --kv-bytes and --features-bytes"
        )
    return {kept: models[model][kept] for kept in KEPT if kept in models[model]}


def times_of(model: str) -> Times | None:
    """Times as they were measured on two cores; None where they were not."""
    known = measured()["times"].get(model)
    return None if known is None else Times(known["miss"], known["hits"], known["query"])
