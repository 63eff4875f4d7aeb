"""What every request passes before it is read: its size, its key, and whom it was meant for."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from heptune.service.refusal import Refusal

# Whoever looks whether the server lives needs no key.
OPEN_PATHS = ("/health",)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """Refuses bodies that are too long (413). With a key it refuses whoever does not have it (401). Without one the
    server is for this machine alone, and it refuses requests meant for another name than this machine's (403): a page
    in a browser could have its own name lead here."""

    def __init__(self, app: ASGIApp, body_bytes: int, key: str | None) -> None:
        self.app, self.body_bytes = app, body_bytes
        self.key = None if key is None else key.encode("utf-8")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self.key is not None and scope["path"] not in OPEN_PATHS and not self._has_key(headers):
            await _answer(Refusal(401, "give the server's key: Authorization: Bearer KEY", "invalid_api_key"))(
                scope, receive, send
            )
            return
        if self.key is None and not _meant_for_this_machine(headers.get(b"host", b"")):
            refusal = Refusal(403, "without a key this server answers to 127.0.0.1 and localhost only", "wrong_host")
            await _answer(refusal)(scope, receive, send)
            return
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.body_bytes:
            await _answer(self._too_long())(scope, receive, send)
            return
        read = 0

        async def counting() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.body_bytes:  # whoever reads the body passes this kind of error on, and no other
                raise HTTPException(413, self._too_long().message)
            return message

        await self.app(scope, counting, send)

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        assert self.key is not None
        return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.key)

    def _too_long(self) -> Refusal:
        return Refusal(413, f"the request is longer than {self.body_bytes} bytes", "request_too_large")


def _meant_for_this_machine(host: bytes) -> bool:
    name = host.decode("latin-1")
    name = name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0]
    return is_loopback(name.lower())


def _answer(refusal: Refusal) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else None
    return JSONResponse(refusal.failure().model_dump(), refusal.status, headers)
