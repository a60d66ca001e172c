"""What the descriptions of files' layouts have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
)

from ragvl.data.problems import Problems
from ragvl.data.reading import is_whole
from ragvl.messages import validation_reason

Layout = TypeVar("Layout", bound=BaseModel)
# For lists: one error of each is enough, and a long one's would take gigabytes
FIRST_ERROR = Field(fail_fast=True)


def _whole(text: str) -> str:
    """JSON can name half of a surrogate pair, which nothing can encode or print."""
    if not is_whole(text):
        raise ValueError("has half a character")
    return text


String = Annotated[str, AfterValidator(_whole)]
Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1), AfterValidator(_whole)
]


def plain_path(path: str) -> str:
    """A picture's path in the one spelling that is its document's id: ./a//b.png is a/b.png."""
    is_plain = "//" not in path and "/./" not in f"/{path}"
    return path if is_plain else str(PurePosixPath(path))


def _number_as_text(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


StringOrNumber = Annotated[String, BeforeValidator(_number_as_text)]
PlainPath = Annotated[Text, AfterValidator(plain_path)]
Paths = Annotated[tuple[PlainPath, ...], FIRST_ERROR]


def parsed(
    parse: Callable[[Any], Layout], value: Any, kind: str, where: str, problems: Problems
) -> Layout | None:
    """What `parse` makes of an entry; None, and a problem of that kind, if it is laid out wrong."""
    try:
        return parse(value)
    except ValidationError as error:
        problems.add(kind, f"{where}: {validation_reason(error)}")
        return None
