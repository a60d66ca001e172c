"""`ragvl plan`: its arithmetic, what it refuses, and how far it is from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.profiling.plan import Demand, Plans, Rooms, Times, measured, plan, sizes_of, times_of

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
GIB = 2**30

# A hit takes a tenth of a miss; a document has 1 MiB, or 1/16 of that
TIMES = Times(
    100.0, {"kv": {"device": 10.0, "host": 20.0}, "features": {"device": 50.0, "host": 50.0}}
)
SIZES: Any = {"kv": 2**20, "int8": 2**19, "features": 2**16}


def planned(demand: Demand, rooms: Rooms) -> Plans:
    return plan(demand, rooms, SIZES, TIMES)


def of(plans: Plans, kept: str) -> Any:
    (one,) = [one for one in plans.every if one.kept == kept]
    return one


def test_everything_fits() -> None:
    demand = Demand(1000, queries_per_second=7, hit_rate=1.0, candidates=10)
    plans = planned(demand, Rooms(10 * GIB))
    kv, features, nothing = (of(plans, kept) for kept in ("kv", "features", "nothing"))
    assert (kv.query_ms, features.query_ms, nothing.query_ms) == (100, 500, 1000)
    # 7 queries of 0.1 s each second fill 70 % of one replica
    assert (kv.replicas, features.replicas, nothing.replicas) == (1, 5, 10)
    assert kv.share_kept == 1 and kv.used["device"] == pytest.approx(kv.total_bytes)
    assert kv.total_bytes == pytest.approx(1000 * 2**20 * (1 + measured()["page_overhead"]))
    assert features.total_bytes == 1000 * 2**16
    assert plans.best() is kv and plans.miss_costs == {"kv": 90.0, "features": 50.0}
    assert plans.index_memory == 1000 * (64 + 8) and plans.index_disk == 1000 * 512 * 4


def test_a_query_takes_time_of_its_own() -> None:
    demand = Demand(1000, queries_per_second=7, hit_rate=1.0, candidates=10)
    times = Times(TIMES.miss, TIMES.hits, query=30.0)
    plans = plan(demand, Rooms(10 * GIB), SIZES, times)
    kv, nothing = (of(plans, kept) for kept in ("kv", "nothing"))
    assert (kv.query_ms, nothing.query_ms) == (130, 1030)
    assert kv.replicas == 2  # 7 queries of 0.13 s are more than 70 % of one


def test_what_does_not_fit_is_a_miss() -> None:
    demand = Demand(10_000, queries_per_second=0.001, hit_rate=0.8, candidates=1)
    one = of(planned(demand, Rooms(device=GIB, host=2 * GIB)), "kv")
    assert one.replicas == 1
    device, host = (size / one.total_bytes for size in (GIB, 2 * GIB))
    assert one.share_kept == pytest.approx(device + host)
    misses = 1 - 0.8 * (device + host)
    assert one.query_ms == pytest.approx(0.8 * (device * 10 + host * 20) + misses * 100)


def test_more_replicas_have_more_room() -> None:
    demand = Demand(100_000, queries_per_second=50, hit_rate=1.0)
    one = of(planned(demand, Rooms(device=GIB)), "kv")
    needed = 50 * one.query_ms / 1e3 / 0.7
    assert one.replicas - 1 < needed <= one.replicas  # the fewest that are enough
    assert one.used["device"] == one.replicas * GIB


def test_fewest_replicas_then_fewest_bytes() -> None:
    times = Times(100.0, {kept: {"device": 10.0} for kept in ("kv", "int8")})
    assert "int4" not in {one.kept for one in plan(Demand(1, 1, 1), Rooms(GIB), SIZES, times).every}
    demand = Demand(100, queries_per_second=1, hit_rate=1.0)
    plans = plan(demand, Rooms(GIB), SIZES, times)
    assert plans.best().kept == "kv" and plans.best(may_change_scores=True).kept == "int8"
    asked_once = plan(Demand(100, 1, hit_rate=0.0), Rooms(GIB), SIZES, times)
    assert asked_once.best().kept == "nothing"


def test_too_many() -> None:
    plans = planned(Demand(10, queries_per_second=1e12, hit_rate=0.5), Rooms(0))
    assert plans.best().replicas is None


def test_a_device_of_ones_own() -> None:
    times = Times.of_a_device(100.0, 2.0, None, SIZES, {"host": 2**30})
    assert times.hits["kv"] == {"device": 2.0, "host": 2.0 + 1e3 * 2**20 / 2**30}
    assert "features" not in times.hits  # nobody knows how long they take


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": 0}, "documents=0"),
        ({"queries_per_second": float("nan")}, "queries_per_second=nan"),
        ({"hit_rate": 1.1}, r"hit_rate=1\.1"),
        ({"load": 0.0}, r"load=0\.0"),
    ],
)
def test_bad_demands(change: dict[str, float], message: str) -> None:
    good: dict[str, Any] = {"documents": 1, "queries_per_second": 1, "hit_rate": 1}
    with pytest.raises(ValueError, match=message):
        Demand(**{**good, **change})


def test_a_tier_of_unknown_speed_is_refused() -> None:
    with pytest.raises(ValueError, match="comes from disk is not known"):
        planned(Demand(1, 1, 1), Rooms(device=1, disk=GIB))
    with pytest.raises(ValueError, match="host: expected 0 bytes or more"):
        Rooms(1, host=-1)
    with pytest.raises(ValueError, match="'nobody': its bytes are not known"):
        sizes_of("nobody")


@pytest.mark.parametrize("size", [5, 10, 20])
@pytest.mark.parametrize(("how", "hit_rate"), [("warm", 1.0), ("cold", 0.0)])
def test_within_a_quarter_of_what_another_run_measured(
    size: int, how: str, hit_rate: float
) -> None:
    """A query's time, planned from one benchmark's run and measured by another's."""
    result = json.loads((RESULTS / "prefix_cache_cpu.json").read_text())
    (point,) = [p for p in result["scaling"]["candidates"]["points"] if p["x"] == size]
    times = times_of("mid")
    assert times is not None
    demand = Demand(size, queries_per_second=0.01, hit_rate=hit_rate, candidates=size)
    (one,) = [
        one for one in plan(demand, Rooms(GIB), sizes_of("mid"), times).every if one.kept == "kv"
    ]
    assert one.query_ms == pytest.approx(point[how]["median"], rel=0.25)


def test_bytes_are_within_a_quarter_of_what_was_held() -> None:
    result = json.loads((RESULTS / "prefix_cache_cpu.json").read_text())
    times, count = times_of("mid"), result["num_documents"]
    assert times is not None
    plans = plan(Demand(count, 1, 1), Rooms(GIB), sizes_of("mid"), times)
    assert of(plans, "kv").used["device"] == pytest.approx(result["memory"]["held_bytes"], rel=0.25)


BASE = ("--documents", "1e9", "--queries-per-second", "1000", "--hit-rate", "0.9")
GPU = ("--model", "internvl2-2b", "--device-memory", "60GiB")
GIVEN = ("--hit-ms", "0.4", "--miss-ms", "12", "--features-ms", "6")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


def test_the_command() -> None:
    outcome = run(*BASE, *GPU, *GIVEN, "--host-memory", "500GiB", "--host-bandwidth", "20GiB")
    assert outcome.exit_code == 0, outcome.output
    assert "keys and values" in outcome.output and "replicas" in outcome.output
    printed = json.loads(run(*BASE, *GPU, *GIVEN, "--json").stdout)
    assert [one["kept"] for one in printed["plans"]] == [
        *("kv", "int8", "int4", "features", "nothing")
    ]
    assert printed["keep"] in ("kv", "features")
    bytes_of_kv = printed["plans"][0]["total_bytes"]
    assert bytes_of_kv == pytest.approx(1e9 * 25_165_824 * (1 + measured()["page_overhead"]))
    quarter = json.loads(run(*BASE, *GPU, *GIVEN, "--image-tokens", "0.25", "--json").stdout)
    sizes = {one["kept"]: one["total_bytes"] for one in printed["plans"]}
    fewer = {one["kept"]: one["total_bytes"] for one in quarter["plans"]}
    assert fewer == pytest.approx(
        {kept: size if kept == "features" else size / 4 for kept, size in sizes.items()}
    )
    mid = json.loads(run(*BASE, "--model", "mid", "--device-memory", "8GiB", "--json").stdout)
    assert mid["plans"][0]["replicas"] > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (GPU, "give --hit-ms and --miss-ms"),
        ((*GPU, "--hit-ms", "1"), "give --hit-ms and --miss-ms"),
        ((*GPU, "--hit-ms", "0", "--miss-ms", "1"), "--hit-ms 0.0"),
        ((*GPU, *GIVEN, "--disk", "1TiB"), "comes from disk is not known"),
        (("--device-memory", "1GiB"), "name --model, or --kv-bytes"),
        (("--model", "x", "--device-memory", "1GiB"), "its bytes are not known"),
        ((*GPU[:2], "--device-memory", "many"), "many"),
        ((*GPU, *GIVEN, "--documents", "1.5"), "expected a whole number"),
        ((*GPU, *GIVEN, "--image-tokens", "2"), "image_tokens=2.0: expected a share"),
    ],
)
def test_what_the_command_refuses(arguments: tuple[str, ...], message: str) -> None:
    outcome = run(*BASE, *arguments)
    assert outcome.exit_code == 1
    assert message in outcome.output
