"""Rerank pairs with Ray Data: two workers, no prefix computed twice.

On a drawn world, with the tiny models that come along; on this machine, or on the cluster that
RAY_ADDRESS names:

    pip install "ragvl[cpu,ray]"
    python examples/ray_data.py
"""

from __future__ import annotations

import tempfile

import ray

from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.distributed import RerankPairs, connected, partition_by_document, versions
from ragvl.server.settings import TINY_RERANKER

with tempfile.TemporaryDirectory() as folder:
    write_world(folder, Places(), counts={"test": 4}, seed=1)
    world = WebQA(folder, split="test")
    pairs = [
        {"query": question.text, "image": one.image, "caption": one.caption, "id": one.id}
        for question in world.questions
        for one in world.documents()
    ]

with connected():
    rows = partition_by_document(ray.data.from_items(pairs), num_partitions=4)
    settings = {"model": TINY_RERANKER, "prefix_cache": "64MiB", "versions": versions()}
    scored = rows.map_batches(
        RerankPairs,
        fn_constructor_kwargs=settings,
        batch_size=8,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    results = scored.take_all()

best = {row["query"]: row for row in sorted(results, key=lambda row: row["score"])}
for question, row in best.items():
    print(f"{row['score']:.3f} {question} {row['caption']}")
