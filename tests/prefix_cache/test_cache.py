"""The tiers together: what one loses another has, and no damage below changes a score."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plain import picture
from prefix_cache.tools import kept_keys
from processes import Process
from tiny_models import ARCHITECTURES
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from typer.testing import CliRunner

from ragvl import Document, PrefixCache, Reranker
from ragvl.cli import app
from ragvl.compression import COMPRESSIONS
from ragvl.mllm import MLLM, Prompting
from ragvl.prefix_cache.disk import DiskTier
from ragvl.runtime import Timer

QUERIES = ["What color is the roof?", "Where is it?"]


def documents(count: int = 4) -> list[Document]:
    return [Document(picture(i, 40 + 9 * i), caption=f"Picture {i}") for i in range(count)]


def pairs(count: int = 4) -> list[tuple[str, Document]]:
    return [(query, document) for query in QUERIES for document in documents(count)]


# What is not called where a prefix, or the picture's features, are there
COMPUTING = {
    "features": [(Prompting, "encode_image")],
    "kv": [(Prompting, "encode_image"), (MLLM, "prefill")],
}


def forbid(monkeypatch: pytest.MonkeyPatch, *methods: tuple[type, str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("what is cached was computed again")

    for owner, name in methods:
        monkeypatch.setattr(owner, name, fail)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("keep", ["kv", "features"])
def test_another_process_finds_it_on_disk(
    architecture: str,
    keep: str,
    tiny_mllm: Callable[[str], MLLM],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mllm = tiny_mllm(architecture)
    expected = Reranker(mllm, prefix_cache=None).score(pairs())
    first = Reranker(mllm, prefix_cache=PrefixCache("64MiB", folder=tmp_path, keep=keep))
    assert torch.equal(first.score(pairs()), expected)
    # another cache on the same folder knows all that another process would
    second = Reranker(mllm, prefix_cache=PrefixCache("64MiB", folder=tmp_path, keep=keep))
    assert second.prefix_cache.statistics()["device"].hits == 0
    second.warm([], progress=False)  # tries the model out, once
    vision = next(
        module
        for name, module in mllm.model.named_modules()
        if name.rsplit(".", 1)[-1] in ("vision_tower", "visual", "vision_model")
    )
    ran: list[nn.Module] = []
    # Of all modules: a hook on one of the model's own would make it another model
    hook = register_module_forward_hook(lambda module, *_: ran.append(module))
    with monkeypatch.context() as patch:
        forbid(patch, *COMPUTING[keep])
        assert torch.equal(second.score(pairs()), expected)
    hook.remove()
    assert ran and vision not in ran
    assert second.prefix_cache.statistics()["disk"].hits == 4


@pytest.mark.parametrize("keep", ["kv", "features"])
def test_host_memory_takes_what_the_device_has_no_room_for(
    keep: str, tiny_mllm: Callable[[str], MLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    mllm = tiny_mllm("llava")
    full = Reranker(mllm)
    expected = full.score(pairs())
    one = full.prefix_cache.statistics()["device"].bytes // 4
    cache = PrefixCache(2 * one, host_bytes="64MiB", keep=keep)
    reranker = Reranker(mllm, prefix_cache=cache)
    assert torch.equal(reranker.score(pairs()), expected)
    with monkeypatch.context() as patch:
        forbid(patch, *COMPUTING[keep])
        assert torch.equal(reranker.score(pairs()), expected)
    assert cache.statistics()["host"].hits >= 2
    assert list(cache.statistics()) == ["device", "host"]


def test_a_hit_on_disk_comes_up_to_host_memory(
    tiny_mllm: Callable[[str], MLLM], tmp_path: Path
) -> None:
    mllm = tiny_mllm("llava")
    Reranker(mllm, prefix_cache=PrefixCache("scratch", folder=tmp_path, keep="kv")).warm(
        documents(), progress=False
    )
    cache = PrefixCache("scratch", host_bytes="64MiB", folder=tmp_path, keep="kv")
    reranker = Reranker(mllm, prefix_cache=cache)
    reranker.score(pairs())
    statistics = cache.statistics()
    assert (statistics["disk"].hits, statistics["host"].bytes > 0) == (4, True)


def test_what_is_kept_below_is_chosen_by_measurement(
    tiny_mllm: Callable[[str], MLLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is slower than the decoder holds visual tokens, a faster one keys and values."""
    mllm = tiny_mllm("llava")
    monkeypatch.setattr(Timer, "seconds", property(lambda _: 60.0))  # of the decoder
    kinds = {}
    for name, seconds in {"fast": 0.0, "slow": 3600.0}.items():
        monkeypatch.setattr(DiskTier, "reading_seconds", lambda *_, seconds=seconds: seconds)
        cache = PrefixCache("64MiB", folder=tmp_path / name)
        Reranker(mllm, prefix_cache=cache).warm(documents(2), progress=False)
        tier = DiskTier(tmp_path / name, None)
        files = kept_keys(tier)
        assert len(files) == 2
        kinds[name] = {tier.get(key).info["kind"] for key in files}  # type: ignore[union-attr]
    assert kinds == {"fast": {"kv"}, "slow": {"features"}}


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "emptied", "foreign", "removed"])
@pytest.mark.parametrize("keep", ["kv", "features"])
def test_a_damaged_file_is_computed_again(
    damage: str,
    keep: str,
    tiny_mllm: Callable[[str], MLLM],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mllm = tiny_mllm("llava")
    reranker = Reranker(mllm, prefix_cache=PrefixCache("scratch", folder=tmp_path, keep=keep))
    expected = reranker.score(pairs())
    files = sorted(tmp_path.glob("??/*.safetensors"))
    assert len(files) == 4
    content = files[0].read_bytes()
    if damage == "truncated":
        files[0].write_bytes(content[: len(content) // 2])
    elif damage == "flipped bit":
        files[0].write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    elif damage == "emptied":
        files[0].write_bytes(b"")
    elif damage == "foreign":
        files[0].write_bytes(files[1].read_bytes())
    else:
        files[0].unlink()
    with caplog.at_level(logging.WARNING, "ragvl"):
        again = Reranker(mllm, prefix_cache=PrefixCache("scratch", folder=tmp_path, keep=keep))
        assert torch.equal(again.score(pairs()), expected)
    assert len(caplog.records) == (0 if damage == "removed" else 1)
    # and is whole again
    assert files[0].read_bytes() == content


def test_a_folder_that_cannot_be_written_to_costs_no_score(
    tiny_mllm: Callable[[str], MLLM], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mllm = tiny_mllm("llava")
    expected = Reranker(mllm, prefix_cache=None).score(pairs())
    cache = PrefixCache("64MiB", folder=tmp_path, keep="kv")
    for number in range(256):  # where the folders of the records would go, there are files
        (tmp_path / f"{number:02x}").write_text("not a folder")
    with caplog.at_level(logging.WARNING, "ragvl"):
        assert torch.equal(Reranker(mllm, prefix_cache=cache).score(pairs()), expected)
    # one line for reading and one for writing, and not one for each document
    assert len(caplog.records) == 2


def test_records_of_another_pool_are_not_used(
    tiny_mllm: Callable[[str], MLLM], tmp_path: Path
) -> None:
    """Compressed and exact prefixes have different keys, so that neither takes the other's."""
    mllm = tiny_mllm("llava")
    expected = Reranker(mllm, prefix_cache=None).score(pairs())
    for compression in (*COMPRESSIONS, None):
        cache = PrefixCache("64MiB", folder=tmp_path, keep="kv", compression=compression)
        scores = Reranker(mllm, prefix_cache=cache).score(pairs())
        assert torch.equal(scores, expected) == (compression is None)
        assert cache.statistics()["disk"].hits == 0


def test_what_int4_cannot_hold_is_an_error(tiny_model: Callable[[str], Path]) -> None:
    mllm = MLLM.from_pretrained(tiny_model("llava"), device="cpu", dtype="float32")
    for name, weight in mllm.model.named_parameters():
        if name.endswith("v_proj.weight"):
            with torch.no_grad():
                weight *= 1e7
    exact = Reranker(mllm).score(pairs(2))
    assert exact.isfinite().all()
    with pytest.raises(FloatingPointError, match=r"beyond 65504.*compression='int4'"):
        Reranker(mllm, prefix_cache=PrefixCache("64MiB", compression="int4")).score(pairs(2))


def test_the_pool_holds_little_more_than_the_keys_and_values(
    tiny_mllm: Callable[[str], MLLM],
) -> None:
    mllm = tiny_mllm("llava")
    reranker = Reranker(mllm)
    captions = [f"{'long ' * 40} {i}" for i in range(20)]
    rows = [Document(picture(i), caption=caption) for i, caption in enumerate(captions)]
    tokens = [len(reranker.split_prompt(QUERIES[0], row)[0]) for row in rows]
    assert min(tokens) > 150
    reranker.warm(rows, progress=False)
    held = sum(tokens) * mllm.kv_layout.bytes_per_token()
    assert held <= reranker.prefix_cache.statistics()["device"].bytes <= 1.05 * held


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device_bytes": "8 bananas"}, "8 bananas"),
        ({"device_bytes": -1}, "-1"),
        ({"keep": "everything"}, "keep='everything'"),
        ({"compression": "int2"}, "compression='int2': expected 'int8', 'int4' or None"),
        ({"host_bytes": "1 GigaByte"}, "GigaByte"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixCache(**arguments)


# `ragvl warm` in a process that dies while it writes its sixth file
DYING = """
import os, signal, torch
from ragvl.prefix_cache import disk
torch.set_num_threads(1)
written, replace = 0, os.replace
def die(source, target):
    global written
    written += str(target).endswith(".safetensors")
    if written == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = die
from ragvl.cli import app
app()
"""


@pytest.mark.slow
def test_a_killed_warm_goes_on_where_it_was(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, cache, total = tmp_path / "pictures", tmp_path / "cache", 12
    folder.mkdir()
    for i in range(total):
        picture(i).save(folder / f"{i:03}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    command = ["warm", str(folder), "--device", "cpu"]
    command += ["--model", str(tiny_model("llava")), "--cache", str(cache), "--keep", "kv"]
    code, printed = Process(DYING, *command).ended()
    assert code == -signal.SIGKILL, printed
    assert len(list(cache.glob("??/*.safetensors"))) == 5
    done = CliRunner().invoke(app, command)
    assert f"{total - 5} built, 5 there already, 1 skipped" in done.stdout, done.output
    # what was written before and after the kill is whole and right
    rows = [Document(folder / f"{i:03}.png") for i in range(0, total, 3)]
    scored = [(QUERIES[0], row) for row in rows]
    warm = Reranker.from_pretrained(
        tiny_model("llava"), device="cpu", prefix_cache=PrefixCache("64MiB", folder=cache)
    )
    scores = warm.score(scored)
    assert warm.prefix_cache.statistics()["disk"].hits == len(rows)
    fresh = Reranker(warm.mllm, prefix_cache=None)
    assert torch.equal(scores, fresh.score(scored))
