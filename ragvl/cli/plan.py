"""`ragvl plan`: what a collection needs, from what was measured and what is given."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from ragvl.arguments import checked_image_tokens
from ragvl.cli import options
from ragvl.cli.common import command_work, import_models
from ragvl.output import print_json, print_table, say

if TYPE_CHECKING:
    from ragvl.profiling.plan import Kept, Plan, Tier, Times

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_NAMES = {"kv": "keys and values", "features": "visual tokens"}


def plan(
    documents: Annotated[float, typer.Option(help="Pictures: 1e9.")],
    queries_per_second: Annotated[float, typer.Option(help="Of all users together.")],
    hit_rate: Annotated[
        float, typer.Option(help="Share of candidates that were asked for before, or made warm.")
    ],
    device_memory: Annotated[
        str, typer.Option(help="For prefixes, of a replica: its device less the model, 40GiB.")
    ],
    model: Annotated[
        str | None, typer.Option(help="One whose bytes were measured, such as internvl2-2b.")
    ] = None,
    kv_bytes: Annotated[
        str | None, typer.Option(help="Keys and values of a picture; `ragvl warm` shows them.")
    ] = None,
    features_bytes: Annotated[str | None, typer.Option(help="Visual tokens of a picture.")] = None,
    hit_ms: Annotated[
        float | None, typer.Option(help="Of a candidate whose prefix is on the device.")
    ] = None,
    miss_ms: Annotated[float | None, typer.Option(help="Of one that was never seen.")] = None,
    features_ms: Annotated[
        float | None, typer.Option(help="Of one whose visual tokens are on the device.")
    ] = None,
    host_memory: Annotated[str, typer.Option(help="For prefixes, of a replica.")] = "0",
    disk: Annotated[str, typer.Option(help="For prefixes, of all replicas.")] = "0",
    host_bandwidth: Annotated[
        str | None, typer.Option(help="Bytes a second from host memory to the device: 20GiB.")
    ] = None,
    disk_bandwidth: Annotated[
        str | None, typer.Option(help="Bytes a second from the disk to the device: 2GiB.")
    ] = None,
    candidates: options.Candidates = 20,
    load: Annotated[float, typer.Option(help="Share of a replica's time that may be taken.")] = 0.7,
    dim: Annotated[int, typer.Option(min=1, help="Of the vectors in the index.")] = 512,
    image_tokens: Annotated[
        float, typer.Option(help="Share of pictures' tokens that prefixes keep; scores change.")
    ] = 1.0,
    may_change_scores: Annotated[
        bool, typer.Option(help="Recommend int8 and int4, too, which change scores a little.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Say what documents need: memory, disk and replicas, and what to keep of each.

    Bytes and, on a CPU, times come from measurements. Times of another model or device are given,
    --hit-ms and --miss-ms of one candidate: `ragvl overhead MODEL` measures a query, warm and cold.
    """
    with command_work("plan"):
        import_models()
        from ragvl.prefix_cache.sizes import parse_bytes
        from ragvl.profiling.plan import Demand, Rooms, sizes_of, times_of
        from ragvl.profiling.plan import plan as planned

        if documents != int(documents):
            raise ValueError(f"--documents {documents}: expected a whole number")
        if model is None and kv_bytes is None:
            raise ValueError("name --model, or --kv-bytes of a picture")
        sizes: dict[Kept, int] = {} if kv_bytes is not None else sizes_of(str(model))
        if kv_bytes is not None:
            sizes["kv"] = parse_bytes(kv_bytes)
            # A byte or half of one for each number of two, and what scales and minima take
            sizes["int8"] = round(0.52 * sizes["kv"])
            sizes["int4"] = round(0.29 * sizes["kv"])
        if features_bytes is not None:
            sizes["features"] = parse_bytes(features_bytes)
        share = checked_image_tokens(image_tokens)
        sizes = {
            kept: size if kept == "features" else round(share * size)
            for kept, size in sizes.items()
        }
        bandwidths: dict[Tier, float] = {}
        if host_bandwidth is not None:
            bandwidths["host"] = parse_bytes(host_bandwidth)
        if disk_bandwidth is not None:
            bandwidths["disk"] = parse_bytes(disk_bandwidth)
        given = {"--hit-ms": hit_ms, "--miss-ms": miss_ms, "--features-ms": features_ms}
        known = None if model is None else times_of(model)
        rooms = Rooms(parse_bytes(device_memory), parse_bytes(host_memory), parse_bytes(disk))
        demand = Demand(int(documents), queries_per_second, hit_rate, candidates, load, dim)
        plans = planned(demand, rooms, sizes, _times(model, given, known, sizes, bandwidths))
        best = plans.best(may_change_scores=may_change_scores)
    if as_json:
        every = [one.as_json() for one in plans.every]
        index = {"memory": plans.index_memory, "disk": plans.index_disk}
        costs = dict(plans.miss_costs)
        print_json({"keep": best.kept, "plans": every, "miss_ms": costs, "index": index})
    else:
        columns = ["kept", "of one", "of all", "device", "host", "disk", "kept of", "replicas"]
        rows = [_row(one) for one in plans.every]
        print_table([*columns, "query ms"], rows, numbers=("replicas", "query ms"))
        say(f"keep {_NAMES.get(best.kept, best.kept)}")
        for kept, cost in plans.miss_costs.items():
            say(f"a miss costs {cost:.3g} ms more than {_NAMES.get(kept, kept)} on the device")
        memory, on_disk = _size(plans.index_memory), _size(plans.index_disk)
        say(f"the index: {memory} of codes, mapped or in memory, and {on_disk} of vectors on disk")
    if best.replicas is None:
        say("no number of replicas is enough", err=True)
        sys.exit(1)


def _times(
    model: str | None,
    given: Mapping[str, float | None],
    known: Times | None,
    sizes: Mapping[Kept, int],
    bandwidths: Mapping[Tier, float],
) -> Times:
    """Times that were given, or else measured ones."""
    from ragvl.profiling.plan import Times

    wrong = [name for name, ms in given.items() if ms is not None and not 0 < ms < float("inf")]
    if wrong:
        raise ValueError(f"{wrong[0]} {given[wrong[0]]}: expected milliseconds above 0")
    hit, miss, features = given.values()
    if hit is not None and miss is not None:
        if wrong := [str(bandwidth) for bandwidth in bandwidths.values() if bandwidth <= 0]:
            raise ValueError(f"a bandwidth of {wrong[0]}: expected bytes a second above 0")
        return Times.of_a_device(miss, hit, features, sizes, bandwidths)
    if known is None or any(ms is not None for ms in given.values()) or bandwidths:
        raise ValueError(
            f"no time of a candidate was measured for {model or 'these bytes'} on such a device: "
            "give --hit-ms and --miss-ms (`ragvl overhead MODEL` measures a query), and "
            "--features-ms if visual tokens may be kept"
        )
    return known


def _row(one: Plan) -> list[str]:
    tiers = [_size(one.used.get(tier, 0.0)) for tier in ("device", "host", "disk")]
    return [
        _NAMES.get(one.kept, one.kept),
        _size(one.document_bytes),
        _size(one.total_bytes),
        *tiers,
        f"{one.share_kept:.1%}",
        "too many" if one.replicas is None else str(one.replicas),
        f"{one.query_ms:.1f}",
    ]


def _size(count: float) -> str:
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.3g} {_UNITS[unit]}" if count else "0"
