"""Evaluate two stages with mteb: a dual encoder finds pictures, a reranker orders what it found.

On a drawn world, with the tiny models that come along:

    pip install "ragvl[cpu,mteb]"
    python examples/with_mteb.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import mteb
import numpy as np
from datasets import Dataset, Features, Image, Value
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from ragvl import Document
from ragvl.data.synthetic import Places, write_world
from ragvl.data.webqa import WebQA
from ragvl.integrations.mteb import RagVLCrossEncoder
from ragvl.server.stages import load_demo

demo = load_demo()
NUM_QUESTIONS, NUM_CANDIDATES = 12, 8


class DrawnPlaces(AbsTaskRetrieval):
    """Questions about pictures that are drawn here."""

    metadata = TaskMetadata(
        name="DrawnPlaces",
        description="Questions about drawn pictures with captions.",
        dataset={"path": "ragvl/drawn-places", "revision": "0"},
        type="Any2AnyRetrieval",
        category="t2it",
        modalities=["text", "image"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_5",
    )

    def load_data(self, **_: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_world(folder, Places(), counts={"test": 40}, seed=1)
            world = WebQA(folder, split="test")
            questions, documents = world.questions[:NUM_QUESTIONS], list(world.documents())
        corpus = {
            "id": [document.id for document in documents],
            "text": [document.caption for document in documents],
            "image": [{"bytes": document.image, "path": None} for document in documents],
        }
        kinds = Features({"id": Value("string"), "text": Value("string"), "image": Image()})
        queries = {"id": [q.id for q in questions], "text": [q.text for q in questions]}
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_dict(corpus, features=kinds),
                    "queries": Dataset.from_dict(queries),
                    "relevant_docs": {q.id: dict.fromkeys(q.gold, 1) for q in questions},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


class FirstStage(AbsEncoder):
    """The demo's dual encoder, for mteb."""

    mteb_model_meta = ModelMeta.create_empty(
        {"name": "ragvl/tiny-retriever", "modalities": ["text", "image"]}
    )

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        encoder, vectors = demo.retriever.encoder, []
        for batch in inputs:
            if "image" in batch:
                pictures = [Document(image) for image in batch["image"]]
                vectors.append(encoder.encode_documents(pictures, progress=False))
            else:
                vectors.append(encoder.encode_queries(batch["text"]))
        return np.concatenate(vectors)

    def similarity(self, one: Any, other: Any) -> Any:
        return one @ other.T


task, reranker = DrawnPlaces(), RagVLCrossEncoder(demo.reranker)
settings = {"cache": None, "co2_tracker": False, "show_progress_bar": False}
with tempfile.TemporaryDirectory() as folder:
    found = mteb.evaluate(FirstStage(), task, prediction_folder=folder, **settings)
    reranking = task.convert_to_reranking(folder, top_k=NUM_CANDIDATES)
    ordered = mteb.evaluate(reranker, reranking, prediction_folder=folder, **settings)

first, second = (result.task_results[0].get_score() for result in (found, ordered))
print(f"nDCG@5: {first:.3f} retrieved, {second:.3f} reranked")
