"""`EmbedDocuments`: vectors of a dataset's documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ragvl.data.document import Document
from ragvl.distributed.batches import Batch, texts, vectors, with_columns
from ragvl.distributed.documents import DocumentColumns, messages
from ragvl.distributed.worker import assigned_device, loading
from ragvl.retriever import DualEncoder, Encoder, TextEncoder, encode_each


class EmbedDocuments:
    """Adds each document's unit vector, for `ray.data.Dataset.map_batches`.

    Takes batches of any format. A row whose document cannot be used gets no vector and a message in
    the error column.

    Args:
        model: an encoder's folder or hub id, which must be there on each worker.
        reads: "pictures" by a dual encoder, or "texts" (captions, and texts) by a text encoder.
        vector_column: gets vectors (dim,), float32.
        error_column: gets messages.
        device: "auto" is the GPU that Ray gave (`num_gpus`), else the CPU.
        batch_size: pictures or texts per forward pass.
        versions: the driver's `ragvl.distributed.versions()`, to refuse workers with others.
        load: `image_column` and the like, see `DocumentColumns`; and what else
            `DualEncoder.from_pretrained` or `TextEncoder.from_pretrained` takes.

    Raises:
        OSError: there is no such model on this node; the message names it.
        VersionMismatchError: versions differ.
        ValueError: of a setting, or of the model.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        reads: Literal["pictures", "texts"] = "pictures",
        vector_column: str = "vector",
        error_column: str = "error",
        device: str = "auto",
        batch_size: int = 32,
        versions: Mapping[str, str] | None = None,
        **load: Any,
    ) -> None:
        if reads not in ("pictures", "texts"):
            raise ValueError(f"reads={reads!r}: expected 'pictures' or 'texts'")
        self._columns = DocumentColumns.taken_from(load)
        self._vector_column, self._error_column = vector_column, error_column
        self._batch_size = batch_size
        kind: Any = DualEncoder if reads == "pictures" else TextEncoder
        with loading(versions):
            self.encoder: Encoder = kind.from_pretrained(
                model, device=assigned_device(device), **load
            )

    def __call__(self, batch: Batch) -> Batch:
        """The batch with vectors and errors.

        Raises:
            UnknownColumnError: a column is not there.
        """
        given = self._columns.documents(batch)
        documents = [one for one in given if isinstance(one, Document)]
        encoded = iter(encode_each(self.encoder, documents, batch_size=self._batch_size))
        outcomes = [next(encoded) if isinstance(one, Document) else one for one in given]
        found = [one if isinstance(one, np.ndarray) else None for one in outcomes]
        return with_columns(
            batch,
            {
                self._vector_column: vectors(found, self.encoder.dim),
                self._error_column: texts(messages(outcomes)),
            },
        )
