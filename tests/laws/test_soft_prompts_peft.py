"""Soft prompts against PEFT: the same loss and gradient on equal weights, and folders that go both ways."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import heptune
from heptune import techniques
from heptune.core.errors import TechniqueError
from heptune.engine.forward import Forward
from heptune.models.anatomy import dissect
from heptune.techniques.p_tuning import PTuning
from heptune.techniques.p_tuning_v2 import PTuningV2
from heptune.techniques.prefix import Prefix
from heptune.techniques.prompt import Prompt
from laws.cases import BATCH, TOKENS, disturb, logits, saved
from tiny import tiny_model, tiny_tokenizer
from tolerances import FLOAT32, FLOAT64_WITH_FLOAT32_INSIDE, assert_near

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

FAMILIES = ("llama", "gpt2", "glm4", "gemma3", "gpt_neox")
P = 4

# Our technique, PEFT's configuration that means the same, and where PEFT's own parameters lie.
PAIRS: dict[str, tuple[Any, Any]] = {
    "prompt": (Prompt(P), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)),
    "p_tuning_mlp": (
        PTuning(P, encoder="mlp", encoder_hidden=6),
        peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, encoder_hidden_size=6),
    ),
    "p_tuning_lstm": (
        PTuning(P, encoder="lstm", encoder_hidden=6),
        peft.PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=P,
            encoder_hidden_size=6,
            encoder_reparameterization_type="LSTM",
        ),
    ),
    "prefix": (
        Prefix(P, init="random", encoder_hidden=6),
        peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=P, prefix_projection=True, encoder_hidden_size=6
        ),
    ),
    "p_tuning_v2": (
        PTuningV2(P, init="random"),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P, prefix_projection=False),
    ),
}


def _pefts(pair: str, family: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = copy.deepcopy(PAIRS[pair][1])  # PEFT writes the base's sizes into it
    model = peft.get_peft_model(tiny_model(family).to(dtype), config).eval()
    return model.to(dtype)


def _peft_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """PEFT's trained parameters under our names."""
    found = {n.removeprefix("prompt_encoder.default."): p for n, p in model.named_parameters() if p.requires_grad}
    return found if len(found) > 1 else {"prompt_embeddings": next(iter(found.values()))}


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    """PEFT gives logits for virtual tokens at the input, too: those come first."""
    return model(input_ids=TOKENS).logits[:, -TOKENS.shape[1] :]


def _loss(model: Any) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for example in BATCH:
        log_p = (
            model(input_ids=torch.tensor([example.tokens])).logits[0, -len(example.tokens) :].double().log_softmax(-1)
        )
        total = total - sum(log_p[t - 1, example.tokens[t]] for t, s in enumerate(example.supervised) if s)
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pair", PAIRS)
def test_law_4_loss_and_gradient_equal_pefts(pair: str, family: str) -> None:
    anatomy = dissect(tiny_model(family).double())
    attached = PAIRS[pair][0].attach(anatomy, seed=0)
    disturb(attached)
    theirs = _pefts(pair, family, torch.float64)
    parameters = _peft_parameters(theirs)
    assert parameters.keys() == attached.parameters.keys()
    with torch.no_grad():
        for name, parameter in attached.parameters.items():
            parameters[name].copy_(parameter)
    loss = _loss(theirs)
    loss.backward()
    with Forward(anatomy).loss(BATCH) as batch:
        batch.total.backward()
    assert_near(batch.total.detach(), loss.detach(), FLOAT64_WITH_FLOAT32_INSIDE, "loss")
    scale = max(float(p.grad.abs().max()) for p in parameters.values())
    for name, parameter in attached.parameters.items():
        assert parameter.grad is not None
        difference = float((parameter.grad - parameters[name].grad).abs().max())
        assert difference <= FLOAT64_WITH_FLOAT32_INSIDE * scale, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pair", PAIRS)
def test_peft_loads_what_heptune_saved(pair: str, family: str, tmp_path: Path) -> None:
    anatomy = dissect(tiny_model(family))
    attached = PAIRS[pair][0].attach(anatomy, seed=0)
    disturb(attached)
    folder = saved(attached, tmp_path / "artifact")
    theirs = peft.PeftModel.from_pretrained(tiny_model(family), folder).eval()
    assert_near(_logits(theirs), logits(anatomy), FLOAT32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pair", PAIRS)
def test_heptune_loads_what_peft_saved(pair: str, family: str, tmp_path: Path) -> None:
    theirs = _pefts(pair, family)
    theirs.save_pretrained(tmp_path)
    assert techniques.recognise(tmp_path).name == PAIRS[pair][0].name
    anatomy = dissect(tiny_model(family))
    restored = techniques.recognise(tmp_path).restore(anatomy, tmp_path)
    assert_near(logits(anatomy), _logits(theirs), FLOAT32)
    # PEFT's network is lost with the file: what can be trained on is the table itself.
    assert list(restored.parameters) == ["prompt_embeddings"]
    with Forward(anatomy).loss(BATCH) as batch:
        batch.total.backward()
    assert restored.parameters["prompt_embeddings"].grad.abs().max() > 0


def test_load_gives_a_model_that_answers_as_pefts(tmp_path: Path) -> None:
    """`heptune.load` needs no more than plain token ids, padded or not, and generates with a cache."""
    tiny_model("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    for pair in ("prompt", "p_tuning_v2"):
        theirs = _pefts(pair, "llama")
        theirs.save_pretrained(tmp_path / pair)
        ours = heptune.load(str(tmp_path / "base"), tmp_path / pair)
        settings = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
        mask = torch.ones_like(TOKENS)
        got = ours.generate(input_ids=TOKENS, attention_mask=mask, **settings)
        want = theirs.generate(input_ids=TOKENS, attention_mask=mask, **settings)
        assert torch.equal(got[:, -8:], want[:, -8:]), pair
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), TOKENS], dim=1)
        mask = (torch.arange(padded.shape[1]) >= 3).long().expand_as(padded)
        left = ours.generate(input_ids=padded, attention_mask=mask, **settings)
        assert torch.equal(left[:, -8:], got[:, -8:]), pair


@pytest.mark.parametrize(
    ("pair", "field", "value"),
    [
        ("prompt", "num_transformer_submodules", 2),
        ("p_tuning_v2", "modules_to_save", ["lm_head"]),
        ("prefix", "token_dim", 99),
        ("prompt", "num_virtual_tokens", 5),
    ],
)
def test_what_is_not_understood_is_refused_by_name(pair: str, field: str, value: Any, tmp_path: Path) -> None:
    _pefts(pair, "llama").save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    anatomy = dissect(tiny_model("llama"))
    before = logits(anatomy)
    message = "prompt_embeddings is" if field == "num_virtual_tokens" else field
    with pytest.raises(TechniqueError, match=message):
        techniques.recognise(tmp_path).restore(anatomy, tmp_path)
    assert torch.equal(logits(anatomy), before)
