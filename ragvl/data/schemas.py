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
from ragvl.files import url_scheme
from ragvl.messages import shown, validation_reason

Layout = TypeVar("Layout", bound=BaseModel)
# For lists: one error of each is enough, and a long one's would take gigabytes
FIRST_ERROR = Field(fail_fast=True)
_KEYS = 5  # that are not known, and are named
_KEY_SHOWN = 40  # characters


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
    return path if is_plain or url_scheme(path) else str(PurePosixPath(path))


def _integer_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _one_as_list(value: Any) -> Any:
    is_one = isinstance(value, str | int) and not isinstance(value, bool)
    return [value] if is_one else value


def _number_as_text(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number else value


StringOrNumber = Annotated[String, BeforeValidator(_number_as_text)]
Id = Annotated[Text, BeforeValidator(_integer_as_text)]  # 1 is "1"
ONE_OR_MORE = BeforeValidator(_one_as_list)  # of a list: one alone may stand without brackets
PlainPath = Annotated[Text, AfterValidator(plain_path)]
Paths = Annotated[tuple[PlainPath, ...], FIRST_ERROR, ONE_OR_MORE]


def parsed(
    parse: Callable[[Any], Layout],
    value: Any,
    kind: str,
    where: str,
    problems: Problems,
    *,
    expected: str | None = None,
) -> Layout | None:
    """What `parse` makes of an entry; None, and a problem of that kind, if it is laid out wrong.

    `expected` is an entry that is right, which is shown where keys are missing or unknown.
    """
    try:
        return parse(value)
    except ValidationError as error:
        problems.add(kind, f"{where}: {_layout_reason(error, expected)}")
        return None


def _layout_reason(error: ValidationError, expected: str | None) -> str:
    """What is wrong first; and every key that is not known, since one may be another's name."""
    errors = error.errors(include_url=False, include_input=False)
    unknown = [one["loc"] for one in errors if one["type"] == "extra_forbidden"]
    reasons = [] if len(unknown) == len(errors) else [validation_reason(error)]
    if unknown:
        names = ", ".join(shown(".".join(map(str, loc)), _KEY_SHOWN) for loc in unknown[:_KEYS])
        more = f" and {len(unknown) - _KEYS} more" if len(unknown) > _KEYS else ""
        reasons.append(f"unknown keys: {names}{more}")
    if expected is not None and (unknown or errors[0]["type"] == "missing"):
        reasons.append(f"expected a line such as {expected}")
    return "; ".join(reasons)
