"""No request makes the server fail, and nobody gets what is not for them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from heptune import api
from heptune.core.errors import UsageError
from heptune.service.asking import Limits
from heptune.service.engine import Room
from served import Make, technique_of

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def some(runs: dict[str, Path], base: Path, reviews: Path, people: Path, make: Make) -> dict[str, Path]:
    moods = make("moods", base, reviews, technique_of("lora"))
    names = make("names", base, people, technique_of("lora"), max_steps=2)
    return {"lora": runs["lora"], "prompt": runs["prompt"], "moods": moods, "names": names}


@pytest.fixture(scope="module")
def url(some: dict[str, Path]) -> Iterator[str]:
    limits = Limits(body_bytes=1 << 20, max_tokens=8, reply_tokens=4, replies=4)
    server = api.server(some, port=0, limits=limits, allow=some["lora"].parent)
    with server.in_background() as found:
        yield found


FUZZED = settings(
    max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
ROUTES = (
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /health",
    "GET /metrics",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/classify",
    "POST /v1/extract",
    "POST /v1/load_lora_adapter",
    "POST /v1/unload_lora_adapter",
)


@pytest.fixture(scope="module")
def described(url: str) -> dict[str, Any]:
    schema = schemathesis.openapi.from_url(f"{url.removesuffix('/v1')}/openapi.json")
    found = {operation.ok().label: operation.ok() for operation in schema.get_all_operations()}
    assert set(found) == set(ROUTES)
    return found


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_whatever_is_sent_is_answered_as_described(route: str, mode: Any, described: dict[str, Any]) -> None:
    operation = described[route]
    if mode is GenerationMode.NEGATIVE and route.startswith("GET"):
        return  # nothing in them could be wrong

    @FUZZED
    @given(operation.as_strategy(generation_mode=mode))
    def holds(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    holds()


# What is refused where something else does not go with it, which no description of a form can say.
NEEDING_OTHERS = ("stream_options", "top_logprobs", "best_of", "logit_bias", "max_completion_tokens", "tools", "n")
ASKED = {"chat/completions": "lora", "completions": "prompt", "classify": "moods", "extract": "names"}


@pytest.mark.parametrize("path", ASKED)
def test_whatever_is_asked_of_a_model_that_is_there(path: str, described: dict[str, Any]) -> None:
    statuses: set[int] = set()

    @FUZZED
    @given(described[f"POST /v1/{path}"].as_strategy())
    def holds(case: Any) -> None:
        case.body = {key: value for key, value in case.body.items() if key not in NEEDING_OTHERS}
        case.body["model"] = ASKED[path]
        if "completions" in path:
            case.body["max_tokens"] = 2
        response = case.call()
        statuses.add(response.status_code)
        case.validate_response(response, checks=CHECKS[:-1])

    holds()
    assert 200 in statuses  # it came as far as the model


def ask(url: str, path: str, body: bytes | str | dict[str, Any], **headers: str) -> tuple[int, dict[str, Any]]:
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = HTTPConnection(host, int(port), timeout=60)
    data = json.dumps(body) if isinstance(body, dict) else body
    connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    try:
        return answer.status, json.loads(text)
    except ValueError:
        return answer.status, {"text": text.decode()}


CHAT = {"model": "lora", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
LONG = {"model": "lora", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 500}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"\xff\xfe\x00", 400),
        (b"[" * 15_000, 400),
        (b'{"model": "lora", "messages": [{"role": "user", "content": "\\ud800"}]}', 422),
        (b'{"model": "\\udfff", "messages": [{"role": "user", "content": "x"}]}', 422),
        (b'{"model": "lora", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}', 422),
        (b'{"model": "lora", "seed": 1e400, "messages": [{"role": "user", "content": "x"}]}', 422),
        (b'{"model": "lora", "max_tokens": 99999999999999999999, "messages": [{"role": "user", "content": "x"}]}', 400),
        (b'{"model": "lora", "messages": [{"role": "tool", "content": "x"}]}', 200),
        (b'{"model": "lora", "messages": [{"role": "user", "content": "\\u0000\\uffff"}]}', 200),
        (b'{"model": "lora", "messages": []}', 422),
        (b'{"model": "lora", "tools": [{"a": "\\ud800"}], "messages": [{"role": "user", "content": "x"}]}', 422),
        (b'{"model": "lora", "tools": [{"a": 1}], "messages": [{"role": "user", "content": "x"}]}', 400),
        (b'{"model": "../lora", "messages": [{"role": "user", "content": "x"}]}', 404),
    ],
)
def test_odd_bodies_get_a_clean_answer(body: bytes, status: int, url: str) -> None:
    found, answer = ask(url, "/v1/chat/completions", body)
    assert found == status, answer
    assert status == 200 or set(answer["error"]) == {"message", "type", "param", "code"}


def test_another_hosts_name_is_refused_without_a_key(url: str) -> None:
    status, answer = ask(url, "/v1/chat/completions", CHAT, Host="evil.example")
    assert status == 403 and "localhost" in answer["error"]["message"]
    assert ask(url, "/v1/chat/completions", CHAT, Host="localhost:1")[0] == 200


def test_forms_of_a_browser_are_not_read(url: str) -> None:
    headers = {"Content-Type": "text/plain"}
    assert ask(url, "/v1/chat/completions", json.dumps(CHAT), **headers)[0] == 422


def test_other_machines_are_served_only_with_a_key(some: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="--api-key"):
        api.server({"lora": some["lora"]}, host="0.0.0.0", port=0)
    server = api.server({"lora": some["lora"]}, host="0.0.0.0", port=0, api_key="secret")
    with server.in_background() as url:
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert ask(url, "/v1/chat/completions", CHAT)[0] == 401
        assert ask(url, "/v1/chat/completions", CHAT, Authorization="Bearer secre")[0] == 401
        assert ask(url, "/v1/chat/completions", CHAT, Authorization="Bearer secret", Host="any.example")[0] == 200


def test_a_port_that_is_taken_is_told(url: str, some: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="--port"):
        api.server({"lora": some["lora"]}, port=int(url.removesuffix("/v1").rpartition(":")[2]))


# ---- loading while it runs


def test_runs_come_and_go_while_the_server_answers(url: str, runs: dict[str, Path]) -> None:
    status, answer = ask(url, "/v1/load_lora_adapter", {"lora_name": "more", "lora_path": "prefix"})
    assert status == 200, answer
    assert ask(url, "/v1/chat/completions", {**CHAT, "model": "more"})[0] == 200
    status, answer = ask(url, "/v1/load_lora_adapter", {"lora_name": "more", "lora_path": "prefix"})
    assert status == 400 and "already" in answer["error"]["message"]
    assert ask(url, "/v1/unload_lora_adapter", {"lora_name": "more"})[0] == 200
    assert ask(url, "/v1/chat/completions", {**CHAT, "model": "more"})[0] == 404
    assert ask(url, "/v1/unload_lora_adapter", {"lora_name": "more"})[0] == 404
    status, answer = ask(url, "/v1/unload_lora_adapter", {"lora_name": "tiny"})
    assert status == 400 and "stays" in answer["error"]["message"]


@pytest.mark.parametrize("name", ["../base", "/etc", "lora/../lora", ".", "..", "lora/artifact"])
def test_names_never_become_paths(name: str, url: str) -> None:
    status, answer = ask(url, "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": name})
    assert status == 404 and "no run" in answer["error"]["message"]
    assert ask(url, "/v1/load_lora_adapter", {"lora_name": name})[0] in (404, 422)


# ---- load, time and the end


@contextmanager
def serving(runs: dict[str, Path], room: Room | None = None, **limits: Any) -> Iterator[tuple[str, Any]]:
    server = api.server(runs, port=0, room=room, limits=Limits(**limits))
    with server.in_background() as url:
        yield url, server.fleet.engines[0]


def endless() -> dict[str, Any]:
    """A request whose reply does not end by itself: every token that could end it is made unlikely."""
    return {**LONG, "logit_bias": {"2": -100, "0": -100}, "temperature": 0}


def until(true: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.01)


def begin(url: str, body: dict[str, Any]) -> HTTPConnection:
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = HTTPConnection(host, int(port), timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


def test_a_body_that_is_too_long_is_refused_whether_or_not_it_says_so(some: dict[str, Path]) -> None:
    with serving(some, body_bytes=20_000) as (url, _):
        assert ask(url, "/v1/chat/completions", b"x" * 20_001)[0] == 413
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as raw:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            raw.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            for _ in range(30):
                raw.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
            raw.sendall(b"0\r\n\r\n")
            assert b" 413 " in raw.recv(1000).split(b"\r\n")[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_place(stream: bool, some: dict[str, Path]) -> None:
    with serving(some) as (url, engine):
        connection = begin(url, {**endless(), "stream": stream})
        until(lambda: engine.active)
        assert connection.sock is not None
        if stream:
            connection.getresponse().read(10)
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        until(lambda: not engine.active)
        assert engine.counts.cancelled == 1 and engine.counts.said_tokens < 500


def test_too_many_that_wait_get_429(some: dict[str, Path]) -> None:
    with serving(some, Room(replies=1, waiting=1)) as (url, engine):
        first = begin(url, endless())
        until(lambda: engine.active)
        second = begin(url, endless())
        until(lambda: engine.waiting)
        status, answer = ask(url, "/v1/chat/completions", CHAT)
        assert status == 429 and answer["error"]["type"] == "rate_limit_error"
        first.close()
        second.close()


def test_a_request_that_takes_too_long_gets_503(some: dict[str, Path]) -> None:
    with serving(some, request_s=0.3) as (url, engine):
        engine.step = lambda: time.sleep(0.05)  # a machine that does not come to it
        status, answer = ask(url, "/v1/chat/completions", CHAT)
        assert status == 503 and answer["error"]["code"] == "timeout"
        status, answer = ask(url, "/v1/chat/completions", {**CHAT, "stream": True})
        assert status == 200 and '"code":"timeout"' in answer["text"] and answer["text"].endswith("[DONE]\n\n")


def test_a_step_that_fails_ends_its_replies_and_not_the_server(
    some: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(some) as (url, engine):
        step, engine.forward.next_token = engine.forward.next_token, lambda hidden: 1 / 0
        status, answer = ask(url, "/v1/chat/completions", CHAT)
        assert status == 503 and "ZeroDivisionError" in answer["error"]["message"]
        engine.forward.next_token = step
        assert ask(url, "/v1/chat/completions", CHAT)[0] == 200
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_more_keys_and_values_than_there_is_memory_for_are_refused(some: dict[str, Path]) -> None:
    with serving(some, Room(cache_bytes=200 << 10)) as (url, _):
        status, answer = ask(url, "/v1/chat/completions", LONG)
        assert status == 400 and "--cache-memory" in answer["error"]["message"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_replies_end_and_takes_no_more(number: int, some: dict[str, Path]) -> None:
    words = [sys.executable, "-m", "heptune.cli.main", "serve", str(some["lora"]), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("Serving at"))
    url = line.split()[2]
    found: list[tuple[int, dict[str, Any]]] = []
    body = {**endless(), "max_tokens": 900}
    thread = threading.Thread(target=lambda: found.append(ask(url, "/v1/chat/completions", body)))
    thread.start()
    root = url.removesuffix("/v1")
    until(lambda: b'heptune_active{engine="0"} 1.0' in urllib.request.urlopen(f"{root}/metrics").read())
    process.send_signal(number)
    thread.join()
    assert found[0][0] == 200 and found[0][1]["usage"]["completion_tokens"] == 900
    assert process.wait(30) == 0
    assert "The server has stopped." in process.stdout.read()
    process.stdout.close()
