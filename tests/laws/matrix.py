"""What works with what, found by trying it: every technique in every family, on tiny random models.

    PYTHONPATH=tests python -m laws.matrix        tries everything and writes docs/results/matrix.json

`test_matrix.py` tries it again and compares. A cell is "yes", or the reason why it is not.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GPTJConfig, GPTJForCausalLM

from heptune import techniques
from heptune.core.errors import HeptuneError
from heptune.core.events import Event, StepDone
from heptune.engine.forward import Forward
from heptune.engine.loop import Training
from heptune.engine.settings import Settings
from heptune.models.anatomy import Anatomy, dissect
from heptune.models.quantization import quantize
from laws.cases import BATCH, TOKENS, disturb, logits
from tiny import FAMILIES as TINY
from tiny import IM_END, IM_START, PAD, VOCABULARY, tiny_model
from tolerances import FLOAT32, assert_near

WRITTEN = Path(__file__).resolve().parents[2] / "docs" / "results" / "matrix.json"

# GPT-J does not go through transformers' attention interface: its batches are padded.
FAMILIES = (*TINY, "gptj")

# Settings that fit models this small, and a rate at which ten steps show.
SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3},
    "qlora": {"rank": 3},
    "freeze": {"layers": 1},
    "adapter": {"reduction": 4},
    "prompt": {"virtual_tokens": 8},
    "p_tuning": {"virtual_tokens": 8, "encoder": "mlp"},
    "prefix": {"virtual_tokens": 8, "encoder_hidden": 16},
    "p_tuning_v2": {"virtual_tokens": 8},
}
RATE = 2e-2


def model(family: str) -> Anatomy:
    """The tiny model of a family, taken apart."""
    if family != "gptj":
        return dissect(tiny_model(family))
    sizes = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 1024}
    tokens = {"pad_token_id": PAD, "bos_token_id": IM_START, "eos_token_id": IM_END}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dissect(GPTJForCausalLM(GPTJConfig(vocab_size=VOCABULARY, **sizes, **tokens)).eval())


class Tried:
    """One technique in one family."""

    def __init__(self, technique: str, family: str) -> None:
        self.name, self.family = technique, family
        self.technique = techniques.build(technique, SETTINGS.get(technique))

    def attached(self, prepare: Callable[[Anatomy], None] = lambda anatomy: None) -> tuple[Anatomy, Any]:
        """A fresh model with the technique inside, as if it had been trained."""
        anatomy = model(self.family)
        prepare(anatomy)
        attached = self.technique.attach(anatomy, seed=0)
        disturb(attached)
        return anatomy, attached

    def trains(self) -> None:
        """Ten steps lower the loss."""
        anatomy, attached = self.attached()
        forward = Forward(anatomy)
        optimizer = torch.optim.AdamW(attached.parameters.values(), lr=RATE)
        before = forward.score(BATCH).sum()
        for step in range(10):
            attached.begin_step(step)
            with forward.loss(BATCH) as batch:
                batch.total.backward()
            optimizer.step()
            optimizer.zero_grad()
        attached.begin_step(None)
        assert forward.score(BATCH).sum() < before

    def recomputes(self) -> None:
        """Recomputing activations gives the same gradient."""
        gradients = [self.gradient(recompute) for recompute in (False, True)]
        for name, gradient in gradients[0].items():
            assert_near(gradients[1][name], gradient, FLOAT32, name)

    def gradient(self, recompute: bool) -> dict[str, torch.Tensor]:
        """The batch's gradient by name."""
        anatomy, attached = self.attached()
        with Forward(anatomy, recompute).loss(BATCH) as batch:
            batch.total.backward()
        return {name: p.grad for name, p in attached.parameters.items() if p.grad is not None}

    def resumes(self) -> None:
        """Interrupted after two steps and resumed in a new model: the bits of an uninterrupted run."""
        with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as cut:
            wanted = self.train(Path(whole))
            try:
                self.train(Path(cut), stop_after=2)
            except KeyboardInterrupt:
                got = self.train(Path(cut))
        assert got.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(got[name], tensor), name

    def train(self, folder: Path, stop_after: int | None = None) -> dict[str, torch.Tensor]:
        """Four steps through the training loop, saving each; what was trained."""
        anatomy = model(self.family)
        attached = self.technique.attach(anatomy, seed=0)

        def listen(event: Event) -> None:
            if isinstance(event, StepDone) and event.step == stop_after:
                raise KeyboardInterrupt

        Training(
            folder=folder,
            base="tiny",
            forward=Forward(anatomy),
            attached=attached,
            examples=BATCH,
            describe=str,
            settings=Settings(batch_size=3, save_minutes=0.0),
            peak_learning_rate=RATE,
            steps=4,
            validation=None,
            listener=listen,
        ).run()
        return {name: p.detach().clone() for name, p in attached.parameters.items()}

    def merges(self) -> None:
        """The merged model says what the model with the technique in it said."""
        anatomy, attached = self.attached()
        before = logits(anatomy)
        attached.merge()
        assert_near(logits(anatomy), before, FLOAT32, "logits")

    def generates(self) -> None:
        """Greedy generation with a cache is the full forward's likeliest token at each place."""
        anatomy, _ = self.attached()
        Forward(anatomy)
        settings = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
        prompt = TOKENS[:, :9]
        generated = anatomy.model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **settings)
        with torch.no_grad():
            full = anatomy.model(input_ids=generated, use_cache=False).logits
        assert torch.equal(generated[:, 9:], full[:, 8:-1].argmax(-1))

    def saves(self) -> None:
        """What was saved comes back bit for bit."""
        anatomy, attached = self.attached()
        with tempfile.TemporaryDirectory() as folder:
            attached.save(Path(folder), "tiny")
            fresh = model(self.family)
            techniques.recognise(Path(folder)).restore(fresh, Path(folder))
        assert torch.equal(logits(fresh), logits(anatomy))

    def four_bit(self) -> None:
        """On a base in 4 bits a batch's losses are those of its examples one at a time, and something is learned."""
        if "trains_base" in self.technique.capabilities:
            raise HeptuneError("it trains the base's own weights, and a weight in 4 bits cannot be trained")
        anatomy, attached = self.attached(quantize)
        forward = Forward(anatomy)
        alone = [forward.score([example])[0] for example in BATCH]
        assert_near(torch.from_numpy(forward.score(BATCH)), torch.tensor(alone), FLOAT32, "losses")
        with forward.loss(BATCH) as batch:
            batch.total.backward()
        assert max(float(p.grad.abs().max()) for p in attached.parameters.values() if p.grad is not None) > 0


# What is tried, and the heading of its column.
CHECKS: dict[str, Callable[[Tried], None]] = {
    "trains": Tried.trains,
    "recomputes activations": Tried.recomputes,
    "resumes bit-equal": Tried.resumes,
    "merges": Tried.merges,
    "generates with a cache": Tried.generates,
    "saves and loads": Tried.saves,
    "on a 4-bit base": Tried.four_bit,
}


def cells(technique: str, family: str) -> dict[str, str]:
    """Each check's outcome: "yes", or why it is not."""
    found = {}
    for name, check in CHECKS.items():
        try:
            check(Tried(technique, family))
            found[name] = "yes"
        except HeptuneError as error:
            found[name] = str(error)
    return found


def main() -> None:
    """Writes the matrix."""
    torch.set_num_threads(1)
    matrix = {t: {family: cells(t, family) for family in FAMILIES} for t in techniques.names()}
    WRITTEN.write_text(json.dumps(matrix, indent=1) + "\n", "utf-8")
    print(f"written to {WRITTEN}; now run docs/generate.py")


if __name__ == "__main__":
    main()
