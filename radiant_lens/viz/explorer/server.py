"""The explorer as a page of a local server: this machine alone, and only with the token of its address."""

from __future__ import annotations

import json
import queue
import secrets
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from radiant_lens import _checks
from radiant_lens.errors import OutputError
from radiant_lens.viz.explorer import assets
from radiant_lens.viz.explorer.engine import Engine
from radiant_lens.viz.explorer.explorer import Explorer
from radiant_lens.viz.explorer.messages import snapshot

LOOPBACK = "127.0.0.1"
LONGEST_MESSAGE = 1_000_000
"""Bytes of a request's body: a prompt is far shorter."""

HEARTBEAT = 10.0
"""Seconds after which a silent stream sends a comment, so that a closed one is noticed."""

_LAST = "last"
"""Ends a stream; all messages are JSON objects."""

POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy: nothing but the page's own files, and this server."""


class ExplorerServer:
    """Serves an explorer until it is interrupted; `serving` makes one.

    Requests are answered by threads of their own. The model is run by the thread that calls `run` alone.

    Attributes:
        address: of the page, with its token.
    """

    def __init__(self, explorer: Explorer, port: int) -> None:
        self._token, self.nonce = secrets.token_urlsafe(24), secrets.token_urlsafe(12)
        # Kept here: the threads of requests must not read an explorer that the model's thread is changing.
        self._snapshot = snapshot(explorer)
        self._streams: set[queue.SimpleQueue[str]] = set()
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._stopping = False
        self._engine = Engine(explorer, self._broadcast)
        handler = type("Handler", (_Handler,), {"owner": self})
        try:
            self._http = ThreadingHTTPServer((LOOPBACK, port), handler)
        except OSError as error:
            raise OutputError(
                f"Port {port} of {LOOPBACK} cannot be opened ({error.strerror}): choose another `port`, or 0 for any."
            ) from error
        self._http.daemon_threads = True
        self.port = int(self._http.server_address[1])
        self.address = f"http://{LOOPBACK}:{self.port}/?token={self._token}"

    def run(self) -> None:
        """Do the explorer's work until `stop`, or until the thread is interrupted."""
        while not self._stopping:
            if not self._engine.turn():
                # With a limit, so that Ctrl-C is noticed on every system.
                self._wake.wait(1.0)
                self._wake.clear()

    def stop(self) -> None:
        """End `run` after its present slice."""
        self._stopping = True
        self._wake.set()

    def receive(self, message: object) -> None:
        """Hand a message of the page to the engine."""
        self._engine.receive(message)
        self._wake.set()

    def page(self) -> str:
        """Return the page."""
        return assets.page(self._snapshot, self._token, self.nonce)

    def permits(self, query: str, host: str, origin: str | None) -> bool:
        """Return whether a request has the token, and comes from a page of this server.

        The host is compared because another site's name may be made to point to this machine; the origin, because a
        page of another site may send requests here.
        """
        names = {f"{name}:{self.port}" for name in (LOOPBACK, "localhost")}
        token = parse_qs(query).get("token", [""])[0]
        return (
            host in names
            and (origin is None or origin in {f"http://{name}" for name in names})
            and secrets.compare_digest(token.encode(), self._token.encode())
        )

    @contextmanager
    def stream(self) -> Generator[queue.SimpleQueue[str]]:
        """A queue of the messages to the page, while it listens."""
        messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        with self._lock:
            self._streams.add(messages)
        try:
            yield messages
        finally:
            with self._lock:
                self._streams.discard(messages)

    def _broadcast(self, message: dict[str, Any]) -> None:
        if message["kind"] in ("snapshot", "settings"):
            self._snapshot = {**self._snapshot, **message, "kind": "snapshot"}
        text = json.dumps(message)
        with self._lock:
            for messages in self._streams:
                messages.put(text)

    def open(self) -> None:
        """Begin to answer requests, in threads."""
        threading.Thread(target=self._http.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        """End the streams, and free the port."""
        with self._lock:
            for messages in self._streams:
                messages.put(_LAST)
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def serving(explorer: Explorer, *, port: int = 0) -> Generator[ExplorerServer]:
    """Serve an explorer at a port of this machine while the block lasts.

    Args:
        explorer: to serve.
        port: 0 for any that is free.

    Raises:
        InvalidArgumentError: a port out of range.
        OutputError: a port that cannot be opened, such as one in use.
    """
    _checks.whole("port", port, 0, 65535)
    server = ExplorerServer(explorer, port)
    server.open()
    try:
        yield server
    finally:
        server.close()


def _next_of(messages: queue.SimpleQueue[str]) -> str:
    """The next message; "" if none comes for a while."""
    try:
        return messages.get(timeout=HEARTBEAT)
    except queue.Empty:
        return ""


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of the page."""

    owner: ExplorerServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Send the page, its files, or the stream of messages."""
        path = self._permitted_path()
        if path == "/":
            self._send(self.owner.page(), "text/html")
        elif path == "/explorer.js":
            self._send(assets.MODULE.read_text(encoding="utf-8"), "text/javascript")
        elif path == "/explorer.css":
            self._send(assets.STYLE.read_text(encoding="utf-8"), "text/css")
        elif path == "/events":
            self._stream()
        elif path:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Take a message of the page."""
        path = self._permitted_path()
        if not path:
            return
        length = self.headers.get("Content-Length", "")
        if path != "/message" or not length.isdigit() or int(length) > LONGEST_MESSAGE:
            self.close_connection = True
            if length.isdigit():
                # A client that is still sending when the connection closes never reads the refusal.
                self.rfile.read(min(int(length), 2 * LONGEST_MESSAGE))
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        try:
            self.owner.receive(json.loads(self.rfile.read(int(length))))
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        self._send("", "text/plain", HTTPStatus.ACCEPTED)

    def _permitted_path(self) -> str:
        """The path of a request; "" after one that was refused."""
        url = urlsplit(self.path)
        if self.owner.permits(url.query, self.headers.get("Host", ""), self.headers.get("Origin")):
            return url.path
        self.close_connection = True
        self.send_error(HTTPStatus.FORBIDDEN, "Open the address that `radiant-lens explore` printed")
        return ""

    def _send(self, text: str, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = text.encode()
        self._begin(status, kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _begin(self, status: HTTPStatus, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        # No other site may read or frame the page, and no cache may keep it.
        for name, value in (
            ("Content-Security-Policy", POLICY.format(nonce=self.owner.nonce)),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)

    def _stream(self) -> None:
        self.close_connection = True
        # The queue comes before the headers: the page asks for all there is to show once it has these.
        with self.owner.stream() as messages:
            self._begin(HTTPStatus.OK, "text/event-stream")
            self.end_headers()
            try:
                while (text := _next_of(messages)) != _LAST:
                    # A line that begins with a colon is a comment.
                    self.wfile.write((f"data: {text}\n\n" if text else ": still here\n\n").encode())
            except OSError:
                # The page was closed.
                return

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: addresses hold the token."""
