"""Documents of a batch's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ragvl.data.document import Document
from ragvl.distributed.batches import Batch, UnknownColumnError, check_column, column, column_names
from ragvl.messages import MAX_ERROR, reason, shown


@dataclass(frozen=True, kw_only=True)
class DocumentColumns:
    """Where a row has what its document is made of, as a line of a file of documents has it.

    A document has one of image, text and parts; see `ragvl.Document`. A column that is not named is
    the one of that name (`image_column` is "image"), where there is one.

    Attributes:
        image_column: pictures: paths, files' bytes, data: URLs, PIL images, arrays,
            {"bytes": ..., "path": ...}.
        caption_column: the pictures' captions.
        text_column: texts without a picture.
        parts_column: lists of {"image": ...} and {"text": ...}.
        id_column: names, for messages.
    """

    image_column: str | None = None
    caption_column: str | None = None
    text_column: str | None = None
    parts_column: str | None = None
    id_column: str | None = None

    @classmethod
    def taken_from(cls, settings: dict[str, Any]) -> DocumentColumns:
        """Those of the settings that name columns of documents, which are then gone from there."""
        names = [field.name for field in fields(cls) if field.name in settings]
        return cls(**{name: settings.pop(name) for name in names})

    def documents(self, batch: Batch) -> list[Document | Exception]:
        """Each row's document, or why there is none. Equal rows may share one.

        Raises:
            UnknownColumnError: a column that was named is not there, or none that a document could
                be made of.
        """
        used = self._used(batch)
        values = [column(batch, name) for name in used.values()]
        made: dict[tuple[Any, ...], Document | Exception] = {}
        every = []
        for row in zip(*values, strict=True):
            given = {key: value for key, value in zip(used, row, strict=True) if value is not None}
            try:
                document = made.get(row)
            except TypeError:  # of what has no hash, such as an array
                every.append(_made(given))
                continue
            if document is None:
                document = made[row] = _made(given)
            every.append(document)
        return every

    def _used(self, batch: Batch) -> dict[str, str]:
        """Columns by what of a document they hold."""
        there = column_names(batch)
        used = {}
        for field in fields(self):
            kind = field.name.removesuffix("_column")
            name = getattr(self, field.name)
            if name is not None:
                check_column(batch, name)
            elif kind in there:
                name = kind
            if name is not None:
                used[kind] = name
        if there and not {"image", "text", "parts"}.intersection(used):
            raise UnknownColumnError(
                f"no column has documents: there is {shown(there)}; name one with image_column, "
                "text_column or parts_column"
            )
        return used


def _made(given: Mapping[str, Any]) -> Document | Exception:
    try:
        return Document(**given)
    except (TypeError, ValueError) as error:
        return error


def messages(outcomes: Sequence[object]) -> list[str | None]:
    """What stands in the error column: of each error its message, in one line."""
    return [reason(one, MAX_ERROR) if isinstance(one, Exception) else None for one in outcomes]
