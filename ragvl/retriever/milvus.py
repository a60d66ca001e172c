"""Documents and their vectors in Milvus: a server, a cluster, or a file of Milvus Lite.

A collection holds the vectors of one encoder. What made them is one of its properties, so that any
process can open it:

    id        VARCHAR, the primary key
    vector    FLOAT_VECTOR, compared by inner product
    added     INT64, nanoseconds: the order in which documents were added
    pictured  BOOL, whether the document has a picture
    text      VARCHAR, its caption or texts as `searchable` has them
    tags      ARRAY of VARCHAR
    document  VARCHAR, the line that a saved index would have for it
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from ragvl.arguments import checked_count
from ragvl.data.document import Document
from ragvl.data.images import DocumentError
from ragvl.messages import quoted, reason, shown, validation_reason
from ragvl.retriever.encoding import Encoder, text_of
from ragvl.retriever.fusion import Order
from ragvl.retriever.index import (
    IndexKind,
    check_ids,
    check_new_ids,
    check_removed_ids,
    checked_vectors,
    num_subvectors,
)
from ragvl.retriever.kinds import taking_turns
from ragvl.retriever.saved_documents import SavedDocument
from ragvl.retriever.storage import MANIFEST, IndexFileError
from ragvl.retriever.store import Found, Hits, Where, best, searchable

TOKEN_VARIABLE = "RAGVL_MILVUS_TOKEN"

_COLLECTION = "ragvl"
_COLLECTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_PROPERTY = "ragvl.index"  # of a collection: what `_About` says
_SECONDS = 10.0  # to connect in

# Milvus's limits, in bytes of UTF-8, and ours of tags
_MAX_ID, _MAX_TEXT = 4096, 65_535
_MAX_TAG, _MAX_TAGS = 256, 256
_MAX_HITS = 16_384
_QUERIES_AT_ONCE = 128
_IDS_AT_ONCE = 1000
_BYTES_AT_ONCE = 8 << 20  # of rows; a server takes messages of 64 MiB

# HNSW and IVF-PQ as `VectorIndex` has them, with as many lists as millions of vectors ask for
_INDEXES: dict[IndexKind, tuple[str, dict[str, Any]]] = {
    "exact": ("FLAT", {}),
    "hnsw": ("HNSW", {"M": 32, "efConstruction": 200}),
    "ivfpq": ("IVF_PQ", {"nlist": 4096, "nbits": 8}),
}
_NPROBE = 256
_EF_SEARCH = 128


class MilvusError(OSError):
    """Milvus cannot be reached, or refused what it was asked; the message says where and why."""


@dataclass(frozen=True)
class MilvusAddress:
    """Where a collection is: `http://host:19530#photos`, or `photos.db#photos`.

    Attributes:
        uri: a server's address, with a database behind the slash if it is not the default one; or
            the path of a database of Milvus Lite, which ends with .db.
        collection: its name.

    Raises:
        ValueError: the address is of another scheme or holds a password, or the name cannot be a
            collection's.
    """

    uri: str
    collection: str = _COLLECTION

    def __post_init__(self) -> None:
        if not self.is_file:
            parts = urlsplit(self.uri)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(
                    f"{shown(self.uri)} is no address of Milvus: expected http://host:19530, "
                    "https://..., or a path that ends with .db"
                )
            if "@" in parts.netloc:
                raise ValueError(
                    f"an address of Milvus holds no password: set {TOKEN_VARIABLE} to "
                    "user:password, or to an API key"
                )
        if not _COLLECTION_NAME.fullmatch(self.collection):
            raise ValueError(
                f"{quoted(self.collection)} cannot be a collection of Milvus: expected letters, "
                "digits and underscores, the first no digit"
            )

    @classmethod
    def find(cls, place: str | Path) -> MilvusAddress | None:
        """The address that a place is; None of a folder's path.

        Raises:
            ValueError: see `MilvusAddress`.
        """
        text = str(place)
        before, hash, collection = text.rpartition("#")
        if hash and _is_milvus(before):
            return cls(before, collection)
        return cls(text) if _is_milvus(text) else None

    @property
    def is_file(self) -> bool:
        """Whether Milvus Lite keeps it."""
        return "://" not in self.uri

    def draft(self) -> MilvusAddress:
        """Where what will replace it is built."""
        return replace(self, collection=f"{self.collection}_draft_{secrets.token_hex(4)}")

    def __str__(self) -> str:
        return f"{self.uri}#{self.collection}"


def _is_milvus(place: str) -> bool:
    if "://" in place:
        return True
    return place.endswith(".db") and not (Path(place) / MANIFEST).is_file()


class _About(BaseModel):
    """What a collection's vectors are of."""

    format: Literal[1] = 1
    kind: IndexKind
    dim: Annotated[int, Field(ge=1)]
    encoder_fingerprint: str
    order: Order
    encoder: dict[str, str]


class MilvusStore:
    """Documents with their vectors in a collection of Milvus: a `VectorStore` that is never loaded.

    Other processes see what was added as soon as `add` returns. Searches may run in several
    threads, also while something is added or removed. A document's pictures must be in files.

    Made by `create` and `open`.

    Attributes:
        address: where it is.
        kind: how it is searched, see `VectorIndex`.
        about: by what `saved_encoders` finds the encoder again.
    """

    def __init__(self, client: Any, address: MilvusAddress, about: _About) -> None:
        self._client = client
        self.address = address
        self._about = about
        self.is_draft = False

    @classmethod
    def create(
        cls,
        place: str | Path | MilvusAddress,
        encoder: Encoder,
        *,
        kind: IndexKind = "exact",
        token: str | None = None,
    ) -> MilvusStore:
        """An empty collection, which was not there before.

        Args:
            place: see `MilvusAddress`; a database of Milvus Lite is made if it is not there.
            encoder: makes the vectors.
            kind: see `VectorIndex`. Milvus Lite has no "ivfpq".
            token: "user:password" or an API key; by default what `RAGVL_MILVUS_TOKEN` says.

        Raises:
            ImportError: pymilvus is not installed, or for a path milvus-lite.
            MilvusError: the server cannot be reached, or refuses.
            OSError: the path's folder is not there, or another process has the database open.
            ValueError: the place is no address, the collection is there already, or Milvus Lite
                does not have that kind.
        """
        address = _address(place)
        check_kind(address, kind)
        client = _connect(address, token)
        about = _About(
            kind=kind,
            dim=encoder.dim,
            encoder_fingerprint=encoder.fingerprint,
            order="picture" if encoder.reads_pictures else "caption",
            encoder=dict(encoder.origin),
        )
        with _asking(address, "make the collection"):
            if client.has_collection(address.collection):
                raise ValueError(f"{address} is there already: open it, or use another name")
            name, parameters = _INDEXES[kind]
            if kind == "ivfpq":
                parameters = {**parameters, "m": num_subvectors(encoder.dim)}
            indexes = client.prepare_index_params()
            indexes.add_index("vector", index_type=name, metric_type="IP", params=parameters)
            client.create_collection(
                address.collection,
                schema=_schema(client, encoder.dim),
                index_params=indexes,
                consistency_level="Strong",
                properties={_PROPERTY: about.model_dump_json()},
            )
            client.load_collection(address.collection)
        return cls(client, address, about)

    @classmethod
    def create_draft(
        cls,
        place: str | Path | MilvusAddress,
        encoder: Encoder,
        *,
        kind: IndexKind = "exact",
        token: str | None = None,
    ) -> MilvusStore:
        """An empty collection that `save` puts in the place of the one there, and `close` drops.

        Raises:
            ImportError, OSError, ValueError: see `create`; or the collection there is none of
                ragvl's.
        """
        address = _address(place)
        client = _connect(address, token, may_be_new=True)
        with _asking(address, "look at the collection"):
            if client.has_collection(address.collection):
                _read_about(client, address)
        store = cls.create(address.draft(), encoder, kind=kind, token=token)
        store.is_draft = True
        return store

    @classmethod
    def open(cls, place: str | Path | MilvusAddress, *, token: str | None = None) -> MilvusStore:
        """A collection that is there.

        Args:
            place: see `MilvusAddress`.
            token: see `create`.

        Raises:
            ImportError, OSError, ValueError: see `create`.
            FileNotFoundError: there is no such collection.
            IndexFileError: it is none of ragvl's, or of a newer version.
        """
        address = _address(place)
        client = _connect(address, token, may_be_new=False)
        with _asking(address, "open the collection"):
            if not client.has_collection(address.collection):
                others = ", ".join(sorted(client.list_collections())[:5]) or "none"
                raise FileNotFoundError(
                    f"{address}: there is no such collection (there are: {shown(others)}); "
                    "`ragvl index` makes one"
                )
            about = _read_about(client, address)
            client.load_collection(address.collection)
        return cls(client, address, about)

    def __len__(self) -> int:
        with _asking(self.address, "count documents"):
            (row,) = self._query("", ["count(*)"])
        return int(row["count(*)"])

    @property
    def kind(self) -> IndexKind:
        """How it is searched."""
        return self._about.kind

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self._about.dim

    @property
    def encoder_fingerprint(self) -> str:
        """Names the encoder that makes the vectors."""
        return self._about.encoder_fingerprint

    @property
    def metadata(self) -> dict[str, Any]:
        """What a saved index would say of itself."""
        return self._about.model_dump(exclude={"format"})

    @property
    def documents(self) -> dict[str, Document]:
        """All of them by id, in the order in which they were added, read from the database."""
        # Milvus Lite logs that it has no timestamps, which a reader does well without
        with _asking(self.address, "read documents"), _taken("grpc._server"):
            rows = sorted(self._rows(), key=lambda row: row["added"])
        return {row["id"]: self._document(row) for row in rows}

    def _rows(self) -> Iterator[dict[str, Any]]:
        iterator = self._client.query_iterator(
            self.address.collection,
            batch_size=_IDS_AT_ONCE,
            output_fields=["id", "added", "document"],
        )
        try:
            while rows := iterator.next():
                yield from rows
        finally:
            iterator.close()

    def get(self, ids: Iterable[str]) -> dict[str, Document]:
        """See `VectorStore`."""
        wanted = list(dict.fromkeys(ids))
        rows = self._held(wanted, ["id", "document"])
        found = {row["id"]: self._document(row) for row in rows}
        return {id: found[id] for id in wanted if id in found}

    def _document(self, row: Mapping[str, Any]) -> Document:
        try:
            document = SavedDocument.of(row["document"]).document()
        except (TypeError, ValueError, RecursionError) as error:
            raise IndexFileError(f"{self.address}, {quoted(row['id'])}: {reason(error)}") from error
        if document is None:
            raise IndexFileError(f"{self.address}, {quoted(row['id'])}: a picture has no path")
        return document

    def _held(self, ids: Sequence[str], fields: Sequence[str]) -> list[dict[str, Any]]:
        """Fields of those documents that are there."""
        held = []
        with _asking(self.address, "look documents up"):
            for start in range(0, len(ids), _IDS_AT_ONCE):
                some = ids[start : start + _IDS_AT_ONCE]
                held += self._query(f"id in {_literal(some)}", fields)
        return held

    def _query(self, expression: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        rows = self._client.query(
            self.address.collection, filter=expression, output_fields=list(fields)
        )
        return list(rows)

    def check_document(self, id: str, document: Document) -> None:
        """See `VectorStore`.

        Raises:
            DocumentError: a picture of it is in memory, or it is too long for Milvus.
        """
        if any(picture.path is None for picture in document.pictures):
            raise DocumentError(
                f"{document.name}: its picture is in memory, and Milvus keeps pictures' paths: "
                "write it to a file"
            )
        sizes = {
            "id": (len(id.encode()), _MAX_ID),
            "text": (len(searchable(text_of(document)).encode()), _MAX_TEXT),
            "line": (len(SavedDocument.line_of(id, document).encode()), _MAX_TEXT),
            "longest tag": (max((len(t.encode()) for t in document.tags), default=0), _MAX_TAG),
            "list of tags": (len(document.tags), _MAX_TAGS),
        }
        for what, (size, limit) in sizes.items():
            if size > limit:
                unit = "entries" if what == "list of tags" else "bytes"
                raise DocumentError(
                    f"{document.name}: its {what} has {size:,} {unit}, and a row in Milvus has "
                    f"room for {limit:,}"
                )

    def check_new(self, documents: Mapping[str, Document]) -> None:
        """See `VectorStore`."""
        check_ids(list(documents))
        for id, document in documents.items():
            self.check_document(id, document)
        held = {row["id"] for row in self._held(list(documents), ["id"])}
        check_new_ids(list(documents), held)

    def add(self, documents: Mapping[str, Document], vectors: np.ndarray) -> None:
        """See `VectorStore`; rows go in blocks, which are taken out again if one is refused."""
        vectors = checked_vectors(vectors, self.dim, "vectors")
        if len(documents) != len(vectors):
            raise ValueError(f"{len(documents)} documents for {len(vectors)} vectors")
        self.check_new(documents)
        sent: list[str] = []
        try:
            with _asking(self.address, "add documents"):
                for rows in _blocks(documents, vectors):
                    sent += [row["id"] for row in rows]
                    self._client.insert(self.address.collection, rows)
                if self.address.is_file:  # Milvus Lite searches row by row what is not flushed
                    self._client.flush(self.address.collection)
        except BaseException:
            self._delete(sent)
            raise

    def _delete(self, ids: Sequence[str]) -> None:
        with _asking(self.address, "remove documents"):
            for start in range(0, len(ids), _IDS_AT_ONCE):
                some = _literal(ids[start : start + _IDS_AT_ONCE])
                self._client.delete(self.address.collection, filter=f"id in {some}")

    def remove(self, ids: Sequence[str]) -> None:
        """See `VectorStore`; of more than a thousand, a lost connection may leave some."""
        held = set() if isinstance(ids, str) else {row["id"] for row in self._held(ids, ["id"])}
        check_removed_ids(ids, held)
        self._delete(list(dict.fromkeys(ids)))

    def search(
        self, queries: np.ndarray, k: int, where: Where | None = None, *, in_turn: bool = False
    ) -> list[Hits]:
        """See `VectorStore`."""
        queries = checked_vectors(queries, self.dim, "queries")
        k = checked_count("k", k)
        if not len(queries):
            return []
        if k > _MAX_HITS and (k := min(k, max(1, len(self)))) > _MAX_HITS:
            raise ValueError(f"k={k}: Milvus finds at most {_MAX_HITS:,} documents at once")
        kinds = ["pictured == true", "pictured == false"] if in_turn else [""]
        conditions = [] if where is None else _conditions(where)
        with _asking(self.address, "search"):
            of_kinds = [
                self._search(queries, k, " and ".join(filter(None, [*conditions, kind])))
                for kind in kinds
            ]
        return taking_turns(of_kinds, k) if in_turn else of_kinds[0]

    def _search(self, queries: np.ndarray, k: int, expression: str) -> list[Hits]:
        return [
            hits
            for start in range(0, len(queries), _QUERIES_AT_ONCE)
            for hits in self._search_some(queries[start : start + _QUERIES_AT_ONCE], k, expression)
        ]

    def _search_some(self, queries: np.ndarray, k: int, expression: str) -> list[Hits]:
        """The `k` best; looks further where the last ones are as good as what may follow."""
        limit = min(k + 1, _MAX_HITS)
        while True:
            parameters = {"ef": max(_EF_SEARCH, 2 * limit), "nprobe": _NPROBE}
            found = self._client.search(
                self.address.collection,
                data=list(queries),
                filter=expression,
                limit=limit,
                output_fields=["added"],
                search_params={"metric_type": "IP", "params": parameters},
            )
            rows = [[_found(hit) for hit in hits] for hits in found]
            cut = any(len(row) == limit and row[-1].score == row[k - 1].score for row in rows)
            if limit == _MAX_HITS or not cut:
                return [best(row, k) for row in rows]
            limit = min(2 * limit, _MAX_HITS)

    def save(self, place: str | Path, about: Mapping[str, Any]) -> None:  # noqa: ARG002
        """Puts a draft in the place of the collection there; anything else is kept already.

        Raises:
            ValueError: the place is not in the same database.
            IndexFileError: the collection there is none of ragvl's.
        """
        to = MilvusAddress.find(place)
        if to is None or to.uri != self.address.uri:
            raise ValueError(f"documents in {self.address} cannot be saved in {shown(place)}")
        with _asking(to, "put the new collection in its place"):
            if to != self.address:
                if self._client.has_collection(to.collection):
                    _read_about(self._client, to)
                    self._client.drop_collection(to.collection)
                self._client.rename_collection(self.address.collection, to.collection)
                self.address, self.is_draft = to, False
                self._client.load_collection(to.collection)

    def close(self) -> None:
        """Ends the connection, and drops a draft that was not saved."""
        if self.is_draft:
            with _asking(self.address, "drop the draft"):
                self._client.drop_collection(self.address.collection)
            self.is_draft = False
        self._client.close()


def _found(hit: Mapping[str, Any]) -> Found:
    return Found(hit["id"], float(hit["distance"]), int(hit["entity"]["added"]))


def check_kind(address: MilvusAddress, kind: IndexKind) -> None:
    """Refuses a kind that is not there, before anything is connected.

    Raises:
        ValueError: it is one.
    """
    if kind not in get_args(IndexKind):
        raise ValueError(f"kind={kind!r}: it must be one of {', '.join(get_args(IndexKind))}")
    if kind == "ivfpq" and address.is_file:
        raise ValueError(
            f"{address}: Milvus Lite has no ivfpq: use exact or hnsw, or a server's address"
        )


def _address(place: str | Path | MilvusAddress) -> MilvusAddress:
    address = place if isinstance(place, MilvusAddress) else MilvusAddress.find(place)
    if address is None:
        raise ValueError(
            f"{shown(place)} is no address of Milvus: expected http://host:19530, or a path that "
            "ends with .db"
        )
    return address


def _schema(client: Any, dim: int) -> Any:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=_MAX_ID)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    schema.add_field("added", DataType.INT64)
    schema.add_field("pictured", DataType.BOOL)
    schema.add_field("text", DataType.VARCHAR, max_length=_MAX_TEXT)
    schema.add_field(
        "tags",
        DataType.ARRAY,
        element_type=DataType.VARCHAR,
        max_length=_MAX_TAG,
        max_capacity=_MAX_TAGS,
    )
    schema.add_field("document", DataType.VARCHAR, max_length=_MAX_TEXT)
    return schema


def _blocks(
    documents: Mapping[str, Document], vectors: np.ndarray
) -> Iterator[list[dict[str, Any]]]:
    """Rows of documents, as many at once as a message has room for."""
    rows: list[dict[str, Any]] = []
    size, began = 0, time.time_ns()
    for i, (id, document) in enumerate(documents.items()):
        row = {
            "id": id,
            "vector": vectors[i],
            "added": began + i,
            "pictured": bool(document.pictures),
            "text": searchable(text_of(document)),
            "tags": list(document.tags),
            "document": SavedDocument.line_of(id, document),
        }
        rows.append(row)
        size += vectors[i].nbytes + 4 * (len(row["text"]) + len(row["document"]) + len(id))
        if size >= _BYTES_AT_ONCE:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _conditions(where: Where) -> list[str]:
    """What `where` says as expressions of Milvus."""
    conditions = []
    if where.tags:
        conditions.append(f"ARRAY_CONTAINS_ALL(tags, {_literal(list(where.tags))})")
    if where.containing is not None:
        pattern = re.sub(r"([%_])", r"\\\1", searchable(where.containing))
        conditions.append(f"text like {_literal(f'%{pattern}%')}")
    return conditions


def _literal(value: str | Sequence[str]) -> str:
    """A string, or a list of strings, in an expression."""
    return json.dumps(value, ensure_ascii=False)


def _read_about(client: Any, address: MilvusAddress) -> _About:
    """What a collection's vectors are of.

    Raises:
        IndexFileError: it is none of ragvl's, or of a newer version, or another one's now.
    """
    described = client.describe_collection(address.collection)
    text = described.get("properties", {}).get(_PROPERTY)
    if text is None:
        raise IndexFileError(f"{address} holds no index of ragvl's: use another name")
    try:
        about = _About.model_validate_json(text)
    except ValidationError as error:
        raise IndexFileError(
            f"{address} holds no index that this ragvl reads: {validation_reason(error)}"
        ) from error
    dims = [one["params"].get("dim") for one in described["fields"] if one["name"] == "vector"]
    if dims != [about.dim]:
        raise IndexFileError(f"{address} has vectors of another length than it says")
    return about


def _connect(address: MilvusAddress, token: str | None, *, may_be_new: bool = True) -> Any:
    """A client.

    Raises:
        ImportError: a package is not installed.
        FileNotFoundError: the database, or the folder that it would be in, is not there.
        MilvusError: it cannot be opened, or the server not reached.
    """
    try:
        import pymilvus

        if address.is_file:
            import milvus_lite  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{address}: {error.name or 'pymilvus'} is not installed: pip install 'ragvl[milvus]'"
        ) from error
    # What it logs it raises as well, and that in one line
    for name in ("pymilvus.decorators", "pymilvus.client.iterator.query_iterator"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not address.is_file:
        given = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
        with _asking(address, "connect"):
            return pymilvus.MilvusClient(address.uri, token=given, timeout=_SECONDS)
    path = Path(address.uri)
    if path.is_file():
        raise MilvusError(f"{shown(path)} is a file: Milvus Lite 3 keeps a folder of that name")
    if not may_be_new and not path.exists():
        raise FileNotFoundError(f"there is no database {shown(path)}: `ragvl index` makes one")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {shown(path.absolute().parent)}")
    with _taken("milvus_lite.server_manager") as told, _asking(address, "open the database"):
        try:
            return pymilvus.MilvusClient(str(path))
        except pymilvus.MilvusException:
            if told:
                raise MilvusError(f"{shown(path)} cannot be opened: {reason(told[0])}") from None
            raise


@contextmanager
def _taken(name: str) -> Iterator[list[BaseException]]:
    """Errors that a library logs in place of raising them, which are not logged then."""
    told: list[BaseException] = []

    def take(record: logging.LogRecord) -> bool:
        if record.exc_info is None or record.exc_info[1] is None:
            return True
        told.append(record.exc_info[1])
        return False

    logger = logging.getLogger(name)
    logger.addFilter(take)
    try:
        yield told
    finally:
        logger.removeFilter(take)


@contextmanager
def _asking(address: MilvusAddress, what: str) -> Iterator[None]:
    """Raises `MilvusError` where Milvus refuses what the block asks."""
    import grpc
    import pymilvus

    try:
        yield
    except (pymilvus.MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
        why = getattr(error, "message", "") or reason(error)
        raise MilvusError(f"{address}: cannot {what}: {shown(why)}") from error
