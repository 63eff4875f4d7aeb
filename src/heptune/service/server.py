"""The server as a process: where it listens, and how it ends."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from heptune.core.errors import UsageError
from heptune.core.events import Listener, ignore
from heptune.service.app import app_of
from heptune.service.asking import Limits
from heptune.service.engine import Room
from heptune.service.fleet import Fleet
from heptune.service.gate import is_loopback

# How long requests may take to end after the server was told to stop.
DRAIN_S = 30


def require_safe(host: str, api_key: str | None) -> None:
    """Raises `UsageError` where others could ask without a key."""
    if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise UsageError("the key must be of ASCII letters, digits and signs, without spaces")
    if not is_loopback(host) and api_key is None:
        raise UsageError(
            f"{host} can be reached from other machines; give a key that clients must have, in HEPTUNE_API_KEY or with "
            "--api-key, or serve this machine only: --host 127.0.0.1"
        )


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any free one. Raises `UsageError` where that cannot be."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen at {host}, port {port} ({error}); choose another --port or --host") from None


@dataclass(frozen=True)
class Server:
    """Models in memory and a socket that listens; nothing is answered yet."""

    fleet: Fleet
    app: FastAPI
    listening: socket.socket

    @property
    def url(self) -> str:
        """The address that clients are given."""
        host, port = self.listening.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    def serve(self, ready: Callable[[], None] = lambda: None, drain_s: int = DRAIN_S) -> None:
        """Answers until SIGINT or SIGTERM; then takes no more requests and gives those that it has `drain_s` seconds. A
        second SIGINT ends it at once. `ready` is called when the first request can come."""
        with self.listening:
            _Server(self.app, ready, drain_s).run(sockets=[self.listening])

    @contextlib.contextmanager
    def in_background(self, drain_s: int = DRAIN_S) -> Iterator[str]:
        """Answers inside the block, from a thread of its own; gives the address."""
        begun = threading.Event()
        running = _Server(self.app, begun.set, drain_s)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [self.listening]}, name="heptune-server")
        with self.listening:
            thread.start()
            while not begun.wait(0.05) and thread.is_alive():
                pass
            try:
                yield self.url
            finally:
                self.app.state.heptune.draining = True
                running.should_exit = True
                thread.join()


def open_server(
    runs: Mapping[str, Path],
    host: str,
    port: int,
    api_key: str | None,
    allowed: Path | None,
    room: Room | None,
    limits: Limits | None,
    listener: Listener = ignore,
) -> Server:
    """Loads runs and takes hold of the address. Raises `UsageError` where that is taken, or not safe without a key."""
    require_safe(host, api_key)
    listening = listening_socket(host, port)
    try:
        fleet = Fleet(room, listener)
        fleet.load_all(runs)
        return Server(fleet, app_of(fleet, limits, api_key, allowed), listening)
    except BaseException:
        listening.close()
        raise


class _Server(uvicorn.Server):
    def __init__(self, app: FastAPI, ready: Callable[[], None], drain_s: int) -> None:
        super().__init__(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=drain_s, server_header=False)
        )
        self.app, self.ready = app, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says that it is ready when it is."""
        await super().startup(sockets)
        if self.started:
            self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Requests on connections that are still open are refused from now on."""
        self.app.state.heptune.draining = True
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn, but a signal that was heeded is not raised again: the process ends well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
