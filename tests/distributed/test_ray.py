"""Ray Data, and commands with --ray, on two actors."""

from __future__ import annotations

import base64
import json
import os
import re
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_encoders import save_checkpoint
from typer.testing import CliRunner

from ragvl.cli import app
from ragvl.cli.options import RayMayHaveAnAddress
from ragvl.data.synthetic import Places, write_world
from ragvl.server.settings import TINY_RERANKER
from ragvl.server.stages import ASSETS

pytest.importorskip("ray.data")

from ragvl.distributed import ClusterError, EmbedDocuments, RerankPairs, connected
from ragvl.distributed.actors import actor_map
from ragvl.distributed.session import named_errors

EXAMPLES = Path(__file__).parents[2] / "examples"


class Counting(RerankPairs):
    """Begins when another process is about to, and writes down how many prefixes it has built."""

    folder: Path

    def __call__(self, batch: Any) -> Any:
        own = self.folder / str(os.getpid())
        own.touch()
        deadline = time.monotonic() + 120
        while len(list(self.folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        scored = super().__call__(batch)
        own.write_text(str(self.reranker.prefix_cache.statistics()["device"].misses))
        return scored


@pytest.fixture(scope="session")
def ray(cluster: Any) -> Any:
    """Ray, with workers that know this module."""
    cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return cluster


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads torch has, as many as an actor gets cores."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.slow
def test_each_prefix_is_built_once_in_the_whole_cluster(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the example, whose two workers keep prefixes in their own memory alone."""
    assert ray.is_initialized()
    counting = type("Counting", (Counting,), {"folder": tmp_path})
    monkeypatch.setattr("ragvl.distributed.RerankPairs", counting)
    run = runpy.run_path(str(EXAMPLES / "ray_data.py"))
    built = [int(path.read_text()) for path in tmp_path.iterdir()]
    documents = {one["id"] for one in run["pairs"]}
    assert len(built) == 2 and sum(built) == len(documents) == 12
    assert all(row["error"] is None for row in run["results"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len({one["query"] for one in run["pairs"]})
    assert all(re.match(r"[01]\.\d{3} \S.*", line) for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pandas", "pyarrow", "numpy"])
def test_pictures_in_memory_are_read_from_rays_own_types(
    ray: Any, form: str, tmp_path: Path
) -> None:
    images = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    rows = [{"image": images[0]}, {"image": None}, {"image": np.asarray(images[1])}]
    embed = EmbedDocuments(save_checkpoint(tmp_path, "clip"), device="cpu")
    for one, row in enumerate(rows):
        batch = ray.data.from_items([row, row]).take_batch(2, batch_format=form)
        found = embed(batch)
        errors, vectors = (list(found[name]) for name in ("error", "vector"))
        if one == 1:
            assert all("one of image" in str(error) for error in errors)
            continue
        expected = embed.encoder.encode_documents([row["image"]] * 2)
        held = [each.as_py() if form == "pyarrow" else each for each in vectors]
        assert np.array_equal(np.array(held, np.float32), expected)


def square(marker: Path, block: int) -> tuple[int, int]:
    """The square, and which process computed it; the first that gets a 5 is killed at it."""
    if block == 5 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return block**2, os.getpid()


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_killed_actor_is_replaced_and_its_blocks_are_done_again(
    threads: Any, tmp_path: Path
) -> None:
    threads(1)
    marker = tmp_path / "killed"
    taken: list[int] = []
    ahead: list[int] = []
    with actor_map({"square": partial(square, marker)}, device="cpu") as map_blocks:
        results = []
        for done in map_blocks("square", map(noted(taken), range(40))):
            results.append(done.result)
            ahead.append(len(taken) - len(results))
    assert marker.exists()
    assert [number for number, _ in results] == [number**2 for number in range(40)]
    assert len({process for _, process in results}) == 3  # two, and another in the place of one
    assert max(ahead) <= 10


def noted(taken: list[int]) -> Callable[[int], int]:
    """Notes which blocks are taken."""

    def note(block: int) -> int:
        taken.append(block)
        return block

    return note


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_a_block_that_kills_whoever_gets_it_ends_the_work_by_name(
    threads: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(2)
    monkeypatch.setattr("ragvl.distributed.actors._TRIES_MORE", 0)
    works = {"square": partial(square, tmp_path / "killed")}
    with (
        pytest.raises(ClusterError, match="the cluster cannot do the work"),
        connected(),
        actor_map(works, device="cpu") as map_blocks,
    ):
        list(map_blocks("square", [5]))


@pytest.mark.usefixtures("ray")
def test_a_cluster_with_too_few_cores_for_an_actor_is_refused(threads: Any) -> None:
    threads(64)
    with (
        pytest.raises(ClusterError, match=r"64 cores.*OMP_NUM_THREADS"),
        actor_map({}, device="cpu"),
    ):
        raise AssertionError("it began to work")
    with pytest.raises(ClusterError, match="no GPU"), actor_map({}, device="cuda"):
        raise AssertionError("it began to work")


def test_a_full_object_store_is_named(ray: Any) -> None:
    with pytest.raises(ClusterError, match=r"object store is full.*no room"), named_errors():
        raise ray.exceptions.ObjectStoreFullError("no room")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More pictures than are in a block."""
    return write_world(tmp_path_factory.mktemp("world"), Places(), counts={"test": 44}, seed=1)


@pytest.mark.usefixtures("ray")
class TestCommands:
    """With --ray, and without: what they write is the same to the last bit."""

    @staticmethod
    def run(*arguments: str | Path) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu", "--json"])
        assert result.exit_code == 0, result.output
        figures: dict[str, Any] = json.loads(result.stdout)
        return figures

    @staticmethod
    def files(folder: Path) -> dict[str, bytes]:
        found = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}

    @pytest.mark.slow
    def test_prefixes(self, threads: Any, pictures: list[Path], tmp_path: Path) -> None:
        threads(2)
        broken = tmp_path / "broken.png"
        broken.write_bytes(pictures[0].read_bytes()[:50])
        url = "data:image/png;base64," + base64.b64encode(pictures[3].read_bytes()).decode()
        lines: list[dict[str, Any]] = [
            {"id": f"picture {i}", "image": str(path), "caption": f"Number {i}"}
            for i, path in enumerate(pictures * 5)
        ]
        lines += [{**lines[0], "id": "again"}, {**lines[0], "id": "and again"}]
        lines += [{"text": "The tower is red."}, {"parts": ["One.", {"image": str(pictures[1])}]}]
        lines += [{"image": str(broken)}, {"image": url}]
        listed = tmp_path / "documents.jsonl"
        listed.write_text("".join(json.dumps(line) + "\n" for line in lines))
        said = {}
        for name, options in (("alone", []), ("spread", ["--ray"])):
            cache = tmp_path / name
            model = ["--model", TINY_RERANKER, "--cache", cache, "--keep", "kv"]
            said[name] = self.run("warm", listed, *model, *options) | {"cache": None}
        assert said["spread"] == said["alone"]
        assert sum(said["spread"][name] for name in ("built", "known", "skipped")) == len(lines)
        alone, spread = (self.files(tmp_path / name) for name in ("alone", "spread"))
        assert alone == spread and len(alone) >= said["spread"]["built"] > 40

    @pytest.mark.slow
    def test_ranking_samples_and_vectors(self, threads: Any, world: Path, tmp_path: Path) -> None:
        threads(2)
        for name, options in (("alone", []), ("spread", ["--ray"])):
            folder = tmp_path / name
            folder.mkdir()
            places = ["--out", folder / "ranking.jsonl", "--index", folder / "index"]
            source = [world, "--split", "test", "--encoder", ASSETS / "tiny-retriever"]
            self.run("data", "ranking", *source, *places, *options)
        files = [self.files(tmp_path / name) for name in ("alone", "spread")]
        for held in files:
            held.pop("index/ragvl_index.json")  # names the others, which have names of their own
        alone, spread = (sorted(held.values()) for held in files)
        assert alone == spread and len(alone) == 3  # samples, vectors, ids

    @pytest.mark.slow
    def test_an_evaluation_by_two_actors(self, threads: Any, world: Path, tmp_path: Path) -> None:
        threads(1)
        models = [
            *("--encoder", ASSETS / "tiny-retriever"),
            *("--reranker", TINY_RERANKER),
            *("--generator", ASSETS / "tiny-generator"),
        ]
        how = ["--split", "test", "--questions", "8", "--candidates", "6", "--timed", "0"]
        said = []
        for name, options in (("alone", []), ("spread", ["--ray"])):
            out = ["--out", tmp_path / name, "--no-progress"]
            said.append(self.run("evaluate", world, *models, *how, *out, *options))
            said[-1]["seconds"] = None
        assert said[0] == said[1]
        alone, spread = (self.files(tmp_path / name / "work") for name in ("alone", "spread"))
        assert alone == spread
        assert {name.partition("-")[0] for name in alone} == {"vectors", "scores", "answers"}


@pytest.mark.parametrize(
    ("follows", "value"),
    [
        ("10.0.0.1:6379", True),
        ("ray://head:10001", True),
        ("[::1]:6379", True),
        ("auto", True),
        ("photos/", False),
        ("a.jsonl", False),
        ("--cache", False),
        ("--", False),
    ],
)
def test_an_address_is_told_from_what_else_may_follow(follows: str, value: bool) -> None:
    assert RayMayHaveAnAddress.is_value(follows) == value
