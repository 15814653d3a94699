"""A line to an HTTP server that can be disturbed: it answers 500 or 503 itself, never answers, or stops in an answer.

Requests and answers pass untouched, `Host` too, so that signatures stay good for the address of this end.
"""

from __future__ import annotations

import http.client
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

#: What a line may do: answers 500, 503 and 403 in place of the server; nothing, ever; half an answer, then nothing; the
#: server does what was asked but the connection ends before its answer comes.
GOOD, FAILS, SLOW_DOWN, DEAF, HALF, LOST = "good", "500", "503 SlowDown", "no answer", "half an answer", "answer lost"
DENIES = "403 AccessDenied"

_ANSWERS = {
    FAILS: (HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError"),
    DENIES: (HTTPStatus.FORBIDDEN, "AccessDenied"),
    SLOW_DOWN: (HTTPStatus.SERVICE_UNAVAILABLE, "SlowDown"),
}

#: Headers of one connection, not of the message.
_HOP = {"connection", "keep-alive", "transfer-encoding"}


class Line:
    """A line under way: its address, what it does now, what its last trouble was, how many requests it disturbed."""

    def __init__(self, server: str) -> None:
        self.server = urlsplit(server).netloc
        self.state = self.last = GOOD
        self.disturbed = 0
        self._healed = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.1,), daemon=True).start()

    @property
    def address(self) -> str:
        """Where clients go instead of to the server."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def trouble(self, state: str) -> None:
        """Disturb from the next request on; what hangs ends."""
        self._healed.set()
        self._healed = threading.Event()
        self.state = self.last = state

    def heal(self) -> None:
        """Be good again; connections that hang end."""
        self.state = GOOD
        self._healed.set()

    def hang(self) -> None:
        """Wait, as a store that does not answer, until all is good again."""
        self._healed.wait(600)

    def close(self) -> None:
        """Take the line away."""
        self.heal()
        self._http.shutdown()
        self._http.server_close()


def _handler(line: Line) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with suppress(OSError):  # the client went away
                super().handle_one_request()
                return
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            state = line.state
            if state == GOOD:
                self._answer(*_ask(line.server, self, body))
                return
            line.disturbed += 1
            self.close_connection = True
            if state in _ANSWERS:
                self._refuse(*_ANSWERS[state])
            elif state == DEAF:
                line.hang()
            else:
                found, data = _ask(line.server, self, body)
                if state == HALF:
                    self._answer(found, data[: len(data) // 2])
                    line.hang()

        def _refuse(self, status: HTTPStatus, code: str) -> None:
            said = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>disturbed</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(said)

        def _answer(self, found: http.client.HTTPResponse, data: bytes) -> None:
            self.send_response_only(found.status, found.reason)
            for name, value in found.getheaders():
                if name.lower() not in _HOP:
                    self.send_header(name, value)
            if "Content-Length" not in found.headers and found.status not in (204, 304):
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    return Handler


def _ask(server: str, request: BaseHTTPRequestHandler, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
    """Ask the server what the client asked, header by header."""
    connection = http.client.HTTPConnection(server, timeout=60)
    try:
        connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers.items():
            if name.lower() not in _HOP:
                connection.putheader(name, value)
        connection.endheaders(body)
        found = connection.getresponse()
        return found, found.read()
    finally:
        connection.close()
