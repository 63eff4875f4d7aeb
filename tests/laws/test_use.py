"""Laws 9 and 11: cached generation is the full forward, and a technique learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from heptune import techniques
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from laws.cases import BATCH, MAIN_CASES, TOKENS, Case
from tiny import tiny_model


@pytest.mark.parametrize("case", MAIN_CASES, ids=str)
def test_law_9_cached_generation_equals_the_full_forward(case: Case) -> None:
    anatomy, _ = case.trained(torch.float32)
    Forward(anatomy)  # installs forest attention; ordinary calls must go on as before
    prompt = TOKENS[:, :9]
    settings = {"do_sample": False, "max_new_tokens": 8, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    generated = anatomy.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **settings)
    assert generated.shape == (2, 17)
    with torch.no_grad():
        full = anatomy.model(input_ids=generated, use_cache=False).logits
    assert torch.equal(generated[:, 9:], full[:, 8:-1].argmax(-1))


# What the tiny, random, frozen models can be taught with: a prompt has to be longer than in the other laws' cases, and
# each technique needs a rate of its own.
LEARNING: dict[str, tuple[dict[str, Any], float]] = {
    "prompt": ({"virtual_tokens": 30}, 0.3),
    "p_tuning": ({"virtual_tokens": 30, "encoder": "mlp"}, 0.02),
    "prefix": ({"virtual_tokens": 30, "encoder_hidden": 32}, 0.02),
    "p_tuning_v2": ({"virtual_tokens": 30}, 0.1),
}


@pytest.mark.parametrize("case", [c for c in MAIN_CASES if c.family in ("llama", "gpt2", "gemma3")], ids=str)
def test_law_11_it_learns(case: Case) -> None:
    # Large weights: with a frozen head and final norm, small ones cannot give any token a high probability. A window as
    # long as the texts: what stands before them has to stay in sight.
    overrides = {"sliding_window": 64} if case.family == "gemma3" else {}
    anatomy = dissect(tiny_model(case.family, initializer_range=0.5, **overrides))
    settings, rate = LEARNING.get(case.technique, (None, 2e-2))
    technique = case.build() if settings is None else techniques.build(case.technique, settings)
    attached = technique.attach(anatomy, seed=0)
    forward = Forward(anatomy)
    optimizer = torch.optim.AdamW(attached.parameters.values(), lr=rate, weight_decay=0.0)
    examples = [BATCH[i] for i in (1, 2, 3, 4)]
    start = forward.score(examples).sum()
    # Prompts steer a model that is random itself, which takes longer and goes less far.
    for step in range(40 if settings is None else 120):
        attached.begin_step(step)
        with forward.loss(examples) as batch:
            batch.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    attached.begin_step(None)
    assert forward.score(examples).sum() < (0.05 if settings is None else 0.2) * start
