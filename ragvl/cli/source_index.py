"""Indexes that `ragvl search` and `ragvl ask` keep of a folder of pictures, or of a list."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragvl.cli.common import check_settings
from ragvl.cli.documents import kept_in_files, say_captions, say_problems
from ragvl.files import UnusableFileError, check_writable_folder, open_regular, write_text
from ragvl.identity import name_of
from ragvl.messages import reason, shown
from ragvl.output import say

if TYPE_CHECKING:
    from ragvl.cli.groups import RetrieverOptions
    from ragvl.retriever import FusedRetriever, Retriever, Upkeep

_VERSIONS = "ragvl_source.json"  # beside an index: its documents as they were
_MAX_VERSIONS_BYTES = 2**30


def cache_folder() -> Path:
    """Where a user's programs keep what can be made again: XDG_CACHE_HOME, or ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "ragvl"


class SourceIndex:
    """The index of a source, made when it is first searched and brought up to date ever after.

    Args:
        source: a folder of pictures, or what else `Documents` reads.
        captions: a file of captions, with which it is another index.

    Attributes:
        folder: where it is kept.
        upkeep: what `open` had to do.
    """

    def __init__(self, source: Path, captions: Path | None = None) -> None:
        self.source = source
        self._captions = captions
        names = [str(one.resolve()) for one in (source, captions) if one is not None]
        name = f"{source.resolve().name or 'root'}-{name_of('source', names)[:16]}"
        self.folder = cache_folder() / "indexes" / name
        self.upkeep: Upkeep | None = None

    def open(self, encoders: RetrieverOptions, *, device: str) -> Retriever | FusedRetriever:
        """The index, up to date; standard error is told what that took.

        Args:
            encoders: those to index with; by default what the index remembers.
            device: of the encoders.

        Raises:
            OSError: something is not there, or cannot be written.
            ValueError: no encoder is known, one is of another kind, or nothing can be indexed.
        """
        from ragvl.data.caption_file import CaptionFile
        from ragvl.data.sources import Documents
        from ragvl.retriever import bring_up_to_date

        check_settings(device=device)
        check_writable_folder(self.folder)
        is_named = encoders.encoder is not None or encoders.text_encoder is not None
        if is_named:
            encoders.check()
        elif not self.folder.exists():
            raise ValueError(
                f"{shown(self.source)} holds no saved index: to index the documents in it, name "
                "--encoder for their pictures, --text-encoder for captions and texts, or both"
            )
        captions = None if self._captions is None else CaptionFile(self._captions)
        listed = Documents(self.source, captions=captions)
        documents = [kept_in_files(document) for document in listed]
        if captions is not None:
            captions.check_found()
        retriever = self._opened(encoders, is_named=is_named, device=device)
        is_new = not len(retriever)
        before = {} if is_new else self._versions()
        upkeep = bring_up_to_date(retriever, documents, before)
        if not len(retriever):
            raise ValueError(f"none of {upkeep.skipped} documents can be used: nothing is indexed")
        self.upkeep = upkeep
        if upkeep.versions != before:
            retriever.save(self.folder)
            write_text(self.folder / _VERSIONS, json.dumps(upkeep.versions))
            say_problems(listed)
            if captions is not None:
                say_captions(captions)
        self._say(upkeep, len(retriever), is_new=is_new)
        return retriever

    def figures(self) -> dict[str, Any]:
        """What was done, as JSON has it."""
        if self.upkeep is None:
            return {}
        kinds = ("new", "changed", "gone", "skipped")
        return {
            "source": str(self.source),
            "indexed": {kind: getattr(self.upkeep, kind) for kind in kinds},
        }

    def _opened(
        self, encoders: RetrieverOptions, *, is_named: bool, device: str
    ) -> Retriever | FusedRetriever:
        """The index as it was kept, or an empty one where that is of no use."""
        from ragvl.retriever import IndexFileError, IndexMismatchError

        try:
            if is_named and not encoders.are_those_of(self.folder):
                say(f"{shown(self.source)} is indexed by other encoders than before", err=True)
                return encoders.new_retriever(self.folder, kind="exact", device=device)
            return encoders.open_index(self.folder, device=device)
        except (FileNotFoundError, IndexFileError, IndexMismatchError) as error:
            if not is_named:
                raise ValueError(
                    f"{reason(error)}: name --encoder, --text-encoder, or both, to index "
                    f"{shown(self.source)} again"
                ) from error
            if not isinstance(error, FileNotFoundError):
                say(f"{shown(self.source)} is indexed again: {reason(error)}", err=True)
            return encoders.new_retriever(self.folder, kind="exact", device=device)

    def _versions(self) -> dict[str, str]:
        """Documents as they were, so far as that is known."""
        try:
            with open_regular(self.folder / _VERSIONS, max_bytes=_MAX_VERSIONS_BYTES) as file:
                versions = json.loads(file.read())
        except (FileNotFoundError, UnusableFileError, ValueError, RecursionError):
            return {}
        return versions if isinstance(versions, dict) else {}

    def _say(self, upkeep: Upkeep, total: int, *, is_new: bool) -> None:
        source = shown(self.source)
        if is_new:
            line = f"{source}: {total} documents indexed, {upkeep.skipped} skipped; kept in "
            say(f"{line}{self.folder}", err=True)
        elif upkeep.is_change:
            counts = f"{upkeep.new} new, {upkeep.changed} changed, {upkeep.gone} gone"
            say(f"{source}: {counts}; {total} documents indexed", err=True)
