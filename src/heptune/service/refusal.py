"""Requests that are refused, in OpenAI's shape."""

from __future__ import annotations

from heptune.core.errors import HeptuneError
from heptune.service.engine import GoneError, QueueFullError
from heptune.service.wire import Failure, Problem

_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that gets no answer, with the status that says why."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def failure(self) -> Failure:
        """What the client is told."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        message = self.message.encode("utf-8", "replace").decode()  # it may name what the client sent
        return Failure(error=Problem(message=message, type=kind, code=self.code, param=self.param))


def refusal_of(error: HeptuneError) -> Refusal:
    """What an error on the way means to a client."""
    if isinstance(error, QueueFullError):
        return Refusal(429, str(error), "queue_full")
    if isinstance(error, GoneError):
        return Refusal(503, str(error), "gone")
    return Refusal(400, str(error))
