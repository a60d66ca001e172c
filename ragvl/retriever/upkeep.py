"""Brings an index up to date with its source: what is as it was is not encoded again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ragvl.data.document import Document, DocumentLike
from ragvl.identity import file_version_name, name_of
from ragvl.retriever.retriever import DocumentRetriever
from ragvl.retriever.saved_documents import by_id


@dataclass(frozen=True)
class Upkeep:
    """What `bring_up_to_date` did.

    Attributes:
        versions: of the source's documents by id, for the next time.
        new: how many documents were added.
        changed: how many were encoded again.
        gone: how many are no longer in the source.
        skipped: how many of the source cannot be used, now or the last time.
    """

    versions: dict[str, str]
    new: int
    changed: int
    gone: int
    skipped: int

    @property
    def is_change(self) -> bool:
        """Whether the index is another than before."""
        return bool(self.new or self.changed or self.gone)


def bring_up_to_date(
    retriever: DocumentRetriever,
    documents: Iterable[DocumentLike],
    versions: Mapping[str, str],
    *,
    progress: bool = True,
) -> Upkeep:
    """Adds to an index what is new in a list of documents, and removes what is no longer there.

    A document that has changed is encoded again. One that could not be used is tried again once it
    has changed. Pictures' files are not read to see that, see `file_version_name`.

    Args:
        retriever: the index; changed in place.
        documents: all that it is to hold, as in `DocumentRetriever.add`.
        versions: those that the last call gave; none of a new index.
        progress: show a progress bar when encoding takes more than a second.

    Raises:
        TypeError, ValueError: see `DocumentRetriever.add`.
    """
    wanted = by_id(documents)
    now = {id: _version(document) for id, document in wanted.items()}
    held = retriever.documents
    gone = [id for id in held if id not in wanted]
    outdated = {id for id in held if id in wanted and versions.get(id) != now[id]}
    new = [
        document
        for id, document in wanted.items()
        if id in outdated or (id not in held and versions.get(id) != now[id])
    ]
    retriever.remove([*gone, *outdated])
    added = set(retriever.add(new, on_error="skip", progress=progress))
    return Upkeep(
        versions=now,
        new=len(added - outdated),
        changed=len(added & outdated),
        gone=len(gone) + len(outdated - added),
        skipped=len(wanted) - len(retriever),
    )


def _version(document: Document) -> str:
    """A name that changes whenever a document does: its texts, or the files of its pictures."""
    parts: list[str | tuple[str]] = []
    for part in document.parts:
        if isinstance(part, str):
            parts.append(part)
        else:
            parts.append((part.digest() if part.path is None else file_version_name(part.path),))
    tags = [list(document.tags)] if document.tags else []
    return name_of("document version", parts, *tags)
