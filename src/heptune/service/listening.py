"""From the engine's thread to a request that waits, as long as somebody waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request

from heptune.service.reply import End, Piece

T = TypeVar("T")


class Ears:
    """Hears a reply in the engine's thread and tells it in the server's."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[Piece | End] = asyncio.Queue()

    def __call__(self, said: Piece | End) -> None:
        """Called by the engine; never fails, whatever became of the server."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._heard.put_nowait, said)

    async def pieces(self) -> AsyncIterator[Piece | End]:
        """Everything that is said, up to and with its end."""
        while True:
            said = await self._heard.get()
            yield said
            if isinstance(said, End):
                return


class GoneError(Exception):
    """The client has hung up."""


async def unless_gone(request: Request, work: Awaitable[T], give_up: Callable[[], None]) -> T:
    """The result of `work`. Where the client hangs up first, `give_up` is called and `GoneError` raised."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise GoneError
    finally:
        if not task.done():
            give_up()
            task.cancel()
        gone.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
