"""How fast many clients are served by many tuned models on one base, beside PEFT one request at a time.

    python benchmarks/serving.py --data ../shared/data --runs runs/serving --threads 2
    python benchmarks/serving.py --data ../shared/data --runs runs/serving --threads 2 --soak 600

Clients each ask one question after the other, every time another model: LoRA twice, Prefix Tuning, Prompt Tuning,
P-Tuning and P-Tuning v2 (what PEFT has too), greedy replies of at most `--tokens` tokens. The runs are trained for a
few steps where they are not there yet; what they learned does not matter.

- heptune: `heptune serve`, a process of its own, asked over HTTP
- peft: one process with PEFT's models on the same base; requests wait in one line, are answered one after the other,
  and the adapter is switched for each; no HTTP. LoRA's adapters share one base, the soft prompts another
- heptune-base and transformers: the same requests to the untouched base, by `heptune serve` and by `transformers
  serve` with continuous batching, which knows no adapters

Contenders take turns, each in a process of its own, and another one begins each round. Ratios are taken within a round.
A reply of PEFT counts as the same where its text is: both are greedy in float32. Results go to
docs/results/serving.json; the tables are made by docs/generate.py.

`--soak SECONDS` keeps one server with all the runs (an adapter and QLoRA too) under load: clients stream, stop early,
hang up, send nonsense, load and unload a run. It watches the server's memory and the answers' status.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import heptune
from heptune.data.readers import read
from heptune.runs.files import write_json

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "serving.json"
BASE = "smollm2-135m"
# What PEFT can serve too, and what it cannot beside them.
SHARED = ("lora", "lora-2", "prefix", "prompt", "p_tuning", "p_tuning_v2")
ALL = (*SHARED, "adapter", "qlora")


@dataclass(frozen=True)
class Asked:
    """One request: the client it comes from, the model, and the question."""

    client: int
    model: str
    question: str


@dataclass(frozen=True)
class Answered:
    """What came of it: seconds from asking to the whole reply, its tokens and its text."""

    client: int
    model: str
    latency_s: float
    tokens: int
    text: str


def prepare(folder: Path, data: Path) -> dict[str, Path]:
    """A run of each technique; those that are there already stay."""
    found = {}
    for name in ALL:
        found[name] = folder / name
        if not (folder / name / "artifact").is_dir():
            settings: dict[str, Any] = {"max_steps": 3, "batch_tokens": 1024, "seed": len(found), "validation_limit": 8}
            heptune.tune(BASE, data / "chitchat", technique=name.split("-")[0], out=folder / name, **settings)
    return found


def requests(data: Path, clients: int, each: int, models: Sequence[str]) -> list[Asked]:
    """Questions that people asked; every client's in a row, each to another model than the one before."""
    opened = [m.content for r in read(data / "chitchat" / "test.jsonl").records for m in r.messages if m.role == "user"]
    questions = [text for text in dict.fromkeys(opened) if 20 <= len(text) <= 200]
    random.Random(0).shuffle(questions)
    return [
        Asked(client, models[(client + place) % len(models)], questions[(client * each + place) % len(questions)])
        for client in range(clients)
        for place in range(each)
    ]


# ---- one contender in this process


def one_at_a_time(runs: dict[str, Path], asked: Sequence[Asked], tokens: int) -> list[Answered]:
    """PEFT: one line of requests, the adapter switched for each."""
    import peft
    import torch

    from heptune.models.load import load_base
    from heptune.models.quiet import quiet
    from heptune.tasks.template import ChatTemplate

    template = ChatTemplate(load_base(BASE).tokenizer)
    with_lora: Any = None
    models: dict[str, Any] = {}
    bare = load_base(BASE).model
    for name in SHARED:
        artifact = str(runs[name] / "artifact")
        if not name.startswith("lora"):
            models[name] = peft.PeftModel.from_pretrained(bare, artifact).eval()
        elif with_lora is None:
            with_lora = peft.PeftModel.from_pretrained(load_base(BASE).model, artifact, adapter_name=name).eval()
        else:
            with_lora.load_adapter(artifact, adapter_name=name)

    @torch.no_grad()
    def reply(model: str, question: str) -> tuple[str, int]:
        if model.startswith("lora"):
            with_lora.set_adapter(model)
        chosen = with_lora if model.startswith("lora") else models[model]
        prompt = torch.tensor([template.prompt([heptune.Message("user", question)])])
        with quiet():
            out = chosen.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                do_sample=False,
                repetition_penalty=1.0,
                eos_token_id=list(template.stop_tokens),
                pad_token_id=template.stop_tokens[0],
            )
        said = out[0, prompt.shape[1] :].tolist()
        said = said[:-1] if said[-1] in template.stop_tokens else said
        return template.tokenizer.decode(said, skip_special_tokens=True), len(said)

    for name in SHARED:
        reply(name, "Hello!")
    lines = {client: deque(each for each in asked if each.client == client) for client in {a.client for a in asked}}
    begin = time.perf_counter()
    waiting = deque((begin, line.popleft()) for line in lines.values())
    found = []
    while waiting:
        since, each = waiting.popleft()
        text, count = reply(each.model, each.question)
        now = time.perf_counter()
        found.append(Answered(each.client, each.model, now - since, count, text))
        if lines[each.client]:
            waiting.append((now, lines[each.client].popleft()))
    return found


# ---- a server and its clients


@contextlib.contextmanager
def server(words: Sequence[str], ready: str, environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """A server's process: its address, as it says it with the words `ready`, and its number."""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment}
    )
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            found = re.search(ready, line)
            if found:
                break
        else:
            raise RuntimeError(f"the server did not start: {''.join(said)[-2000:]}")
        threading.Thread(target=lambda: deque(process.stdout, maxlen=0), daemon=True).start()  # type: ignore[arg-type]
        yield found[1], process.pid
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def served(url: str, asked: Sequence[Asked], tokens: int) -> list[Answered]:
    """What clients are told, all of them at the same time."""
    found: list[Answered] = []
    failures: list[BaseException] = []

    def client(own: Sequence[Asked]) -> None:
        try:
            place = urlsplit(url)
            connection = HTTPConnection(place.hostname or "", place.port, timeout=600)
            for each in own:
                began = time.perf_counter()
                body = {
                    "model": each.model,
                    "messages": [{"role": "user", "content": each.question}],
                    "max_tokens": tokens,
                    "temperature": 0,
                }
                headers = {"Content-Type": "application/json"}
                connection.request("POST", f"{place.path}/chat/completions", json.dumps(body), headers)
                answer = json.loads(connection.getresponse().read())
                text = answer["choices"][0]["message"]["content"]
                count = answer["usage"]["completion_tokens"]
                found.append(Answered(each.client, each.model, time.perf_counter() - began, count, text))
            connection.close()
        except BaseException as error:
            failures.append(error)

    everyone = sorted({each.client for each in asked})
    threads = [threading.Thread(target=client, args=([a for a in asked if a.client == c],)) for c in everyone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return found


def ours(runs: dict[str, Path], threads: int) -> Any:
    """`heptune serve` with these runs."""
    words = [sys.executable, "-m", "heptune.cli.main", "serve", *(f"{name}={path}" for name, path in runs.items())]
    words += ["--port", "0", "--threads", str(threads)]
    return server(words, r"Serving at (\S+)", {"COLUMNS": "200"})


def theirs(folder: Path, threads: int) -> Any:
    """`transformers serve` with the base."""
    port = str(random.randrange(20_000, 40_000))
    words = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--continuous-batching"]
    words += ["--port", port, "--device", "cpu", "--dtype", "float32", "--log-level", "info"]
    environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    return server(words, r"Uvicorn running on (http://\S+?)(?: |$)", environment)


# ---- measuring


def peak_bytes(process: int | str) -> int:
    """The most resident memory that a process ever had."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) << 10  # type: ignore[index]


def resident_bytes(process: int) -> int:
    """The resident memory that a process has now."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) << 10  # type: ignore[index]


def summary(answers: Sequence[Answered], seconds: float, memory: int) -> dict[str, Any]:
    """Throughput, latencies and memory of one contender in one round."""
    latencies = sorted(answer.latency_s for answer in answers)
    tokens = sum(answer.tokens for answer in answers)
    return {
        "requests": len(answers),
        "tokens": tokens,
        "seconds": seconds,
        "requests_per_s": len(answers) / seconds,
        "tokens_per_s": tokens / seconds,
        "p50_s": statistics.median(latencies),
        "p95_s": latencies[min(len(latencies) - 1, round(0.95 * (len(latencies) - 1)))],
        "peak_memory_bytes": memory,
    }


def measured(begin: Callable[[], Any], asked: Sequence[Asked], tokens: int) -> tuple[dict[str, Any], list[Answered]]:
    """One contender that is a server."""
    with begin() as (url, process):
        url = url if url.endswith("/v1") else f"{url}/v1"
        served(url, [Asked(0, name, "Hello!") for name in dict.fromkeys(a.model for a in asked)], 4)
        began = time.perf_counter()
        answers = served(url, asked, tokens)
        return summary(answers, time.perf_counter() - began, peak_bytes(process)), answers


def same(ours: Sequence[Answered], theirs: Sequence[Answered]) -> int:
    """How many replies are the same text."""

    def texts(answers: Sequence[Answered]) -> Counter[tuple[int, str, str]]:
        return Counter((a.client, a.model, a.text) for a in answers)

    return (texts(ours) & texts(theirs)).total()


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All contenders in turn."""
    runs = prepare(options.runs, options.data)
    shared = {name: runs[name] for name in SHARED}
    mixed = requests(options.data, options.clients, options.each, SHARED)
    plain = [Asked(each.client, BASE, each.question) for each in mixed]
    folder = options.runs / "base"
    if options.transformers and not folder.is_dir():
        from heptune.models.load import load_base

        base = load_base(BASE)
        base.model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
    their_plain = [Asked(each.client, str(folder), each.question) for each in mixed]
    child = [sys.executable, __file__, "--child", "--data", str(options.data), "--runs", str(options.runs)]
    child += ["--clients", str(options.clients), "--each", str(options.each), "--tokens", str(options.tokens)]

    def peft() -> tuple[dict[str, Any], list[Answered]]:
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(child, stdout=subprocess.PIPE, text=True, env=environment, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        return told["summary"], [Answered(**each) for each in told["answers"]]

    contenders: dict[str, Callable[[], tuple[dict[str, Any], list[Answered]]]] = {
        "heptune": lambda: measured(lambda: ours(shared, options.threads), mixed, options.tokens),
        "peft": peft,
        "heptune-base": lambda: measured(lambda: ours(shared, options.threads), plain, options.tokens),
    }
    if options.transformers:
        contenders["transformers"] = lambda: measured(
            lambda: theirs(folder, options.threads), their_plain, options.tokens
        )
    rounds: list[dict[str, Any]] = []
    for number in range(options.rounds):
        order = list(contenders)
        order = order[number % len(order) :] + order[: number % len(order)]
        found, said = {}, {}
        for name in order:
            found[name], said[name] = contenders[name]()
            print(f"round {number + 1}: {name}: {found[name]['tokens_per_s']:.1f} tokens/s", flush=True)
        found["same_as_peft"] = same(said["heptune"], said["peft"])
        rounds.append(found)
    return {"clients": options.clients, "each": options.each, "tokens": options.tokens, "rounds": rounds}


def child(options: argparse.Namespace) -> None:
    """PEFT's part, in a process of its own; the last line is what it found."""
    runs = {name: options.runs / name for name in SHARED}
    asked = requests(options.data, options.clients, options.each, SHARED)
    began = time.perf_counter()
    answers = one_at_a_time(runs, asked, options.tokens)
    del began
    seconds = max(sum(a.latency_s for a in answers if a.client == client) for client in {a.client for a in answers})
    told = summary(answers, seconds, peak_bytes("self"))
    print(json.dumps({"summary": told, "answers": [asdict(answer) for answer in answers]}))


# ---- the soak


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """One server under every kind of load, its memory watched."""
    runs = prepare(options.runs, options.data)
    questions = [each.question for each in requests(options.data, options.clients, 20, ALL)]
    statuses: Counter[str] = Counter()
    memory: list[tuple[float, int]] = []
    over = threading.Event()
    words = {**runs}
    with server_with_loading(words, options) as (url, process):
        place = urlsplit(url)

        def client(number: int) -> None:
            draw = random.Random(number)
            while not over.is_set():
                try:
                    statuses[act(place, draw, questions)] += 1
                except OSError:
                    statuses["refused connection"] += 1

        threads = [threading.Thread(target=client, args=(number,)) for number in range(options.clients)]
        for thread in threads:
            thread.start()
        began = time.perf_counter()
        while (now := time.perf_counter() - began) < options.soak:
            memory.append((now, resident_bytes(process)))
            time.sleep(1)
        over.set()
        for thread in threads:
            thread.join()
        memory.append((time.perf_counter() - began, resident_bytes(process)))
    minutes = [max(m for t, m in memory if 60 * k <= t < 60 * (k + 1)) for k in range(int(options.soak // 60))]
    return {"seconds": options.soak, "clients": options.clients, "statuses": dict(statuses), "minute_peaks": minutes}


def server_with_loading(runs: dict[str, Path], options: argparse.Namespace) -> Any:
    """The server of a soak: runs may come and go."""
    words = [sys.executable, "-m", "heptune.cli.main", "serve", *(f"{name}={path}" for name, path in runs.items())]
    words += ["--port", "0", "--threads", str(options.threads), "--allow", str(options.runs)]
    words += ["--cache-memory", "512MiB", "--max-waiting", "24"]
    return server(words, r"Serving at (\S+)", {"COLUMNS": "200"})


def act(place: Any, draw: random.Random, questions: Sequence[str]) -> str:
    """One thing that a client does; the status that it gets."""
    connection = HTTPConnection(place.hostname, place.port, timeout=300)
    headers = {"Content-Type": "application/json"}

    def post(path: str, body: Any) -> Any:
        data = body if isinstance(body, bytes) else json.dumps(body)
        connection.request("POST", f"/v1/{path}", data, headers)
        return connection.getresponse()

    kind = draw.choices(["chat", "stream", "hang up", "nonsense", "come and go"], [50, 25, 15, 8, 2])[0]
    body: dict[str, Any] = {
        "model": draw.choice(ALL),
        "messages": [{"role": "user", "content": draw.choice(questions) * draw.choice([1, 1, 1, 5])}],
        "max_tokens": draw.choice([4, 16, 64]),
        "temperature": draw.choice([0, 1]),
        "n": draw.choice([1, 1, 2]),
    }
    try:
        if kind == "chat":
            answer = post("chat/completions", body)
        elif kind == "nonsense":
            answer = post(
                "chat/completions", draw.choice([b"{", b"\xff", b'{"model": 1}', json.dumps(questions).encode()])
            )
        elif kind == "come and go":
            name = f"run-{draw.randrange(10**6)}"
            post("load_lora_adapter", {"lora_name": name, "lora_path": draw.choice(ALL)}).read()
            post("chat/completions", {**body, "model": name}).read()
            answer = post("unload_lora_adapter", {"lora_name": name})
        else:
            answer = post("chat/completions", {**body, "stream": True})
            if kind == "hang up":
                answer.read(draw.randrange(1, 600))
                return f"{kind}: hung up"
        answer.read()
        return f"{kind}: {answer.status}"
    finally:
        connection.close()


def main() -> int:
    """Measures and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder that holds the sets")
    parser.add_argument("--runs", type=Path, required=True, help="where the runs are, or are put")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--each", type=int, default=3, help="requests of each client")
    parser.add_argument("--tokens", type=int, default=48, help="the longest reply")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-transformers", dest="transformers", action="store_false")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of the soak, instead of the comparison")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return 0
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if options.soak:
        kept["soak"] = {"machine": machine, "threads": options.threads, **soak(options)}
    else:
        kept["comparison"] = {"machine": machine, "threads": options.threads, **compare(options)}
    write_json(options.out, kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
