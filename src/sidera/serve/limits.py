"""What a client may send: the size of a body, checked while it arrives."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidera.serve.errors import problem

MAX_BODY_BYTES = 32 * 2**20  # a history of a million keys still fits


class BodyLimit:
    """Refuses large bodies while they arrive: a length need not be announced, nor be true."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        small = len(announced) <= len(str(MAX_BODY_BYTES)) and announced.isdigit() and int(announced) <= MAX_BODY_BYTES
        body, more = bytearray(), small or not announced.isdigit()
        too_large = not more
        while more:
            message = await receive()
            body += message.get("body", b"")
            too_large = len(body) > MAX_BODY_BYTES
            more = message.get("more_body", False) and not too_large
        if too_large:
            text = f"the body is larger than {MAX_BODY_BYTES:,} bytes; fix: send the newest events only"
            await problem(413, text)(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)
