"""What a browser may send: no file to be written on this machine, and nothing larger than an upload."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

ENCODED = 4 / 3
"""Letters of base64 for a byte."""

BESIDE = 1_000_000
"""Bytes of a request beside an upload, at most."""


class Limits:
    """Stands before the app: refuses what is too large before it is read, and Gradio's own way to upload files.

    Args:
        app: What the rest goes on to.
        most: Bytes of an uploaded file.
    """

    def __init__(self, app: App, most: float) -> None:
        self.app, self.most = app, int(ENCODED * most) + BESIDE

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request of ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["method"] != "GET" and scope["path"].rstrip("/").endswith("/upload"):
            await answer(send, 403)
        elif scope["path"].rstrip("/").endswith(("/cancel", "/reset")):
            await self._called_off(scope, receive, send)
        else:
            await self._bounded(scope, receive, send)

    async def _called_off(self, scope: Message, receive: Receive, send: Send) -> None:
        """A page may call an event off before it knows the event's number, which Gradio calls a mistake."""
        body, more = b"", True
        while more and len(body) < BESIDE:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            numbered = isinstance(json.loads(body)["event_id"], str)
        except (ValueError, KeyError, TypeError):
            numbered = False
        if not numbered:
            await answer(send, 200, b'{"success": true}')
            return
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return parts.pop() if parts else await receive()

        await self.app(scope, again, send)

    async def _bounded(self, scope: Message, receive: Receive, send: Send) -> None:
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > self.most:
            await answer(send, 413)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            return {"type": "http.disconnect"} if read > self.most else message

        await self.app(scope, counted, send)


async def answer(send: Send, status: int, body: bytes = b"") -> None:
    """Ends a request."""
    headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
