"""The output folder over HTTP, read-only: products and cube, and nothing else that lies there.

Starlette's static files do the work: ranges (so that downloads resume and `#mode=bytes` reads a part), ETags, no way
out of the folder. A path is looked up anew for each request, so a publication is seen at once.
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from pipeline import metrics
from pipeline.errors import ConfigError
from pipeline.output import CUBE, PRODUCTS

logger = logging.getLogger("aqnet")

#: The pages need no script and nothing from elsewhere; a browser shall not guess types.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

#: Any web page (a STAC browser, say) may read, in parts too.
_CORS = Middleware(
    CORSMiddleware,
    allow_origins=["*"],
    allow_methods=["GET", "HEAD"],
    allow_headers=["Range", "If-Range", "If-None-Match"],
    expose_headers=["Accept-Ranges", "Content-Length", "Content-Range", "ETag"],
)


class Downloads(StaticFiles):
    """Files of a folder, hidden ones aside; a folder shows its ``index.html`` or nothing."""

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        """Find a file, unless it or a folder on the way to it is hidden."""
        hidden = any(part.startswith(".") and part != "." for part in path.split("/"))
        return ("", None) if hidden else super().lookup_path(path)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Answer with a file, under headers that keep browsers from doing more than showing it."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(_HEADERS)
        return response


def application(out: Path) -> Starlette:
    """Application that serves ``products`` and ``cube.icechunk`` of an output folder under these names.

    Raises
    ------
    ConfigError
        When there is no folder of products.
    """
    if not (out / PRODUCTS).is_dir():
        raise ConfigError(f"{out}: expected the output folder of `aqnet run`; found no folder '{PRODUCTS}' in it")

    async def figures(_request: Request) -> Response:
        return Response(metrics.exposition(out), media_type=metrics.CONTENT_TYPE)

    routes = [
        Route("/", _to_products),
        Route("/metrics", figures),
        Mount(f"/{PRODUCTS}", Downloads(directory=out / PRODUCTS, html=True)),
    ]
    if (out / CUBE).is_dir():
        routes.append(Mount(f"/{CUBE}", Downloads(directory=out / CUBE)))
    return Starlette(routes=routes, middleware=[_CORS])


async def _to_products(_request: Request) -> Response:
    return RedirectResponse(f"{PRODUCTS}/")


def serve(out: Path, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until interrupted.

    Parameters
    ----------
    out : output folder of `aqnet run`.
    host : address to listen at; the loopback's is reached from this machine only.
    port : 0 takes a free one, which the log tells.

    Raises
    ------
    ConfigError
        When there is no folder of products, or the address cannot be had.
    """
    config = uvicorn.Config(application(out), log_config=None, access_log=False, server_header=False)
    listening = _listen(host, port)
    name, taken = listening.getsockname()[:2]
    logger.info("serving %s at http://%s:%d/ until Ctrl-C", out, f"[{name}]" if ":" in name else name, taken)
    try:
        with listening:
            uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        logger.info("stopped serving %s", out)


def _listen(host: str, port: int) -> socket.socket:
    """Take the address, so that whoever reads it in the log can ask at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: expected an address that is free here: {error}") from error
