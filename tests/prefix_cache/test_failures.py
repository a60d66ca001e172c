"""Whatever ends a call, the cache serves the next one, with the same bits."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from PIL import Image
from prefix_cache.test_memory import GIB, UNIFIED, Machine
from prefix_cache.tools import kept_keys, used_pages

from ragvl import Document, PrefixCache, Reranker
from ragvl.data import images
from ragvl.mllm import MLLM
from ragvl.mllm.decoder import Decoder
from ragvl.prefix_cache import PagePool, available_bytes, pages
from ragvl.prefix_cache.building import PrefixBuilder
from ragvl.prefix_cache.disk import DiskTier
from ragvl.prefix_cache.lru import LruTier
from ragvl.prefix_cache.memory import reservations
from ragvl.prefix_cache.record import PrefixRecord, are_finite
from ragvl.progress import ProgressBar

QUERY = "What color is the roof?"


def pairs(first: int = 0, count: int = 6) -> list[tuple[str, Document]]:
    pictures = [
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (48, 60, 3), np.uint8))
        for i in range(first, first + count)
    ]
    return [(QUERY, Document(p, caption=f"Picture {first + i}")) for i, p in enumerate(pictures)]


@pytest.fixture
def mllm(tiny_mllm: Callable[[str], MLLM]) -> MLLM:
    return tiny_mllm("llava")


@pytest.fixture
def expected(mllm: MLLM) -> torch.Tensor:
    return Reranker(mllm, prefix_cache=None).score(pairs())


def small_cache(mllm: MLLM, folder: Path, **options: Any) -> PrefixCache:
    """Room for three of the prefixes."""
    reranker = Reranker(mllm)
    reranker.score(pairs(count=1))
    one = reranker.prefix_cache.statistics()["device"].bytes
    return PrefixCache(3 * one, host_bytes="64MiB", folder=folder, keep="kv", **options)


def pages_in_use(cache: PrefixCache) -> int:
    assert cache._device is not None
    return used_pages(cache._device)


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (PrefixBuilder, "__call__"),
        (pages, "prefix_write"),
        (PagePool, "read"),
        (PagePool, "load"),
        (LruTier, "put"),
        (DiskTier, "put"),
        (DiskTier, "get"),
        (MLLM, "prefill"),
        (Decoder, "extend"),
    ],
)
def test_no_page_is_lost_to_an_error(
    owner: object,
    name: str,
    error: type[BaseException],
    mllm: MLLM,
    expected: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = small_cache(mllm, tmp_path)
    reranker = Reranker(mllm, prefix_cache=cache)
    if name in ("load", "get"):
        reranker.warm([document for _, document in pairs()], progress=False)
        cache.clear()
    reranker.score([])  # the model is probed before anything fails
    good, calls = getattr(owner, name), iter(range(10))

    def fail_at_the_second(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 1:
            raise error
        return good(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail_at_the_second)
        if (name, error) == ("load", RuntimeError):  # a record that a model trips over is a miss
            reranker.score(pairs())
        else:
            with pytest.raises(error):
                for _ in range(2):
                    reranker.score(pairs())
    assert pages_in_use(cache) == 0
    assert torch.equal(reranker.score(pairs()), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_page_is_lost_to_an_alarm_at_any_time(
    mllm: MLLM, expected: torch.Tensor, tmp_path: Path
) -> None:
    choose = random.Random(0)
    cache = small_cache(mllm, tmp_path, wait_seconds=20)
    reranker = Reranker(mllm, prefix_cache=cache)
    reranker.score(pairs())

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    stopped = tries = 0
    try:
        while stopped < 60 and tries < 2000:
            tries += 1
            try:
                signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-4, 0.05))
                reranker.score(pairs(6 * tries))
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                stopped += 1
            assert pages_in_use(cache) == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert stopped == 60
    # nor a lock, which only other threads would wait for
    with ThreadPoolExecutor(1) as other:
        assert torch.equal(other.submit(reranker.score, pairs()).result(60), expected)


def in_fork(function: Callable[[], Any]) -> Any:
    """What `function` returns in a forked child; SIGALRM ends one that hangs."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(120)
        try:
            os.write(sender, pickle.dumps(function()))
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as answer:
        content = answer.read()
    assert os.waitpid(pid, 0)[1] == 0, "the child hung"
    return pickle.loads(content)


def test_a_forked_child_scores_new_and_known_documents(
    mllm: MLLM, expected: torch.Tensor, tmp_path: Path
) -> None:
    product = torch.randn(600, 600)
    product @ product  # OpenMP has threads now, which no child has
    cache = small_cache(mllm, tmp_path)
    reranker = Reranker(mllm, prefix_cache=cache)
    reranker.score(pairs(count=3))
    assert cache._device is not None
    held, done = threading.Event(), threading.Event()

    def hold_everything() -> None:
        """Every lock that a child could wait for, and prefixes in use."""
        device, host, disk = cache._device, cache.below.host, cache.below.disk
        assert device is not None
        assert host is not None
        assert disk is not None
        with device.lease() as lease:
            for key in list(device._entries):
                device.use(key, lease)
            with contextlib.ExitStack() as stack:
                for owner in (cache, device, host, disk):
                    stack.enter_context(owner._lock)
                stack.enter_context(reservations.lock)
                stack.enter_context(images._lazy_image_lock)
                stack.enter_context(ProgressBar.get_lock())
                held.set()
                done.wait(120)

    holder = threading.Thread(target=hold_everything)
    holder.start()
    assert held.wait(60)
    try:
        scores, used = in_fork(lambda: (reranker.score(pairs()), pages_in_use(cache)))
    finally:
        done.set()
        holder.join()
    assert used == 0
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert torch.equal(reranker.score(pairs()), expected)  # the parent goes on


@pytest.mark.parametrize("keep", ["kv", "features"])
def test_a_record_that_holds_nan_is_computed_again(
    keep: str,
    mllm: MLLM,
    expected: torch.Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Reranker(mllm, prefix_cache=PrefixCache(folder=tmp_path, keep=keep)).score(pairs())
    tier = DiskTier(tmp_path, None)
    for key in kept_keys(tier)[:3]:
        record = tier.get(key)
        assert record is not None
        for x in record.tensors.values():
            if x.is_floating_point():
                x.fill_(torch.nan)
        tier.put(key, record)  # with a checksum that is right
    reranker = Reranker(mllm, prefix_cache=PrefixCache(folder=tmp_path, keep=keep))
    assert torch.equal(reranker.score(pairs()), expected)
    assert caplog.text.count("holds NaN or infinity and is forgotten") == 3
    healed = [tier.get(key) for key in sorted(kept_keys(tier))]
    assert len(healed) == 6
    assert all(record is not None and are_finite(record.tensors.values()) for record in healed)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["kv", "features"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("next_position", "-5"),
        ("next_position", "12345678901234567890"),
        ("next_position", "100000"),
        ("expansions", '["x"]'),
        ("expansions", "x" * 4000),
        ("expansions", '["\\ud800"]'),
        ("kind", "x"),
        ("kind", "the other"),
    ],
)
def test_a_record_that_says_nonsense_is_computed_again(
    name: str, value: str, keep: str, mllm: MLLM, expected: torch.Tensor, tmp_path: Path
) -> None:
    Reranker(mllm, prefix_cache=PrefixCache(folder=tmp_path, keep=keep)).score(pairs())
    tier = DiskTier(tmp_path, None)
    if value == "the other":
        value = "features" if keep == "kv" else "kv"
    for key in sorted(kept_keys(tier)):
        record = tier.get(key)
        assert record is not None
        tier.put(key, PrefixRecord(record.tensors, {**record.info, name: value}))
    reranker = Reranker(mllm, prefix_cache=PrefixCache(folder=tmp_path, keep=keep))
    assert torch.equal(reranker.score(pairs()), expected)
    healed = [tier.get(key) for key in sorted(kept_keys(tier))]
    assert all(record is not None and record.info[name] != value for record in healed)


def test_visual_tokens_that_the_model_would_not_look_at_are_computed_again(
    mllm: MLLM, expected: torch.Tensor, tmp_path: Path
) -> None:
    Reranker(mllm, prefix_cache=PrefixCache(folder=tmp_path, keep="features")).score(pairs())
    tier = DiskTier(tmp_path, None)
    for key in sorted(kept_keys(tier)):
        record = tier.get(key)
        assert record is not None
        tensors = {name: x for name, x in record.tensors.items() if name != "image/pixel_values"}
        assert len(tensors) == len(record.tensors) - 1
        tier.put(key, PrefixRecord(tensors, record.info))
    reranker = Reranker(mllm, prefix_cache=PrefixCache(folder=tmp_path, keep="features"))
    assert torch.equal(reranker.score(pairs()), expected)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_folder_that_no_system_can_have_is_refused_by_name(name: str) -> None:
    with pytest.raises(OSError, match="no folder for cached prefixes can have this name"):
        PrefixCache(folder=name)


def test_weights_that_give_nan_are_blamed_and_leave_nothing_behind(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    reranker = Reranker.from_pretrained(
        tiny_model("llava"), device="cpu", prefix_cache=PrefixCache(folder=tmp_path, keep="kv")
    )
    reranker.score(pairs(count=1))
    before = kept_keys(DiskTier(tmp_path, None))
    with torch.no_grad():
        for parameter in reranker.mllm.model.get_input_embeddings().parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        reranker.score(pairs())
    assert kept_keys(DiskTier(tmp_path, None)) == before
    assert len(reranker.prefix_cache) == 1  # of the weights as they were


def test_a_measurement_beside_other_processes(
    mllm: MLLM, expected: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a record's writing and the measurement, another process puts one of another kind."""
    Reranker(mllm, prefix_cache=PrefixCache(folder=tmp_path, keep="features")).score(pairs())
    get, seen = DiskTier.get, set()

    def not_yet_there(self: DiskTier, key: str) -> Any:
        if key in seen:
            return get(self, key)
        seen.add(key)
        return None

    monkeypatch.setattr(DiskTier, "get", not_yet_there)
    monkeypatch.setattr(DiskTier, "put", lambda *_: None)
    reranker = Reranker(mllm, prefix_cache=PrefixCache(folder=tmp_path))
    assert torch.equal(reranker.score(pairs()), expected)


def test_auto_is_a_share_of_what_a_container_has_left(
    mllm: MLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reservations, "_tiers", WeakSet())
    machine = Machine(tmp_path)
    machine.process("0::/", UNIFIED.format(root="/"))
    machine.v2("", 2 * GIB, 0)
    monkeypatch.setattr(
        "ragvl.prefix_cache.memory.available_bytes", lambda: available_bytes(machine.root)
    )
    caches = [PrefixCache(), PrefixCache(), PrefixCache("scratch")]
    sizes = []
    for cache in caches:
        device = cache.attach(mllm)
        sizes.append(device.pool.size * device.page_bytes / GIB)
    assert sizes[:2] == pytest.approx([0.5, 0.375], rel=1e-3)
    assert sizes[2] < 0.1


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_wait_must_have_an_end(seconds: float) -> None:
    with pytest.raises(ValueError, match="wait_seconds"):
        PrefixCache(wait_seconds=seconds)
