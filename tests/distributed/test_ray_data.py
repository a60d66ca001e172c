"""The callables in Ray Data, on two actors."""

from __future__ import annotations

import os
import re
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import write_picture
from PIL import Image
from tiny_encoders import save_checkpoint

from ragvl import Document, PrefixCache
from ragvl.distributed import (
    ClusterError,
    EmbedDocuments,
    WarmPrefixes,
    document_key,
    partition_by_document,
)
from ragvl.distributed.session import named_errors
from ragvl.server.settings import TINY_RERANKER

EXAMPLES = Path(__file__).parents[2] / "examples"
QUERIES = ("Which is red?", "What is the tower's color?", "a boat")


class Warm(WarmPrefixes):
    """Says of each row which process worked on it; begins when another process is about to."""

    def __init__(self, meeting: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._meeting = Path(meeting)

    def __call__(self, batch: Any) -> Any:
        (self._meeting / str(os.getpid())).touch()
        deadline = time.monotonic() + 120
        while len(list(self._meeting.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        return super().__call__(batch).assign(process=os.getpid())


@pytest.fixture(scope="session")
def ray(cluster: Any) -> Any:
    """Ray, with workers that know this module."""
    cluster.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return cluster


def rows(pictures: list[Path], repeats: int) -> list[dict[str, Any]]:
    """Each picture under several queries, mixed, as files and as bytes of the same content."""
    pairs = [(query, path) for _ in range(repeats) for query in QUERIES for path in pictures]
    order = np.random.default_rng(0).permutation(len(pairs))
    return [{"id": str(i), "query": pairs[i][0], "image": str(pairs[i][1])} for i in order]


def test_each_prefix_is_built_once_in_the_whole_cluster(
    ray: Any, pictures: list[Path], tmp_path: Path
) -> None:
    copies = [write_picture(tmp_path / f"copy-{path.name}", path.stem) for path in pictures[:3]]
    dataset = ray.data.from_items(rows([*pictures, *copies], 3), override_num_blocks=6)
    parted = partition_by_document(dataset, num_partitions=6)
    assert parted.count() == dataset.count()
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    # Each actor keeps prefixes in its own memory alone, so that none is known from the other
    found = parted.map_batches(
        Warm,
        fn_constructor_kwargs={
            "meeting": str(meeting),
            "model": TINY_RERANKER,
            "prefix_cache": PrefixCache("64MiB"),
            "device": "cpu",
            "dtype": "float32",
        },
        batch_size=8,
        batch_format="pandas",
        compute=ray.data.ActorPoolStrategy(size=2),
    ).to_pandas()
    distinct = {document_key(Document(path)) for path in pictures}
    assert set(found.document_key) == distinct
    assert (found.prefix == "built").sum() == len(distinct) == len(pictures)
    assert (found.groupby("document_key").process.nunique() == 1).all()
    assert found.process.nunique() == 2


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


def test_a_full_object_store_is_named(ray: Any) -> None:
    with pytest.raises(ClusterError, match=r"object store is full.*no room"), named_errors():
        raise ray.exceptions.ObjectStoreFullError("no room")


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_the_example_finds_each_questions_picture(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "ray_data.py"))
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(re.match(r"[01]\.\d{3} \S.*", line) for line in lines)
