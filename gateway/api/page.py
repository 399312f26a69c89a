"""`GET /`: the page for people. Its files are in the package, and are read once, when the gateway starts.

The page may load nothing from elsewhere, and only its script files may run as scripts: what it shows (model names,
faults) is not trusted.
"""

import asyncio
from hashlib import sha256
from pathlib import Path
from typing import Final

from aiohttp import ETag, web
from msgspec import Struct

_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_HEADERS: Final = {
    "Cache-Control": "no-cache",  # revalidated each time, and answered with 304 until an upgrade
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_INDEX: Final = "index.html"
_FOLDER: Final = Path(__file__).parents[1] / "page"


class Asset(Struct, frozen=True):
    """One file of the page."""

    body: bytes
    content_type: str
    etag: str


class Page:
    """The handlers of `/`, `/dashboard` and `/assets/`. Mutable: the files by name, empty until they are read."""

    def __init__(self) -> None:
        self.assets: dict[str, Asset] = {}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes to register."""
        return [
            web.get("/", self.index),
            web.get("/dashboard", self.index),
            web.get("/assets/{name:.+}", self.asset),
        ]

    async def load(self) -> None:
        """Read the files."""
        self.assets = await asyncio.to_thread(read)

    async def index(self, request: web.Request) -> web.Response:
        """Answer with the page."""
        return self._answer(request, _INDEX)

    async def asset(self, request: web.Request) -> web.Response:
        """Answer with one of the page's files; an unknown name is not looked up on disk."""
        return self._answer(request, request.match_info["name"])

    def _answer(self, request: web.Request, name: str) -> web.Response:
        asset = self.assets.get(name)
        if asset is None:
            raise web.HTTPNotFound
        known = {tag.value for tag in request.if_none_match or ()}
        if asset.etag in known or "*" in known:
            response = web.Response(status=304, headers=_HEADERS)  # RFC 9110 15.4.5
        else:
            response = web.Response(body=asset.body, content_type=asset.content_type, charset="utf-8", headers=_HEADERS)
        response.etag = ETag(asset.etag)
        return response


def read() -> dict[str, Asset]:
    """Read every file of the page that a browser may request, by its path below the page's folder. Blocking."""
    found: dict[str, Asset] = {}
    for file in sorted(_FOLDER.rglob("*")):
        content_type = _TYPES.get(file.suffix)
        if content_type and file.is_file():
            body = file.read_bytes()
            name = file.relative_to(_FOLDER).as_posix()
            found[name] = Asset(body, content_type, sha256(body).hexdigest()[:16])
    return found
