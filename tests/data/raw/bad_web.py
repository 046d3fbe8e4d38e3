"""A small web on 127.0.0.1: a server whose bad manners are scripted, and a proxy."""

from __future__ import annotations

import contextlib
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """One file, and what the server does at each request for it (the last manner is kept)."""

    def __init__(self, content: bytes, *manners: str) -> None:
        self.content, self.tag, self.manners = content, '"one"', list(manners) or ["well"]
        self.asked: list[dict[str, str]] = []  # headers of each request
        self.address = ""


class Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site = self.site
        site.asked.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
        manner = site.manners.pop(0) if len(site.manners) > 1 else site.manners[0]
        self.close_connection = True
        if manner.isdigit():
            self._head(int(manner), 4)
            self.wfile.write(b"no\r\n")
        elif manner.startswith("to "):
            self._head(302, 0, Location=manner.removeprefix("to "))
        elif manner == "page":
            self._head(200, 21)
            self.wfile.write(b"<html>log in</html>\r\n")
        elif manner == "silent":
            pass
        else:
            self._serve(manner)

    def _serve(self, manner: str) -> None:
        site = self.site
        if manner == "changed":
            site.content, site.tag = site.content[::-1], '"two"'
        begin = 0
        asked = self.headers.get("Range", "")
        if asked and self.headers.get("If-Range") == site.tag and manner != "no ranges":
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
        if begin == len(site.content) and manner == "well":
            self._head(416, 0, Content_Range=f"bytes */{begin}")
            return
        if manner == "wrong part":
            begin = 1
        body = site.content[begin:]
        total = len(site.content) + (100 if manner == "short" else 0)
        extra = {} if manner == "no version" else {"ETag": site.tag if manner != "weak" else f"W/{site.tag}"}
        if begin:
            extra["Content-Range"] = f"bytes {begin}-{total - 1}/{total}"
        self._head(206 if begin else 200, len(body) + (100 if manner == "short" else 0), **extra)
        self.wfile.write(body[: len(body) // 2] if manner in ("cut", "no version", "weak") else body)

    def _head(self, code: int, length: int, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Proxy(BaseHTTPRequestHandler):
    """Passes plain requests on and remembers them."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.path)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.path) as answer:
            body = answer.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server that runs while the block does."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def serving(site: Site) -> Iterator[Site]:
    with running(type("Served", (Handler,), {"site": site})) as address:
        site.address = address
        yield site
