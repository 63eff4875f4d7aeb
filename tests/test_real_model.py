"""The real pretrained base on real examples: random tiny models prove equations, this proves that they matter."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from heptune.core.errors import BaseModelError
from heptune.data.record import Record
from heptune.demo import DATA
from heptune.engine.forward import Forward
from heptune.engine.loop import accumulate
from heptune.engine.optimizer import adamw
from heptune.engine.settings import Settings
from heptune.models.anatomy import dissect
from heptune.models.load import Base, load_base
from heptune.tasks.classify import Classify
from heptune.tasks.template import ChatTemplate
from heptune.techniques.lora import Lora

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base() -> Base:
    try:
        return load_base("smollm2-135m")
    except BaseModelError as error:
        pytest.skip(f"the embedded base cannot be had here: {error}")


@pytest.fixture(scope="module")
def records() -> list[Record]:
    rows = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]
    return [Record(i, text=row["text"], label=row["label"]) for i, row in enumerate(rows)]


def test_the_forest_is_exact_and_lora_learns(base: Base, records: list[Record]) -> None:
    task, template = Classify.from_records(records), ChatTemplate(base.tokenizer)
    examples = [task.encode(record, i, template, 512)[0] for i, record in enumerate(records[:8])]
    forward = Forward(dissect(base.model))
    assert forward.attends_over_forests

    scores = forward.score(examples)
    for example, score in zip(examples, scores, strict=True):
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([example.tokens]), use_cache=False).logits[0].double()
        log_p = logits.log_softmax(-1)
        alone = -sum(float(log_p[t - 1, example.tokens[t]]) for t, s in enumerate(example.supervised) if s)
        assert score == pytest.approx(alone, rel=2e-5)

    attached = Lora(rank=8).attach(forward.anatomy, seed=0)
    assert np.array_equal(forward.score(examples), scores)  # B = 0: nothing has changed
    optimizer = adamw(attached.parameters, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    losses = []
    for step in range(8):
        losses.append(accumulate(forward, attached, examples, Settings(), step)[0])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert losses[-1] < 0.5 * losses[0]
    attached.detach()
    assert np.array_equal(forward.score(examples), scores)
