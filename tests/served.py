"""What the tests of serving have in common: techniques that learn fast, and how a model is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from heptune import api, techniques
from heptune.data.record import Message
from heptune.models.quiet import quiet
from heptune.scoring.generate import prompt_ids
from heptune.service.choice import Choice
from heptune.service.fleet import Fleet, Served
from heptune.service.reply import End, Piece, Reply
from heptune.service.text import Growing

SEVEN = ("lora", "qlora", "adapter", "prefix", "prompt", "p_tuning", "p_tuning_v2")
RATES = {"prompt": 0.3, "p_tuning": 0.1, "prefix": 0.1, "p_tuning_v2": 0.3, "full": 1e-2, "freeze": 3e-2}

Make = Callable[..., Path]


def technique_of(name: str) -> object:
    layers = {"layers": 1} if name == "freeze" else {}
    return techniques.build(name, {"learning_rate": RATES.get(name, 3e-2), **layers})


class Heard(list[Piece | End]):
    @property
    def text(self) -> str:
        return "".join(each.text for each in self if isinstance(each, Piece))

    @property
    def reason(self) -> str:
        assert isinstance(self[-1], End)
        return self[-1].reason


def ask(served: Served, question: str, limit: int = 24, **choice: object) -> tuple[Reply, Heard]:
    heard = Heard()
    template = served.template
    reply = Reply(
        served,
        served.rows,
        served.chat_tokens([Message("user", question)]),
        limit,
        Choice(**choice),  # type: ignore[arg-type]
        frozenset(template.stop_tokens),
        Growing(template.tokenizer),
        heard.append,
    )
    return reply, heard


def until_done(fleet: Fleet) -> None:
    for _ in range(2000):
        if not any(engine.busy for engine in fleet.engines):
            return
        for engine in fleet.engines:
            engine.turn()
    raise AssertionError("the engine does not come to an end")


def greedy(folder: Path, question: str, limit: int = 24) -> list[int]:
    """What transformers' own generation says with the run's model, token by token."""
    tuned = api.open_run(folder)
    asked = [Message("user", question)]
    prompt = torch.tensor([prompt_ids(tuned.anatomy.placement, tuned.template, asked, "")])
    with quiet(), torch.no_grad():
        out = tuned.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=limit,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=list(tuned.template.stop_tokens),
            pad_token_id=tuned.template.stop_tokens[0],
        )
    said = out[0, prompt.shape[1] :].tolist()
    return said[:-1] if said[-1] in tuned.template.stop_tokens else said
