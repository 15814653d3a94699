"""Local servers that serve the networks' layouts as the real ones do, with faults on demand.

A fault is what a server does to one request instead of answering it well; `Archive.faults` holds those that wait for a
path, first come first served. Every request is noted in `Archive.seen`.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

MODIFIED = 1_764_000_000.0
PIECE = 512
GARBAGE = random.Random(0)


@dataclass
class Request:
    """One request as the server saw it, and the code it answered with."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    code: int = 0

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}


@dataclass
class Archive:
    """What a server holds: files by path, answers that are made for a request, faults that wait, requests seen.

    `pause` seconds lie between pieces of a body, as on a slow line; `sent` counts the bytes of bodies.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, Callable[[Request], Any]] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    modified: dict[str, float] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    etags: bool = True
    pause: float = 0.0
    sent: int = 0
    url: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    def asked(self, path: str) -> list[Request]:
        """Requests for a path, oldest first."""
        return [request for request in self.seen if urlsplit(request.path).path == path]


Fault = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.1 with ranges and conditions (RFC 9110, 13 and 14)."""

    protocol_version = "HTTP/1.1"
    archive: Archive

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer with a fault that waits, a made answer, or the file."""
        self._answer(b"")

    def do_POST(self) -> None:
        """Take the body, then as `do_GET`."""
        self._answer(self.rfile.read(int(self.headers.get("content-length", 0))))

    def _answer(self, body: bytes) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_seen = Request(self.command, self.path, headers, body)
        self.archive.seen.append(self.request_seen)
        path = unquote(urlsplit(self.path).path)
        try:
            if self.archive.faults[path]:
                self.archive.faults[path].pop(0)(self, self.archive.files.get(path, b""))
            elif path in self.archive.answers:
                self.reply(200, self.archive.answers[path](self.request_seen))
            elif path in self.archive.files:
                self._file(path, headers)
            else:
                self.reply(404, b"no such file")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def send_response(self, code: int, message: str | None = None) -> None:
        """Note the code beside the request."""
        self.request_seen.code = code
        super().send_response(code, message)

    def _file(self, path: str, headers: dict[str, str]) -> None:
        data, says = self.archive.files[path], self.validators(path)
        if self._is_current(headers, says):
            self.reply(304, b"", says)
            return
        start = self._start(headers, says)
        if start is None:
            self.reply(200, data, says)
        elif start >= len(data):
            self.reply(416, b"", says | {"Content-Range": f"bytes */{len(data)}"})
        else:
            self.reply(206, data[start:], says | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})

    def validators(self, path: str) -> dict[str, str]:
        """ETag and time of a file."""
        says = {"Last-Modified": formatdate(self.archive.modified.get(path, MODIFIED), usegmt=True)}
        etag = f'"{hashlib.md5(self.archive.files[path]).hexdigest()}"'
        return self.archive.headers | says | ({"ETag": etag} if self.archive.etags else {})

    def _is_current(self, headers: dict[str, str], says: dict[str, str]) -> bool:
        if "if-none-match" in headers:
            return headers["if-none-match"] == says.get("ETag")
        if "if-modified-since" in headers:
            return parsedate_to_datetime(headers["if-modified-since"]) >= parsedate_to_datetime(says["Last-Modified"])
        return False

    def _start(self, headers: dict[str, str], says: dict[str, str]) -> int | None:
        if "range" not in headers or headers.get("if-range") not in (None, says.get("ETag"), says["Last-Modified"]):
            return None
        return int(headers["range"].removeprefix("bytes=").rstrip("-"))

    def reply(self, code: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        """Send a response whose body may be another length than it says."""
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if code != 304:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self._body(body)

    def _body(self, body: bytes) -> None:
        piece = PIECE if self.archive.pause else max(1, len(body))
        for start in range(0, len(body), piece):
            self.wfile.write(body[start : start + piece])
            self.wfile.flush()
            self.archive.sent += len(body[start : start + piece])
            time.sleep(self.archive.pause)

    def hang_up(self) -> None:
        """Close the connection after what was sent."""
        self.close_connection = True
        self.wfile.flush()

    def whole(self) -> dict[str, str]:
        """Headers of the file that is asked for."""
        return self.validators(unquote(urlsplit(self.path).path))


# ---- faults ----


def status(code: int, **headers: str) -> Fault:
    """Answer with an error code."""
    return lambda handler, _: handler.reply(code, b"trouble", {k.replace("_", "-"): v for k, v in headers.items()})


def truncated(size: int) -> Fault:
    """Say the whole length, send `size` bytes, hang up."""

    def fault(handler: Handler, data: bytes) -> None:
        handler.reply(200, data[:size], handler.whole(), len(data))
        handler.hang_up()

    return fault


def stalled(size: int) -> Fault:
    """Say the whole length, send `size` bytes, then nothing until the server ends."""

    def fault(handler: Handler, data: bytes) -> None:
        handler.reply(200, data[:size], handler.whole(), len(data))
        handler.wfile.flush()
        handler.archive.ended.wait(60)
        handler.close_connection = True

    return fault


def wrong_length(by: int) -> Fault:
    """Send the whole file under a Content-Length that is wrong."""

    def fault(handler: Handler, data: bytes) -> None:
        handler.reply(200, data, handler.whole() | {"Connection": "close"}, len(data) + by)
        handler.hang_up()

    return fault


def garbage(handler: Handler, data: bytes) -> None:
    """Send a gzip header and noise, as long as the file."""
    handler.reply(200, data[:10] + GARBAGE.randbytes(len(data) - 10), handler.whole())


def redirect_to_itself(handler: Handler, _data: bytes) -> None:
    """Redirect to the same address, each time."""
    handler.archive.faults[unquote(urlsplit(handler.path).path)].append(redirect_to_itself)
    handler.reply(302, b"", {"Location": handler.path})


def reset(size: int) -> Fault:
    """Send `size` bytes, then break the connection with RST."""

    def fault(handler: Handler, data: bytes) -> None:
        handler.reply(200, data[:size], handler.whole(), len(data))
        handler.wfile.flush()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()
        handler.close_connection = True

    return fault


def replaced_after(size: int, new: bytes) -> Fault:
    """Send `size` bytes of the file, hang up, and have another file in its place."""

    def fault(handler: Handler, data: bytes) -> None:
        truncated(size)(handler, data)
        path = unquote(urlsplit(handler.path).path)
        handler.archive.files[path] = new
        handler.archive.modified[path] = MODIFIED + 60

    return fault


def page(handler: Handler, _data: bytes) -> None:
    """Answer 200 with a web page, as a portal before the network does."""
    handler.reply(200, b"<!DOCTYPE html><title>Please log in</title>", {"Content-Type": "text/html"})


# ---- servers ----


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no error here."""


@contextmanager
def serving(archive: Archive) -> Iterator[Archive]:
    """Serve an archive on a loopback port; `archive.url` says where."""
    handler = type("Bound", (Handler,), {"archive": archive})
    with _Server(("127.0.0.1", 0), handler) as server:
        archive.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield archive
        finally:
            archive.ended.set()
            server.shutdown()
            thread.join()


@contextmanager
def s3(bucket: str, objects: dict[str, bytes]) -> Iterator[tuple[str, Any]]:
    """An S3 server with one bucket: its address, and a client that may change what it holds."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        login = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **login)
        client.create_bucket(Bucket=bucket, ACL="public-read")
        for key, body in objects.items():
            client.put_object(Bucket=bucket, Key=key, Body=body, ACL="public-read")
        yield f"http://{host}:{port}", client
    finally:
        server.stop()


def locations(found: list[dict[str, Any]], key: str) -> Callable[[Request], bytes]:
    """OpenAQ's ``/v3/locations``: a page of those in the box, for whoever has the key."""

    def answer(request: Request) -> bytes:
        assert request.headers.get("x-api-key") == key
        limit, number = int(request.query["limit"]), int(request.query["page"])
        west, south, east, north = map(float, request.query["bbox"].split(","))
        assert -180 <= west <= east <= 180
        places = [(place, place["coordinates"]) for place in found]
        inside = [p for p, at in places if west <= at["longitude"] <= east and south <= at["latitude"] <= north]
        return json.dumps(
            {"meta": {"found": len(inside)}, "results": inside[(number - 1) * limit : number * limit]}
        ).encode()

    return answer
