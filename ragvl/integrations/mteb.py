"""mteb: a cross-encoder for its retrieval and reranking tasks, of texts and of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragvl.checkpoints import model_folder
from ragvl.data.query import Query
from ragvl.extras import extra
from ragvl.integrations.common import Content, made_documents
from ragvl.messages import shown
from ragvl.progress import ProgressBar
from ragvl.reranker import Reranker

with extra("mteb", "mteb"):
    from mteb.models import ModelMeta
if TYPE_CHECKING:
    from torch.utils.data import DataLoader

_UNKNOWN = {"audio", "video"}


class RagVLCrossEncoder:
    """Scores the pairs of a task: a `CrossEncoderProtocol`.

    mteb names no documents and hands over a row a pair, query by query. A picture that comes again
    is known by its pixels: its prefix is computed once while the reranker's `prefix_cache` has
    room. A batch of pictures is in memory at a time.

    Args:
        model_name: a hub id or a folder, or a `ragvl.Reranker`.
        revision: of a hub id.
        device: where to load the model; "auto" by default.
        kwargs: what else `Reranker.from_pretrained` takes, such as `dtype` and `prefix_cache`.

    Attributes:
        reranker: the reranker.
        mteb_model_meta: what mteb keeps results by: the model's name and, as its revision unless
            one was given, the reranker's fingerprint, so that other weights have other results.

    Raises:
        OSError, ValueError, TypeError: the model cannot be loaded; see `Reranker.from_pretrained`.

    Example:
        >>> mteb.evaluate(retriever, task, prediction_folder="first")
        >>> reranking = task.convert_to_reranking("first", top_k=100)
        >>> mteb.evaluate(RagVLCrossEncoder(folder), reranking)
    """

    def __init__(
        self,
        model_name: str | Path | Reranker,
        revision: str | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        given = {"revision": revision, "device": device, **kwargs}
        settings = {name: value for name, value in given.items() if value is not None}
        if isinstance(model_name, Reranker):
            if settings:
                named = shown(", ".join(settings))
                raise ValueError(f"of a loaded Reranker, {named} cannot be set: load it so")
            self.reranker, name = model_name, "ragvl/reranker"
        else:
            self.reranker = Reranker.from_pretrained(model_name, **settings)
            folder = model_folder(model_name)
            name = str(model_name) if folder is None else f"ragvl/{folder.resolve().name}"
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name,
                "revision": revision or self.reranker.fingerprint,
                "loader": type(self),
                "modalities": ["text", "image"],
                "model_type": ["cross-encoder"],
            }
        )

    def predict(
        self,
        inputs1: DataLoader[Any],
        inputs2: DataLoader[Any],
        *,
        task_metadata: Any,  # noqa: ARG002
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: Any = None,  # noqa: ARG002
        batch_size: int | None = None,  # noqa: ARG002  the loaders have it
        show_progress_bar: bool = True,
    ) -> np.ndarray:
        """Raw scores of pairs (n,), float32, by which `Reranker.rank` orders, too.

        Args:
            inputs1: queries: texts, pictures, or both.
            inputs2: documents, in batches of the same size.
            task_metadata: not looked at, like the names of the split and of the subset, and
                `prompt_type`.
            hf_split: see there.
            hf_subset: see there.
            prompt_type: see there.
            batch_size: not looked at: pairs are scored as the loaders give them.
            show_progress_bar: show a bar.

        Raises:
            ValueError: a row has neither a text nor a picture, or holds sound or a film; or see
                `Reranker.score`.
        """
        scores = []
        with ProgressBar(
            total=len(inputs2), desc="rerank", unit="batch", disable=not show_progress_bar
        ) as bar:
            for asked, found in zip(inputs1, inputs2, strict=True):
                queries = [_query(content) for content in _contents(asked)]
                documents = made_documents(_contents(found))
                pairs = list(zip(queries, documents, strict=True))
                scores.append(self.reranker.score(pairs, progress=False, raw=True).numpy())
                bar.update()
        return np.concatenate(scores) if scores else np.zeros(0, np.float32)


def _contents(batch: Mapping[str, Any]) -> Iterator[Content]:
    """What the rows of a batch hold."""
    if unknown := _UNKNOWN & batch.keys():
        raise ValueError(f"a reranker of texts and pictures cannot score {', '.join(unknown)}")
    length = max(map(len, batch.values()))
    nothing = [None] * length
    columns = (batch.get(name, nothing) for name in ("text", "image", "id"))
    for text, image, id in zip(*columns, strict=True):
        yield Content(text, image, None if id is None else str(id))


def _query(content: Content) -> Query:
    return Query(content.text or None, image=content.image)
