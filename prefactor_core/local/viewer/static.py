"""Static files: the pages of the viewer, under a URL that changes with their content."""

from __future__ import annotations

import gzip
from hashlib import sha256
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from prefactor_core.local.errors import not_found

FOLDER: Final = Path(__file__).parent / "static"

_FOR_EVER: Final = "public, max-age=31536000, immutable"

_INDEX: Final = "index.html"
_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


class StaticFiles:
    """The files of the pages, in memory, each also compressed."""

    def __init__(self) -> None:
        contents = {
            path.relative_to(FOLDER).as_posix(): path.read_bytes()
            for path in sorted(FOLDER.rglob("*"))
            if path.suffix in _TYPES
        }
        names = b"".join(b"%b\0%b\0" % (name.encode(), contents[name]) for name in contents)
        self.version = sha256(names).hexdigest()[:16]
        """The hash of all files: a page never loads files of two versions."""
        index = contents.pop(_INDEX, b"The pages of the viewer are not installed.")
        address = f"/-/static/{self.version}".encode()
        self._index = index.replace(b"{{static}}", address)
        self._files = {
            name: (content, gzip.compress(content, mtime=0)) for name, content in contents.items()
        }

    def file(self, request: Request) -> Response:
        """GET /-/static/{version}/{name}."""
        name, version = request.path_params["name"], request.path_params["version"]
        if version != self.version or name not in self._files:
            raise not_found("file", name)
        headers = {"Cache-Control": _FOR_EVER, "Vary": "Accept-Encoding"}
        plain, compressed = self._files[name]
        media_type = _TYPES[Path(name).suffix]
        if not accepts_gzip(request):
            return Response(plain, headers=headers, media_type=media_type)
        headers["Content-Encoding"] = "gzip"
        return Response(compressed, headers=headers, media_type=media_type)

    def index(self, status: int = 200) -> Response:
        """The page, whatever its path: its scripts read the path."""
        headers = {"Cache-Control": "no-cache"}
        return Response(self._index, status, headers=headers, media_type="text/html")


def accepts_gzip(request: Request) -> bool:
    """Whether the client takes a compressed answer."""
    return "gzip" in request.headers.get("Accept-Encoding", "")
