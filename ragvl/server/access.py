"""Who may ask: API keys. Plain ASGI, so that a client that goes away is seen below it."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ragvl.server.errors import Unauthorized, error_answer

KEYS_VARIABLE = "RAGVL_API_KEYS"
MIN_KEY = 8  # characters
_KEY = re.compile(r"[\x21-\x7e]+")

# What says nothing of the model or of documents: probes, and the page with its files
OPEN_PATHS = frozenset({"/health", "/ready", "/"})
_OPEN_FOLDER = "/page/"


class ApiKeys:
    """Keys of which a request must bring one, as `Authorization: Bearer KEY`.

    Only their sha256 is kept.

    Raises:
        ValueError: there is none, or one is shorter than 8 characters or no visible ASCII.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        listed = list(keys)
        if not listed:
            raise ValueError("there is no API key: give one a line, or none at all")
        for number, key in enumerate(listed, 1):
            if len(key) < MIN_KEY or not _KEY.fullmatch(key):
                raise ValueError(
                    f"API key {number} of {len(listed)} cannot be used: expected {MIN_KEY} "
                    "characters or more of visible ASCII"
                )
        self._digests = [_digest(key.encode()) for key in listed]

    def admits(self, authorization: str | None) -> bool:
        """Whether a header brings one of the keys; takes as long whichever it is."""
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip().encode("utf-8", "surrogateescape"))
        found = [hmac.compare_digest(given, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(found)

    @classmethod
    def find(cls, file: Path | None) -> ApiKeys | None:
        """The keys of a file, a line each, and of the variable RAGVL_API_KEYS, between commas.

        None where neither is given.

        Raises:
            ValueError: see the class; the file is no text.
            OSError: the file cannot be read.
        """
        keys = []
        if file is not None:
            lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
            keys = [line for line in lines if line and not line.startswith("#")]
        variable = os.environ.get(KEYS_VARIABLE)
        if variable is not None:
            keys += [key for key in re.split(r"[,\s]+", variable) if key]
        return None if file is None and variable is None else cls(keys)


class KeyCheck:
    """Answers 401 to requests without a key that is known, before their body is read."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Of ASGI."""
        if scope["type"] != "http" or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        authorization = Headers(scope=scope).get("authorization")
        if self._keys.admits(authorization):
            await self._app(scope, receive, send)
            return
        said = "is not known" if authorization else "is missing: send Authorization: Bearer KEY"
        error = Unauthorized(f"the API key {said}", headers={"WWW-Authenticate": "Bearer"})
        await error_answer(error)(scope, receive, send)


def is_open(path: str) -> bool:
    """Whether a path is answered without a key."""
    return path in OPEN_PATHS or path.startswith(_OPEN_FOLDER)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
