"""The server's routes: OpenAI's, and those for labels, entities, models, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from heptune import __version__
from heptune.core.errors import HeptuneError
from heptune.runs import lineage
from heptune.service import telling, wire
from heptune.service.asking import Asking, Heard, Limits, give_up
from heptune.service.fleet import Fleet, Served
from heptune.service.gate import Gate
from heptune.service.listening import GoneError, unless_gone
from heptune.service.metrics import Counted, Metrics
from heptune.service.refusal import Refusal, refusal_of

# What servers write where a client has hung up: nobody reads it.
CLIENT_GONE = 499
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.Failure, "description": words}
    for status, words in {
        400: "It cannot be done: the message says why.",
        401: "The key is missing or wrong.",
        404: "There is no such model.",
        413: "The request is too long.",
        422: "The request is not of this form.",
        429: "Too many wait already.",
        503: "The server stops, or the reply could not be made, or not in time.",
    }.items()
}
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": _EVENT}}, "description": "With stream: true, piece by piece."}
}

_WORDS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "It is done."}
}


@dataclass
class State:
    """What the routes share. `allowed` is the folder whose runs may be loaded while the server runs."""

    fleet: Fleet
    asking: Asking
    limits: Limits
    allowed: Path | None = None
    draining: bool = False
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    began: int = field(default_factory=lambda: int(time.time()))


def app_of(
    fleet: Fleet, limits: Limits | None = None, api_key: str | None = None, allowed: Path | None = None
) -> FastAPI:
    """The application that serves a fleet; it starts the fleet's engines and stops them."""
    limits = limits or Limits()
    state, metrics = State(fleet, Asking(fleet, limits), limits, allowed), Metrics(fleet)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        fleet.start()
        yield
        state.draining = True
        await asyncio.to_thread(fleet.stop)
        state.asking.close()

    app = FastAPI(
        title="Heptune",
        version=__version__,
        description="Many tuned models on one base, in OpenAI's interface.",
        lifespan=lifespan,
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if api_key is not None else [],
    )
    app.state.heptune = state
    _errors(app)
    _text_routes(app, state)
    _other_routes(app, state)
    _model_routes(app, state, metrics)
    app.add_middleware(Counted, metrics=metrics)
    app.add_middleware(Gate, body_bytes=limits.body_bytes, key=api_key)
    return app


# ---- errors


def _errors(app: FastAPI) -> None:
    async def refused(request: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, Refusal)
        headers = {"Retry-After": "1"} if refusal.status == 429 else None
        return JSONResponse(refusal.failure().model_dump(), refusal.status, headers)

    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        what = f"{place}: {first['msg']}" if place else str(first["msg"])
        more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
        return await refused(request, Refusal(422, what + more, str(first["type"]), place or None))

    async def other(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse(
            Refusal(error.status_code, str(error.detail)).failure().model_dump(), error.status_code, error.headers
        )

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, other)
    app.add_exception_handler(GoneError, gone)


def _serving(state: State) -> None:
    if state.draining:
        raise Refusal(503, "the server stops and takes no more requests", "draining")


async def _in_time(state: State, request: Request, work: Any, heard: Sequence[Heard] = ()) -> Any:
    """The result of `work`, unless the client hangs up or it takes too long: then nothing goes on for it."""
    try:
        async with asyncio.timeout(state.limits.request_s):
            return await unless_gone(request, work, lambda: give_up(heard))
    except TimeoutError:
        raise Refusal(503, f"it took longer than {state.limits.request_s:g} s", "timeout") from None
    finally:
        give_up(heard)


async def _streamed(state: State, pieces: AsyncIterator[str], heard: Sequence[Heard]) -> AsyncIterator[str]:
    """Pieces as they come; what goes wrong on the way is told in the stream, which has begun."""
    try:
        async with asyncio.timeout(state.limits.request_s):
            async for piece in pieces:
                yield piece
    except (Refusal, TimeoutError) as error:
        late = f"it took longer than {state.limits.request_s:g} s"
        refusal = error if isinstance(error, Refusal) else Refusal(503, late, "timeout")
        yield f"data: {refusal.failure().model_dump_json()}\n\n"
        yield telling.DONE
    finally:
        give_up(heard)


# ---- routes


def _text_routes(app: FastAPI, state: State) -> None:
    async def answer(request: Request, stream: bool | None, heard: list[Heard], whole: Any, pieces: Any) -> Any:
        if stream:
            return StreamingResponse(_streamed(state, pieces(), heard), media_type="text/event-stream")
        return await _in_time(state, request, whole(), heard)

    @app.post(
        "/v1/chat/completions",
        tags=["OpenAI"],
        response_model=wire.ChatAnswer,
        responses={**_FAILURES, **_STREAM},
        summary="The reply to a conversation.",
    )
    async def chat(asked: wire.ChatRequest, request: Request) -> Any:
        _serving(state)
        heard = await state.asking.chat(asked)
        return await answer(
            request,
            asked.stream,
            heard,
            lambda: telling.chat_answer(asked, heard),
            lambda: telling.chat_stream(asked, heard),
        )

    @app.post(
        "/v1/completions",
        tags=["OpenAI"],
        response_model=wire.CompletionAnswer,
        responses={**_FAILURES, **_STREAM},
        summary="How a text goes on.",
    )
    async def complete(asked: wire.CompletionRequest, request: Request) -> Any:
        _serving(state)
        heard = await state.asking.complete(asked)
        return await answer(
            request,
            asked.stream,
            heard,
            lambda: telling.completion_answer(asked, heard),
            lambda: telling.completion_stream(asked, heard),
        )


def _other_routes(app: FastAPI, state: State) -> None:
    @app.post("/v1/classify", tags=["Heptune"], responses=_FAILURES, summary="The labels of texts.")
    async def classify(asked: wire.InputRequest, request: Request) -> wire.ClassifyAnswer:
        _serving(state)
        found: wire.ClassifyAnswer = await _in_time(state, request, state.asking.classify(asked))
        return found

    @app.post("/v1/extract", tags=["Heptune"], responses=_FAILURES, summary="The entities in texts.")
    async def extract(asked: wire.InputRequest, request: Request) -> wire.ExtractAnswer:
        _serving(state)
        found: wire.ExtractAnswer = await _in_time(state, request, state.asking.extract(asked))
        return found


def _model_routes(app: FastAPI, state: State, metrics: Metrics) -> None:
    fleet = state.fleet

    def card(served: Served) -> wire.ModelCard:
        base = next((m.name for m in fleet.models.values() if m.run is None and m.engine is served.engine), None)
        return wire.ModelCard(
            id=served.name,
            created=state.began,
            parent=None if served.run is None else base or served.run.manifest["base"]["name"].rpartition("/")[2],
            technique=served.technique or None,
            task=None if served.task is None else served.task.name,
            max_model_len=served.max_positions,
        )

    @app.get("/v1/models", tags=["OpenAI"], responses=_some(401), summary="The models that can be asked.")
    async def models() -> wire.ModelList:
        return wire.ModelList(data=[card(served) for served in fleet.models.values()])

    @app.get("/v1/models/{name}", tags=["OpenAI"], responses=_some(401, 404, 422), summary="One of them.")
    async def model(name: str) -> wire.ModelCard:
        return card(state.asking.model(name))

    @app.post(
        "/v1/load_lora_adapter",
        tags=["Heptune"],
        response_model=None,
        responses={**_FAILURES, **_some(403), **_WORDS},
        summary="Serves one more run, of any technique.",
    )
    async def load(asked: wire.LoadRequest) -> PlainTextResponse:
        _serving(state)
        folder = _allowed_run(state, asked.lora_path or asked.lora_name)
        async with state.loading:
            try:
                await asyncio.to_thread(fleet.load, asked.lora_name, folder)
            except HeptuneError as error:
                raise refusal_of(error) from None
        return PlainTextResponse(f"Success: {asked.lora_name!r} is served")

    @app.post(
        "/v1/unload_lora_adapter",
        tags=["Heptune"],
        response_model=None,
        responses={**_FAILURES, **_some(403), **_WORDS},
        summary="Serves a run no more; its replies are broken off.",
    )
    async def unload(asked: wire.UnloadRequest) -> PlainTextResponse:
        _serving(state)
        _require_allowed(state)
        state.asking.model(asked.lora_name)
        async with state.loading:
            try:
                await asyncio.to_thread(fleet.unload, asked.lora_name)
            except HeptuneError as error:
                raise refusal_of(error) from None
        return PlainTextResponse(f"Success: {asked.lora_name!r} is served no more")

    @app.get(
        "/health",
        tags=["Operation"],
        response_model=wire.Health,
        responses={503: {"model": wire.Health}},
        summary="Whether the server answers.",
    )
    async def health() -> Any:
        found = wire.Health(status="draining" if state.draining else "ok" if fleet.lives else "broken")
        return JSONResponse(found.model_dump(), 200 if found.status == "ok" else 503)

    @app.get(
        "/metrics",
        tags=["Operation"],
        responses=_some(401),
        response_class=PlainTextResponse,
        summary="For Prometheus.",
    )
    async def scrape() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _some(*statuses: int) -> dict[int | str, dict[str, Any]]:
    known = {**_FAILURES, 403: {"model": wire.Failure, "description": "The server was not started for that."}}
    return {status: known[status] for status in statuses}


def _require_allowed(state: State) -> Path:
    if state.allowed is None:
        raise Refusal(403, "models are loaded and unloaded only where the server was started with --allow FOLDER")
    return state.allowed


def _allowed_run(state: State, name: str) -> Path:
    """The run of this name in the allowed folder: looked up among what is there, never made into a path."""
    allowed = _require_allowed(state)
    found: dict[str, Path] = {}
    with contextlib.suppress(OSError):
        found = {path.name: path for path in allowed.iterdir() if lineage.is_run(path)}
    if name not in found:
        raise Refusal(404, f"there is no run {name!r} in the allowed folder; there are: {', '.join(sorted(found))}")
    return found[name]
