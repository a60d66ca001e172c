"""Rows in partitions by document, so that no two workers compute the same prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragvl.arguments import checked_count
from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.distributed.batches import Batch, texts, with_columns
from ragvl.distributed.documents import DocumentColumns
from ragvl.identity import document_name, name_of

if TYPE_CHECKING:
    import ray.data


def document_key(document: Document) -> str:
    """Names a document by what its prefix is computed from, whatever model does: its content.

    Documents whose prefixes are the same have the same key. Captions of a picture are left out, so
    that its visual tokens are computed in one place, too.

    Raises:
        DocumentError: a picture cannot be read.
    """
    return document.digest()


def content_name(document: Document) -> str:
    """Names a document's content, its caption included.

    Raises:
        DocumentError: a picture cannot be read.
    """
    return document_name(document.caption, document.digest())


def partition_by_document(
    dataset: ray.data.Dataset,
    *,
    num_partitions: int,
    key_column: str = "document_key",
    **columns: str,
) -> ray.data.Dataset:
    """The rows in blocks by their document's key, in each of them document by document.

    Of `map_batches` a worker takes whole blocks, so that each document is one worker's in the whole
    cluster, and each prefix is computed once. Pictures are read for their content by the cluster's
    CPUs, all of them before this returns: rows move between nodes, and may be spilled to disk.

    Args:
        dataset: has rows with documents.
        num_partitions: how many blocks; several for each worker.
        key_column: gets keys.
        columns: where documents are, such as `image_column`; see `DocumentColumns`.

    Raises:
        ValueError: `num_partitions` is below 1, or a column is not there.
    """
    count = checked_count("num_partitions", num_partitions)
    settings = {"columns": DocumentColumns(**columns), "key_column": key_column}
    keyed = dataset.map_batches(_with_keys, fn_kwargs=settings, batch_format="pyarrow")
    # Before any worker starts, which may need all of the CPUs that moving rows does
    return keyed.repartition(count, keys=[key_column], sort=True).materialize()


def _with_keys(batch: Batch, columns: DocumentColumns, key_column: str) -> Batch:
    """The batch with documents' keys; a row without a usable document has one of its own."""
    keys = texts([_key(one) for one in columns.documents(batch)])
    return with_columns(batch, {key_column: keys})


def _key(document: Document | Exception) -> str:
    try:
        if isinstance(document, Document):
            return document_key(document)
        raise document
    except (DocumentError, TypeError, ValueError) as error:
        return name_of("unusable document", str(error))
