"""The page at `/`: static files that use the server's own routes, and nothing of other hosts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from ragvl.server.errors import NotFound
from ragvl.server.services import services_of

_MEDIA_TYPES = {
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
# Pictures of visitors are blob: and data: URLs. Nothing is executed or drawn but what is in a file,
# and no text becomes HTML.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    tag: str

    def response(self, request: Request) -> Response:
        headers = {
            "Cache-Control": "no-cache",  # asked for anew by its tag, so that an update is seen
            "Content-Security-Policy": _POLICY,
            "ETag": self.tag,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        if request.headers.get("If-None-Match") == self.tag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def _read_files() -> dict[str, _File]:
    """What the page consists of, by name: a path of a request never becomes one of a file."""
    found = {}
    for file in (files("ragvl.server") / "page").iterdir():
        media_type = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            content = file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[file.name] = _File(content, media_type, tag)
    return found


_FILES = _read_files()
router = APIRouter(tags=["page"])


class Examples(BaseModel):
    """Questions to try, which fit the index."""

    questions: tuple[str, ...]


@router.get("/v1/examples", summary="Questions to try")
async def examples(request: Request) -> Examples:
    """What the page offers to ask; none but with the demo's documents."""
    return Examples(questions=services_of(request).examples)


@router.get("/", include_in_schema=False)
async def index(request: Request) -> Response:
    """The page itself."""
    return _FILES["index.html"].response(request)


@router.get("/page/{name}", include_in_schema=False)
async def file(request: Request, name: str) -> Response:
    """One of the files that the page loads."""
    if name not in _FILES:
        raise NotFound(f"the page has no file {name!r}")
    return _FILES[name].response(request)
