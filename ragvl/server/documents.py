"""Documents that the server knows by their ids, in a folder that several processes may share.

    folder/documents.sqlite          ids, texts, the order of parts, and which pictures
    folder/pictures/ab/ab<62 more>   a picture's file as it was given, by the name of its content
    folder/drafts/...                a picture that is being written

A put is one transaction: after a crash all of its documents are there, or none. Pictures are
written before the rows that name them, and removed after these are gone, under the database's write
lock; what a crash leaves of them is removed at the next start.
"""

from __future__ import annotations

import errno
import heapq
import json
import logging
import os
import re
import secrets
import shutil
import sqlite3
import tempfile
import threading
import time
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ragvl.arguments import check_characters
from ragvl.data.document import Document, Part
from ragvl.data.image_sources import MAX_FILE_BYTES
from ragvl.files import check_regular, flush, whole_file
from ragvl.identity import bytes_name, file_bytes_name
from ragvl.messages import quoted, reason, shown
from ragvl.server.errors import NotFound, Overloaded, StorageFull
from ragvl.server.settings import ServerSettings

logger = logging.getLogger(__name__)

MAX_ID = 500  # characters
PICTURE_PATH = "/picture"  # ends the path of a document's picture, and so no id

_FORMAT = 1
_NAME = re.compile("[0-9a-f]{64}")
_REMEMBERED = 2**16  # documents in memory
_AT_ONCE = 16  # pictures that are written
_LOCK_SECONDS = 30.0  # that a process waits for another one's transaction
_STALE_SECONDS = 3600  # after which nobody writes to a draft any more
_SCHEMA = """
CREATE TABLE documents (
    id TEXT PRIMARY KEY, content TEXT NOT NULL, bytes INTEGER NOT NULL, created REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE pictures (
    document TEXT NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    PRIMARY KEY (document, name)
) WITHOUT ROWID;
CREATE INDEX pictures_by_name ON pictures (name);
CREATE TABLE totals (documents INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER added AFTER INSERT ON documents BEGIN
    UPDATE totals SET documents = documents + 1, bytes = bytes + new.bytes;
END;
CREATE TRIGGER removed AFTER DELETE ON documents BEGIN
    UPDATE totals SET documents = documents - 1, bytes = bytes - old.bytes;
END;
"""

Source = Literal["stored", "index"]


class StoreFileError(ValueError):
    """The folder of documents is damaged, or holds something else."""


@dataclass(frozen=True)
class KnownDocument:
    """A document that the server knows, and what is known of it.

    Attributes:
        id: its id.
        document: the document.
        source: whether a client put it here, or the index holds it.
        num_bytes: of its texts and its pictures' files; None of the index's.
        created: when it was first put, in seconds since 1970; None of the index's.
    """

    id: str
    document: Document
    source: Source
    num_bytes: int | None = None
    created: float | None = None


class _Row(NamedTuple):
    id: str
    content: str
    bytes: int
    created: float


class _Remembered(NamedTuple):
    version: int  # of the database, when it was last seen to be so
    content: str
    document: Document


class DocumentStore:
    """Documents by id: those that were put, and those of the index. Safe for threads and processes.

    Args:
        folder: where they are kept, made if it is not there; None for one that `close` removes.
        index: documents that are there as well, by id, and cannot be changed here.
        max_documents: a put that would make more than these is refused.
        max_bytes: so is one that would make more of texts and pictures; a picture of two documents
            counts twice.
        max_pixels: of a picture; see `load_image`.
        unused_seconds: how long a picture stays that no document has any more: for requests that
            hold the document as it was.

    Attributes:
        folder: where they are kept.
        thread: one to put and delete in, which take turns anyway.

    Raises:
        OSError: the folder cannot be made or written to.
        StoreFileError: it is damaged, or of a newer version.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        index: Mapping[str, Document] | None = None,
        max_documents: int,
        max_bytes: int,
        max_pixels: int | None = None,
        unused_seconds: float = 60.0,
    ) -> None:
        self.folder = (folder or Path(tempfile.mkdtemp(prefix="ragvl-documents-"))).absolute()
        self._discard: Callable[[], object] | None = None
        if folder is None:  # also where nobody closes it
            self._discard = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._index = dict(index or {})
        self._index_ids = sorted(self._index)
        self._max_documents = max_documents
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._unused_seconds = unused_seconds
        self._forgotten: deque[tuple[float, str]] = deque()  # when, and a picture's name
        self._remembered: dict[str, _Remembered] = {}
        # Of two connections the one that reads is never busy for long, and its PRAGMA data_version
        # tells of this process's writes as it does of others'
        self._read_lock, self._write_lock = threading.Lock(), threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "documents.sqlite"
        with ExitStack() as opened:
            try:
                self._writer = opened.enter_context(closing(_connect(path)))
                self._prepare()
                self._reader = opened.enter_context(closing(_connect(path)))
                self._remove_leftovers()
            except sqlite3.DatabaseError as error:
                raise StoreFileError(f"{shown(path)} cannot be used: {reason(error)}") from error
            opened.pop_all()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="ragvl-documents")

    @classmethod
    def by(cls, settings: ServerSettings, index: Mapping[str, Document] | None) -> DocumentStore:
        """As the settings say; raises what the constructor raises."""
        return cls(
            None if settings.cache is None else settings.cache / "documents",
            index=index,
            max_documents=settings.max_stored_documents,
            max_bytes=settings.max_stored_bytes,
            max_pixels=settings.max_pixels,
            unused_seconds=settings.max_timeout,
        )

    def __len__(self) -> int:
        """How many documents were put."""
        return self._totals()[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of their texts and pictures; a picture of two documents counts twice."""
        return self._totals()[1]

    def get(self, id: str) -> Document | None:
        """The document of that id, the same object until other content is put; None if unknown.

        Of a document that was put its pictures are its files here. Takes microseconds.

        Raises:
            NotFound: the document is there, and a picture of it was lost or cut off.
        """
        (found,) = self.find([id])
        if isinstance(found, NotFound):
            raise found
        return found

    def find(self, ids: Iterable[str]) -> list[Document | NotFound | None]:
        """`get` for several ids; what it would raise of one stands in its place."""
        with self._read_lock:
            (version,) = self._reader.execute("PRAGMA data_version").fetchone()
            return [self._found(id, version) for id in ids]

    def info(self, id: str) -> KnownDocument | None:
        """What is known of the document of that id, also if it lost a picture; None if unknown."""
        with self._read_lock:
            row = _select(self._reader, id)
        if row is None:
            indexed = self._index.get(id)
            return None if indexed is None else KnownDocument(id, indexed, "index")
        (found,) = self.find([id])
        document = found if isinstance(found, Document) else self._document(row)
        return KnownDocument(id, document, "stored", row.bytes, row.created)

    def ids(self, *, after: str = "", limit: int) -> list[str]:
        """The first `limit` ids, in order, that come after `after`; the index's among them."""
        with self._read_lock:
            rows = self._reader.execute(
                "SELECT id FROM documents WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
            ).fetchall()
        first = bisect_right(self._index_ids, after)
        merged = heapq.merge((id for (id,) in rows), self._index_ids[first : first + limit])
        return list(dict.fromkeys(merged))[:limit]

    def is_of_index(self, id: str) -> bool:
        """Whether the index holds a document of that id, which cannot be put or deleted here."""
        return id in self._index

    def put(self, documents: Sequence[Document]) -> None:
        """Keeps documents, each under its id in the place of what was there; all of them, or none.

        When this returns they are on the disk.

        Args:
            documents: each with an id of its own; pictures as bytes.

        Raises:
            ValueError: a document has no id.
            TypeError: a picture is something else.
            StorageFull: there is no room, and nothing was changed.
            Overloaded: other processes write for too long.
        """
        new = {_id_of(document): _content_of(document) for document in documents}
        pictures: dict[str, bytes] = {}
        for _, kept in new.values():
            pictures.update(kept)
        with self._storing(pictures):
            self._keep(pictures)
            with self._transaction() as write:
                self._keep(pictures)  # whoever deleted a document of the same picture meanwhile
                replaced = _pictures_of(write, new)
                for id, (content, kept) in new.items():
                    _replace(write, id, content, kept)
                self._check_room(write)
        self._forget(replaced - pictures.keys())

    def delete(self, id: str) -> bool:
        """Forgets the document of that id; whether there was one that had been put.

        Raises:
            StorageFull: the folder cannot be written to.
            Overloaded: other processes write for too long.
        """
        with self._storing(), self._transaction() as write:
            pictures = _pictures_of(write, [id])
            deleted = write.execute("DELETE FROM documents WHERE id = ?", (id,)).rowcount > 0
        self._forget(pictures)
        return deleted

    def close(self) -> None:
        """Ends its use, and removes a folder that was only made for it."""
        self.thread.shutdown()
        with suppress(OSError, sqlite3.Error):
            self._remove_unused(name for _, name in self._forgotten)
        with self._read_lock, self._write_lock:
            self._reader.close()
            self._writer.close()
        if self._discard is not None:
            self._discard()

    # --- reading --------------------------------------------------------------------------------

    def _totals(self) -> tuple[int, int]:
        with self._read_lock:
            documents, size = self._reader.execute("SELECT documents, bytes FROM totals").fetchone()
        return documents, size

    def _found(self, id: str, version: int) -> Document | NotFound | None:
        """See `find`; the reader is locked, and the database of that version."""
        known = self._remembered.get(id)
        if known is None or known.version != version:
            try:
                known = self._read(id, version, known)
            except NotFound as lost:
                return lost
        return self._index.get(id) if known is None else known.document

    def _read(self, id: str, version: int, known: _Remembered | None) -> _Remembered | None:
        """The document as the database has it now, which is remembered."""
        row = _select(self._reader, id)
        if row is None:
            self._remembered.pop(id, None)
            return None
        if known is not None and known.content == row.content:
            document = known.document
        else:
            self._check_pictures(row)
            document = self._document(row)
        self._remembered[id] = read = _Remembered(version, row.content, document)
        if len(self._remembered) > _REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return read

    def _document(self, row: _Row) -> Document:
        written = json.loads(row.content)
        parts = [
            part["text"] if "text" in part else self._path(part["picture"])
            for part in written["parts"]
        ]
        texts = [part for part in parts if isinstance(part, str)]
        pictures = [part for part in parts if isinstance(part, Path)]
        limit = self._max_pixels
        if written["kind"] == "text":
            return Document(text=texts[0], id=row.id)
        if written["kind"] == "parts":
            return Document(parts=parts, id=row.id, max_pixels=limit)
        document = Document(pictures[0], next(iter(texts), None), row.id, max_pixels=limit)
        return document.with_caption_first() if isinstance(parts[0], str) else document

    def _check_pictures(self, row: _Row) -> None:
        """Refuses a document of which a picture was lost or cut off; raises as `get` does."""
        for part in json.loads(row.content)["parts"]:
            if "text" in part:
                continue
            path = self._path(part["picture"])
            try:
                size = check_regular(path, max_bytes=MAX_FILE_BYTES).st_size
                why = None if size == part["bytes"] else f"{size:,} bytes of {part['bytes']:,}"
            except OSError as error:
                why = reason(error)
            if why is not None:
                logger.error("%s of a kept document cannot be used: %s", shown(path), why)
                raise NotFound(f"document {quoted(row.id)} has lost a picture: put it once more")

    # --- writing --------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Makes the tables in a new database."""
        with self._transaction() as write:
            (version,) = write.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _statements(_SCHEMA):
                    write.execute(statement)
                write.execute(f"PRAGMA user_version = {_FORMAT}")
            elif version != _FORMAT:
                raise sqlite3.DatabaseError(f"it has format {version}, this ragvl knows {_FORMAT}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A block that alone, of all processes, writes; undone if it raises."""
        with self._write_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def _storing(self, pictures: Iterable[str] = ()) -> Iterator[None]:
        """Names what keeps a folder from being written; `pictures` without a document then go."""
        try:
            yield
        except (OSError, sqlite3.OperationalError, StorageFull) as error:
            with suppress(OSError, sqlite3.Error):
                self._remove_unused(pictures)
            if isinstance(error, StorageFull):
                raise
            if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
                raise Overloaded("others are writing documents", retry_after=1) from error
            logger.error("%s cannot be written to: %s", shown(self.folder), _why(error))
            raise StorageFull(f"documents cannot be kept: {_why(error)}") from error

    def _check_room(self, write: sqlite3.Connection) -> None:
        documents, size = write.execute("SELECT documents, bytes FROM totals").fetchone()
        if documents > self._max_documents:
            raise StorageFull(f"the server keeps at most {self._max_documents:,} documents")
        if size > self._max_bytes:
            raise StorageFull(f"the server keeps at most {self._max_bytes:,} bytes of documents")

    def _keep(self, pictures: Mapping[str, bytes]) -> None:
        """Writes the pictures that are not there yet."""
        missing = [name for name in pictures if not self._has(name)]
        if not missing:
            return
        # A disk takes several at once in little more time than one
        with ThreadPoolExecutor(min(len(missing), _AT_ONCE)) as threads:
            folders = set(threads.map(lambda name: self._write(name, pictures[name]), missing))
            list(threads.map(flush, folders))

    def _has(self, name: str) -> bool:
        try:
            return file_bytes_name(self._path(name)) == name
        except OSError:
            return False

    def _write(self, name: str, content: bytes) -> Path:
        """Writes a picture; returns its folder, which does not surely hold it until a flush."""
        path = self._path(name)
        draft = self.folder / "drafts" / f"{name}-{secrets.token_hex(4)}"
        with whole_file(path, draft=draft):
            draft.write_bytes(content)
        return path.parent

    def _forget(self, pictures: Iterable[str]) -> None:
        """Has pictures that no document has removed, once no request can hold them any more."""
        now = time.monotonic()
        with self._write_lock:
            self._forgotten.extend((now, name) for name in pictures)
            due = []
            while self._forgotten and self._forgotten[0][0] <= now - self._unused_seconds:
                due.append(self._forgotten.popleft()[1])
        with suppress(sqlite3.Error):  # the next start tries once more
            self._remove_unused(due)

    def _remove_unused(self, names: Iterable[str]) -> None:
        """Removes those of the pictures that no document has."""
        names = set(names)
        if not names:
            return
        with self._transaction() as write:
            for name in names:
                used = write.execute("SELECT 1 FROM pictures WHERE name = ? LIMIT 1", (name,))
                if used.fetchone() is None:
                    with suppress(OSError):
                        self._path(name).unlink()

    def _remove_leftovers(self) -> None:
        """Removes what a process that was killed has left."""
        for draft in _files(self.folder / "drafts"):
            with suppress(OSError):  # its writer is done with it after all
                if time.time() - draft.stat().st_mtime > _STALE_SECONDS:
                    draft.unlink()
        for folder in sorted((self.folder / "pictures").glob("??")):
            self._remove_unused(path.name for path in _files(folder) if _NAME.fullmatch(path.name))

    def _path(self, name: str) -> Path:
        return self.folder / "pictures" / name[:2] / name


def check_id(id: str) -> str:
    """`id`, if a document may have it.

    Raises:
        ValueError: it is empty or too long, or a path of the server could not hold it.
    """
    if not id or len(id) > MAX_ID:
        raise ValueError(f"an id has 1 to {MAX_ID} characters, not {len(id):,}")
    check_characters(id)
    if not id.isprintable():
        raise ValueError("an id has no control characters and line ends")
    if not {".", ".."}.isdisjoint(id.split("/")):
        raise ValueError(
            "an id has no '.' or '..' between slashes, which clients take out of paths"
        )
    if id.endswith(PICTURE_PATH):
        raise ValueError(f"an id must not end with {PICTURE_PATH!r}, as the paths of pictures do")
    return id


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # what was answered survives a power failure
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _statements(script: str) -> Iterator[str]:
    """The statements of a script: `executescript` would end the transaction that it is in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _select(connection: sqlite3.Connection, id: str) -> _Row | None:
    with closing(
        connection.execute("SELECT id, content, bytes, created FROM documents WHERE id = ?", (id,))
    ) as rows:
        row = rows.fetchone()
    return None if row is None else _Row(*row)


def _id_of(document: Document) -> str:
    if document.id is None:
        raise ValueError(f"{document.name} has no id to be kept under")
    return document.id


def _content_of(document: Document) -> tuple[str, dict[str, bytes]]:
    """A document as its row holds it, and its pictures by name."""
    pictures: dict[str, bytes] = {}

    def written(part: Part) -> dict[str, object]:
        if isinstance(part, str):
            return {"text": part}
        if not isinstance(part.image, bytes):
            raise TypeError(f"{part.name}: a picture to keep must be given as bytes")
        name = bytes_name(part.image)
        pictures[name] = part.image
        return {"picture": name, "bytes": len(part.image)}

    of_one = {"text": document.text, "image": document.image}
    kind = next((kind for kind, value in of_one.items() if value is not None), "parts")
    content = {"kind": kind, "parts": [written(part) for part in document.parts]}
    return json.dumps(content), pictures


def _replace(
    write: sqlite3.Connection, id: str, content: str, pictures: Mapping[str, bytes]
) -> None:
    old = _select(write, id)
    size = len(content) + sum(map(len, pictures.values()))
    created = time.time() if old is None else old.created
    write.execute("DELETE FROM documents WHERE id = ?", (id,))
    write.execute("INSERT INTO documents VALUES (?, ?, ?, ?)", (id, content, size, created))
    write.executemany("INSERT INTO pictures VALUES (?, ?)", [(id, name) for name in pictures])


def _pictures_of(connection: sqlite3.Connection, ids: Iterable[str]) -> set[str]:
    query = "SELECT name FROM pictures WHERE document = ?"
    return {name for id in ids for (name,) in connection.execute(query, (id,))}


def _files(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except FileNotFoundError:
        return []


def _why(error: Exception) -> str:
    """In words without a path of this machine."""
    if isinstance(error, OSError):
        return (
            "the disk is full"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else (error.strerror or type(error).__name__)
        )
    return reason(error)
