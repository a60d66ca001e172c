"""The log: lines of text or of JSON, without what users wrote."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from ragvl.messages import MAX_ERROR, shown
from ragvl.server.settings import ServerSettings

request_id_variable: ContextVar[str | None] = ContextVar("request_id", default=None)

HIDDEN = "(hidden)"
# Of these, messages are written so that no argument holds what users wrote
_OWN_LOGGERS = ("ragvl.server", "uvicorn", "py.warnings")


def configure_logs(settings: ServerSettings) -> None:
    """Has everything logged to standard error, as `settings` say; in full until `hide_content`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(settings.log_format, with_content=True))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("ragvl").setLevel(settings.log_level.upper())
    logging.captureWarnings(True)


def hide_content(settings: ServerSettings) -> None:
    """From here on messages may hold what users wrote: none does, unless `settings` let it."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, LineFormatter):
            handler.formatter.with_content = settings.log_content


class LineFormatter(logging.Formatter):
    """A record as one line, of text or of JSON.

    Arguments of messages may hold what users wrote, and so may words of exceptions: unless
    `with_content`, strings among the arguments are hidden and exceptions are told by their types
    and places. Messages of the server itself are written to hold none, with what they tell in
    `extra={"fields": {...}}`.
    """

    def __init__(self, form: str = "text", *, with_content: bool = False) -> None:
        super().__init__()
        self._as_json = form == "json"
        self.with_content = with_content

    def format(self, record: logging.LogRecord) -> str:
        """Of logging."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat("T", "milliseconds")
        fields: dict[str, Any] = dict(getattr(record, "fields", {}))
        if (request_id := request_id_variable.get()) is not None:
            fields["request_id"] = request_id
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = self._exception(record.exc_info[1])
        message = shown(self._message(record), MAX_ERROR)
        level = record.levelname.lower()
        if self._as_json:
            head = {"time": time, "level": level, "logger": record.name, "message": message}
            return json.dumps({**head, **fields}, default=str)
        exception = fields.pop("exception", None)
        told = "".join(f" {name}={shown(value)}" for name, value in fields.items())
        line = f"{time} {level} {record.name}: {message}{told}"
        return line if exception is None else f"{line}\n{exception}"

    def _message(self, record: logging.LogRecord) -> str:
        if self.with_content or record.name.startswith(_OWN_LOGGERS) or not record.args:
            return record.getMessage()
        arguments = record.args
        if isinstance(arguments, dict):
            return str(record.msg) % {key: _plain(value) for key, value in arguments.items()}
        return str(record.msg) % tuple(map(_plain, arguments))

    def _exception(self, error: BaseException) -> str:
        if self.with_content:
            return "".join(traceback.format_exception(error)).rstrip()
        lines: list[str] = []
        seen: set[int] = set()
        current: BaseException | None = error
        while current is not None and id(current) not in seen:
            seen.add(id(current))
            frames = "".join(traceback.format_tb(current.__traceback__))
            lines.insert(0, f"{frames}{type(current).__name__}")
            current = current.__cause__ or current.__context__
        return "\nled to\n".join(lines)


def _plain(value: object) -> object:
    """A number as it is; all else may hold what users wrote."""
    return value if isinstance(value, int | float | None) else HIDDEN
