"""The official client of OpenAI drives every endpoint of a real server."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from heptune import api
from heptune.service.asking import Limits
from heptune.service.engine import Room
from served import SEVEN, Make, greedy, technique_of

QUESTION = [{"role": "user", "content": "What is 7?"}]


@dataclass(frozen=True)
class Site:
    url: str
    client: openai.OpenAI


@pytest.fixture(scope="module")
def site(runs: dict[str, Path], base: Path, encoder: Path, reviews: Path, people: Path, make: Make) -> Iterator[Site]:
    others = {
        "moods": make("moods", base, reviews, technique_of("lora")),
        "names": make("names", base, people, technique_of("lora"), max_steps=2),
        "label": make("label", encoder, reviews, technique_of("lora")),
        "tag": make("tag", encoder, people, technique_of("prefix")),
        "full": make("full", base, reviews, technique_of("full"), max_steps=2),
    }
    limits = Limits(max_tokens=64, reply_tokens=16)
    server = api.server({**runs, **others}, port=0, room=Room(replies=8), limits=limits)
    with server.in_background() as url:
        yield Site(url, openai.OpenAI(base_url=url, api_key="none", max_retries=0))


def test_models_are_listed_with_their_base(site: Site) -> None:
    models = {model.id: model for model in site.client.models.list()}
    assert set(SEVEN) <= set(models) and models["qlora"].model_extra is not None
    assert models["qlora"].model_extra["parent"] == "tiny"
    assert models["qlora"].model_extra["technique"] == "qlora"
    assert models["tiny"].model_extra is not None and models["tiny"].model_extra["parent"] is None
    assert site.client.models.retrieve("prefix").id == "prefix"
    with pytest.raises(openai.NotFoundError) as error:
        site.client.models.retrieve("nobody")
    assert error.value.body is not None and error.value.body["code"] == "model_not_found"  # type: ignore[index]


@pytest.mark.parametrize("name", SEVEN)
def test_a_chat_gives_the_models_own_reply(name: str, site: Site, runs: dict[str, Path]) -> None:
    answer = site.client.chat.completions.create(model=name, messages=QUESTION, temperature=0, max_tokens=12)  # type: ignore[arg-type]
    want = greedy(runs[name], "What is 7?", 12)
    tokenizer = api.open_run(runs[name]).template.tokenizer
    assert answer.choices[0].message.content == tokenizer.decode(want, skip_special_tokens=True)
    assert answer.usage is not None and answer.usage.completion_tokens == len(want)
    assert answer.choices[0].finish_reason == ("length" if len(want) == 12 else "stop")


def test_a_stream_says_the_same_piece_by_piece(site: Site) -> None:
    ask = {"model": "lora", "messages": QUESTION, "seed": 5, "temperature": 1.5, "max_tokens": 20}
    whole = site.client.chat.completions.create(**ask)  # type: ignore[call-overload]
    pieces = list(
        site.client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    )
    assert pieces[0].choices[0].delta.role == "assistant"
    said = "".join(c.delta.content or "" for piece in pieces for c in piece.choices)
    assert said == whole.choices[0].message.content and len(pieces) > 3
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_seed_decides_and_n_replies_differ(site: Site) -> None:
    def said(seed: int) -> list[str | None]:
        answer = site.client.chat.completions.create(
            model="prompt",
            messages=QUESTION,  # type: ignore[arg-type]
            seed=seed,
            n=3,
            temperature=1.5,
            max_tokens=8,
        )
        return [choice.message.content for choice in answer.choices]

    one = said(1)
    assert one == said(1) != said(2) and len(set(one)) == 3


def test_stop_strings_end_a_reply_and_are_no_part_of_it(site: Site) -> None:
    def said(**more: object) -> openai.types.chat.ChatCompletion:
        return site.client.chat.completions.create(  # type: ignore[call-overload, no-any-return]
            model="tiny", messages=QUESTION, temperature=0, max_tokens=20, **more
        )

    whole = said().choices[0].message.content
    assert whole is not None and len(whole) > 8
    stop = whole[4:7]
    found = said(stop=[stop, "never said at all"]).choices[0]
    assert found.message.content == whole[: whole.index(stop)] and found.finish_reason == "stop"
    pieces = site.client.chat.completions.create(
        model="tiny",
        messages=QUESTION,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=20,
        stop=stop,
        stream=True,
    )
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == found.message.content


def test_log_probabilities_are_those_of_the_model(site: Site, runs: dict[str, Path]) -> None:
    import torch

    answer = site.client.chat.completions.create(
        model="adapter",
        messages=QUESTION,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=4,
        logprobs=True,
        top_logprobs=3,
    )
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content is not None
    tuned = api.open_run(runs["adapter"])
    tokens = tuned.template.prompt([api.Message("user", "What is 7?")])
    for entry in answer.choices[0].logprobs.content:
        with torch.no_grad():
            log_p = tuned.model(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)
        best = log_p.topk(3)
        assert entry.logprob == pytest.approx(float(best.values[0]), abs=1e-5)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-5)
        tokens.append(int(best.indices[0]))


def test_completions_take_texts_and_tokens(site: Site) -> None:
    client = site.client
    texts = client.completions.create(model="lora", prompt=["What is", "The text"], temperature=0, max_tokens=6, n=2)
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
    assert texts.choices[0].text == texts.choices[1].text != texts.choices[2].text
    assert texts.usage is not None and texts.usage.completion_tokens == 24
    from tiny import tiny_tokenizer

    tokens = tiny_tokenizer().encode("What is")
    same = client.completions.create(model="lora", prompt=tokens, temperature=0, max_tokens=6, logprobs=2)
    assert same.choices[0].text == texts.choices[0].text
    assert same.choices[0].logprobs is not None and len(same.choices[0].logprobs.tokens or []) == 6
    stream = client.completions.create(model="lora", prompt="What is", temperature=0, max_tokens=6, stream=True)
    assert "".join(piece.choices[0].text for piece in stream) == texts.choices[0].text


def test_penalties_and_biases_change_what_is_said(site: Site) -> None:
    def said(**more: object) -> str:
        found = site.client.completions.create(  # type: ignore[call-overload]
            model="tiny", prompt="What is", temperature=0, max_tokens=12, **more
        )
        return str(found.choices[0].text)

    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    wanted = tokenizer.encode(" book")[0]
    assert said(logit_bias={str(wanted): 100}) == tokenizer.decode([wanted] * 12)
    assert said(frequency_penalty=2.0) != said()


def post(site: Site, path: str, body: object) -> dict[str, object]:
    request = urllib.request.Request(
        f"{site.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["moods", "label", "full"])
def test_classify_gives_the_runs_own_probabilities(
    name: str, site: Site, make: Make, base: Path, encoder: Path, reviews: Path
) -> None:
    texts = ["good book 3", "bad book 9", "a text"]
    answer = site.client.post("/classify", body={"model": name, "input": texts}, cast_to=object)
    own = api.open_run(make(name, base, reviews, None))
    for text, found in zip(texts, answer["data"], strict=True):  # type: ignore[index]
        want = own.classify(text)
        assert found["probabilities"] == pytest.approx(want, abs=1e-5)
        assert found["label"] == next(iter(want)) and found["labels"] == [found["label"]]


@pytest.mark.parametrize("name", ["names", "tag"])
def test_extract_gives_the_runs_own_entities(name: str, site: Site, make: Make, base: Path, people: Path) -> None:
    texts = ["Ada lives in London with 3 cats.", "Grace lives in Paris with 8 cats."]
    answer = post(site, "/extract", {"model": name, "input": texts})
    own = api.open_run(make(name, base, people, None))
    for text, found in zip(texts, answer["data"], strict=True):  # type: ignore[call-overload]
        want = [{"text": e.text, "type": e.type, "start": e.start, "end": e.end} for e in own.extract(text)]
        assert found["entities"] == want
    if name == "tag":
        assert answer["data"][0]["entities"]  # type: ignore[index]


def test_what_cannot_be_is_refused_with_words(site: Site) -> None:
    def refused(path: str, **body: object) -> openai.APIStatusError:
        with pytest.raises(openai.APIStatusError) as error:
            site.client.post(path, body=body, cast_to=object)
        return error.value

    found = refused("/chat/completions", model="label", messages=QUESTION)
    assert found.status_code == 400 and "encoder" in found.message
    found = refused("/classify", model="lora", input="x")
    assert found.status_code == 400 and "learned chat" in found.message
    found = refused("/chat/completions", model="lora", messages=QUESTION, max_tokens=65)
    assert found.status_code == 400 and "at most 64" in found.message
    found = refused("/chat/completions", model="lora", messages=QUESTION, top_k=5)
    assert found.status_code == 422 and found.body["param"] == "top_k"  # type: ignore[index]
    found = refused("/chat/completions", model="lora", messages=[{"role": "user", "content": "word " * 900}])
    assert found.status_code == 400 and found.body["code"] == "context_length_exceeded"  # type: ignore[index]
    found = refused("/load_lora_adapter", lora_name="more", lora_path="lora")
    assert found.status_code == 403 and "--allow" in found.message
    assert refused("/nothing").status_code == 404


def test_health_and_metrics(site: Site) -> None:
    root = site.url.removesuffix("/v1")
    with urllib.request.urlopen(f"{root}/health") as answer:
        assert json.loads(answer.read()) == {"status": "ok"}
    site.client.chat.completions.create(model="lora", messages=QUESTION, max_tokens=3)  # type: ignore[arg-type]
    with urllib.request.urlopen(f"{root}/metrics") as answer:
        text = answer.read().decode()
    assert 'heptune_requests_total{route="/v1/chat/completions",status="200"}' in text
    assert 'heptune_said_tokens_total{engine="0"}' in text
