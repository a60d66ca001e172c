from __future__ import annotations

import re

import pytest
import torch

from ragvl import Reranker, runtime
from ragvl.mllm import MLLM
from ragvl.runtime import (
    mapped_device,
    multiplies_bfloat16,
    resolve_dtype,
    warn_of_slow_products,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("device_map", "device"),
    [
        (None, "auto"),
        ("cpu", "cpu"),
        (0, "cuda:0"),
        (torch.device("cuda", 1), "cuda:1"),
        ({"": "cuda"}, "cuda"),
        ({"model.vision_tower": 1, "model": "cuda:1", "lm_head": torch.device("cuda:1")}, "cuda:1"),
    ],
)
def test_a_map_to_one_device_is_that_device(device_map, device):
    assert mapped_device("auto", device_map) == device


@pytest.mark.parametrize("name", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_a_map_by_space_is_the_only_device(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert mapped_device("auto", name) == "auto"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match=r"over 4 GPUs, .*whole: give device= one of them"):
        mapped_device("auto", name)


@pytest.mark.parametrize(
    ("device_map", "names"),
    [
        ({"model": 0, "lm_head": 1}, "cuda:0, cuda:1"),
        ({"model": "cuda:0", "lm_head": "cpu"}, "cuda:0, cpu"),
        ({"": "disk"}, "disk"),
        ({}, "no device"),
    ],
)
def test_several_devices_are_refused_with_what_to_do(device_map, names):
    with pytest.raises(ValueError, match=f"device_map names {names}, .* load a model on each"):
        Reranker.from_pretrained("owner/model", device_map=device_map)


def test_a_device_and_a_map_are_not_both_given():
    with pytest.raises(ValueError, match=r"both device='cpu' and device_map='cpu'"):
        mapped_device("cpu", "cpu")


def test_a_model_is_put_where_the_map_says(tiny_model):
    reranker = Reranker.from_pretrained(tiny_model("llava"), device_map={"": "cpu"})
    assert reranker.mllm.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("dtype", "flags", "is_slow"),
    [
        ("bfloat16", "sse2 avx2 avx512f", True),
        ("bfloat16", "sse2 avx512_bf16", False),
        ("bfloat16", "asimd bf16", False),
        ("float16", "sse2 avx512_bf16", True),
        ("float16", "asimd asimdhp", False),
        ("float32", "sse2 avx2", False),
        ("auto", "sse2 avx2", False),
        ("bfloat16", "", False),  # nobody knows
        ("bfloat16", "vsx mma", False),
    ],
)
def test_a_dtype_that_a_cpu_is_slow_with_is_named_once(dtype, flags, is_slow, monkeypatch, caplog):
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: frozenset(flags.split()))
    runtime._warn_once.cache_clear()
    for _ in range(2):
        warn_of_slow_products(resolve_dtype(dtype, CPU), CPU)
    expected = [f"no instructions for {dtype}: .* dtype='float32' is faster"] * is_slow
    assert len(caplog.messages) == len(expected)
    assert all(re.search(*pair) for pair in zip(expected, caplog.messages, strict=True))
    warn_of_slow_products(resolve_dtype(dtype, CPU), torch.device("meta"))
    assert len(caplog.messages) == len(expected), "another device is no CPU"


def test_what_a_cpu_multiplies_is_what_linux_says(monkeypatch):
    for flags, expected in (("avx2", False), ("amx_bf16 avx2", True), ("", False)):
        monkeypatch.setattr(runtime, "_cpu_flags", lambda flags=flags: frozenset(flags.split()))
        assert multiplies_bfloat16() is expected


def test_a_model_says_so_when_it_is_to_compute(tiny_model, monkeypatch, caplog):
    monkeypatch.setattr(runtime, "_cpu_flags", lambda: frozenset({"sse2", "avx2"}))
    runtime._warn_once.cache_clear()
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu", dtype="bfloat16")
    assert not caplog.messages, "it may be moved to a GPU, as in training"
    Reranker(mllm)
    assert "no instructions for bfloat16" in caplog.text
