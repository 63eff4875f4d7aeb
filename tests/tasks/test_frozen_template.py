"""The chat template that a run was trained with is the one that it is resumed, scored and used with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from heptune import api
from heptune.runs.run import Run
from heptune.tasks.template import DEFAULT_TEMPLATE
from tiny import CHAT_TEMPLATE, tiny_model, tiny_tokenizer

LATER = CHAT_TEMPLATE.replace("message['content'] +", "'(later) ' + message['content'] +")


@pytest.mark.parametrize("own", [CHAT_TEMPLATE, None], ids=["its own", "the default"])
def test_a_base_whose_template_changes_later_changes_nothing(tmp_path: Path, own: str | None) -> None:
    base, data = tmp_path / "base", tmp_path / "talk.jsonl"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = own
    tiny_model("llama").save_pretrained(base)
    tokenizer.save_pretrained(base)
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(20)]
    data.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    run = api.tune(str(base), data, out=tmp_path / "run", max_steps=2, batch_size=2)
    assert run.manifest["template"] == (own or DEFAULT_TEMPLATE)
    question = [api.Message("user", "What is 3?")]
    before = api.open_run(run.folder)
    scored = api.evaluate(run.folder)
    said = before.reply(question, api.Sampling(max_tokens=8))

    tokenizer.chat_template = LATER
    tokenizer.save_pretrained(base)
    after = api.open_run(run.folder)
    assert after.template.tokenizer.chat_template == LATER
    assert after.template.text == (own or DEFAULT_TEMPLATE)
    assert after.template.prompt(question) == before.template.prompt(question)
    assert after.reply(question, api.Sampling(max_tokens=8)) == said
    assert api.evaluate(run.folder).rows == scored.rows


def test_a_run_that_is_resumed_keeps_its_template(tmp_path: Path) -> None:
    base, data = tmp_path / "base", tmp_path / "talk.jsonl"
    tokenizer = tiny_tokenizer()
    tiny_model("llama").save_pretrained(base)
    tokenizer.save_pretrained(base)
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(20)]
    data.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    settings = {"max_steps": 2, "batch_size": 2}
    whole = api.tune(str(base), data, out=tmp_path / "whole", **settings)
    again = api.tune(str(base), data, out=tmp_path / "again", **settings)
    tokenizer.chat_template = LATER
    tokenizer.save_pretrained(base)
    manifest = {key: value for key, value in again.manifest.items() if key != "result"}
    for name in ("checkpoints", "artifact"):
        (again.folder / name).rename(tmp_path / name)
    (again.folder / "manifest.json").write_text(json.dumps({**manifest, "status": "new"}), "utf-8")
    resumed = api.resume(again.folder)
    assert resumed.manifest["template"] == CHAT_TEMPLATE
    assert resumed.manifest["result"]["tokens"] == whole.manifest["result"]["tokens"]
    assert resumed.manifest["result"]["best_validation"] == whole.manifest["result"]["best_validation"]
    assert Run(again.folder).manifest["status"] == "finished"
