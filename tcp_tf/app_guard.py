"""What stands between the network and the page: Gradio answers far more than this page needs, and all of it is refused.

An ASGI middleware. Only the routes that the page uses pass, request bodies are bounded, no request can make the server
fetch an address, and the browser is told to load nothing from elsewhere (Content-Security-Policy).
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, MutableMapping
from typing import Any, Callable, Optional

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

MAX_MESSAGE = 2_000_000  # bytes of an event: a drawing and the values of a few controls

_API = "/gradio_api"
ALLOWED = {
    "GET": re.compile(
        r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/(assets|static|svelte)/[^?]*"
        rf"|{_API}/(info|startup-events|queue/data|upload_progress|heartbeat/\w+|file=(?!\w+:).+)"
    ),
    "POST": re.compile(rf"{_API}/(queue/join|upload|cancel|reset)/?"),
}
ALLOWED["HEAD"] = ALLOWED["GET"]

# Gradio's page builds functions and styles at run time, hence the two words with "unsafe"; nothing comes from outside.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode("ascii")),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Guard:
    """Wraps an ASGI application."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # Gradio needs "lifespan"; the page opens no web sockets
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        pattern = ALLOWED.get(scope["method"])
        if pattern is None or not pattern.fullmatch(scope["path"]):
            await _answer(send, 404, "This page has no such address.")
            return
        if scope["path"].rstrip("/") != f"{_API}/queue/join":
            await self.app(scope, receive, _with_headers(send))
            return
        body = await _body(receive)
        if body is None:
            await _answer(send, 413, "The drawing is too large: undo some strokes.")
        elif _names_an_address(body):
            await _answer(send, 400, "Pictures are taken from uploads only.")
        else:
            await self.app(scope, _replay(body, receive), _with_headers(send))


async def _body(receive: Receive) -> Optional[bytes]:
    """The whole body, or None where it is longer than `MAX_MESSAGE`."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_MESSAGE:
            return None
        if not message.get("more_body", False):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return waiting.pop() if waiting else await receive()

    return replay


def _names_an_address(body: bytes) -> bool:
    """Whether a file of the message is an address, which Gradio would fetch, or the message cannot be read."""
    try:
        left = [json.loads(body)]
    except (ValueError, RecursionError):
        return True
    while left:
        value = left.pop()
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and re.match(r"\s*[a-z][a-z0-9+.-]*://", path, re.I):
                return True
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return False


def _with_headers(send: Send) -> Send:
    async def sender(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await send(message)

    return sender


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
