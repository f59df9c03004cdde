"""The page at `/ui`: files of this package, which hold nothing of anybody's. The page itself asks for a key."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from aiohttp import ETag, web

from shell_router.errors import RequestError
from shell_router.ui import FOLDER

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_INDEX = "index.html"
_HEADERS = {
    # Nothing but these files runs, and no text can become markup or script, whatever wrote it.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A new version of this package is a new page.
    "Cache-Control": "no-cache",
}


class _File(NamedTuple):
    body: bytes
    kind: str
    tag: str


def _load() -> dict[str, _File]:
    """The page's files by name. They are few and small, and what is served is what was installed."""
    return {
        path.name: _File(body := path.read_bytes(), _KINDS[path.suffix], hashlib.sha256(body).hexdigest()[:32])
        for path in sorted(FOLDER.iterdir())
        if path.suffix in _KINDS
    }


class Page:
    """Serves the page's files, read once."""

    def __init__(self) -> None:
        self._files = _load()

    async def enter(self, _request: web.Request) -> web.Response:
        """`GET /ui`: on to the folder, in which the page finds its files."""
        # Relative: a proxy may have the router under a path of its own.
        return web.Response(status=307, headers={"Location": "ui/"} | _HEADERS)

    async def index(self, request: web.Request) -> web.Response:
        """`GET /ui/`: the page."""
        return self._answer(request, _INDEX)

    async def file(self, request: web.Request) -> web.Response:
        """`GET /ui/{name}`: one of its files."""
        return self._answer(request, request.match_info["name"])

    def _answer(self, request: web.Request, name: str) -> web.Response:
        found = self._files.get(name)
        if found is None:
            raise _NoSuchFile(f"the page has no file {name!r}")
        if request.if_none_match and any(each.value == found.tag for each in request.if_none_match):
            response = web.Response(status=304, headers=_HEADERS)
        else:
            response = web.Response(body=found.body, content_type=found.kind, charset="utf-8", headers=_HEADERS)
        response.etag = ETag(found.tag)
        return response


class _NoSuchFile(RequestError):
    status = 404
    code = "no_such_file"
