"""P-Tuning: a soft prompt that a network gives, before the input or around it

Principle
    The base's weights stay frozen. P pseudo tokens stand at chosen places of the input, here m before the text and
    P - m between the text and the answer:

        input = [h_1 ... h_m, embedding(text), h_m+1 ... h_P, answer]

    Their vectors are not trained themselves. They come from a small table E through a prompt encoder, which ties them
    together: a bidirectional LSTM with a two-layer network behind it, or a network alone.

        h = MLP(BiLSTM(E))        E [P, d]

    After training only the vectors h are kept; the encoder is needed to go on training, not for use.

Advantages
    The vectors move together, which makes training from a random start easier than with Prompt Tuning, and they can
    stand where a hand-written pattern would have its words: next to the answer. Some kilobytes for each task, and the
    base is unchanged.

Costs
    kept elements: P * d. Trained elements while training: the table and the encoder, some hundred times more; they take
    optimizer memory, not time. Every sequence grows by P positions, at use as well; those in front are computed once a
    batch in training, those before the answer once for each example.

Use it when
    the task is to understand rather than to write (classification, knowledge probing), labelled data is scarce, and one
    base serves many tasks.

Rather not when
    the base is small or the task far from what it knows, or long texts are to be generated: P-Tuning v2, which reaches
    every layer, or LoRA.

Paper
    Liu et al. 2021, "GPT Understands, Too", the method's parts on architecture and optimization; its code has a
    two-layer LSTM of half the base's width.

Differs from the paper
    The base is always frozen. The paper freezes it for knowledge probing; for classification (SuperGLUE) it trains the
    base's weights beside the vectors, so its scores there are not this method's alone. The answer is generated and
    scored as text, instead of a single word at a mask. The default places all pseudo tokens in front, as PEFT does;
    `prompt_template` brings the paper's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from heptune.core.errors import TechniqueError
from heptune.core.seeds import derive
from heptune.models.anatomy import Anatomy
from heptune.models.shape import ModelShape
from heptune.models.virtual import VirtualTokens
from heptune.techniques import _note, _peft, _soft_prompt
from heptune.techniques._contract import Cost, Encode
from heptune.techniques._soft_prompt import AttachedSoftPrompt, Table

ENCODERS = ("lstm", "mlp", "none")
LSTM_LAYERS = 2
_TEMPLATE = re.compile(r"\s*(?:\{p:(\d+)\})?\s*\{?text\}?\s*(?:\{p:(\d+)\})?\s*")


@dataclass(frozen=True)
class PTuning:
    """P-Tuning's hyperparameters.

    Attributes:
        virtual_tokens: P, the positions that the prompt takes; not set: those of prompt_template, else 20.
        prompt_template: where they stand: "{p:12} text {p:8}" puts 12 before the text and 8 between it and the answer.
            All are in front where it is empty.
        encoder: what gives their vectors: lstm (bidirectional, two layers, then a network; the paper's), mlp (a
            network of three layers), or none (they are trained themselves).
        encoder_hidden: width of the encoder's hidden layers; 0: half the base's width for lstm, the base's width for
            mlp.
        learning_rate: peak learning rate. 5e-3 was the best of 1.7e-3 to 1.5e-2 on SST-2 and TREC
            (docs/results/techniques.md).
    """

    virtual_tokens: int | None = None
    prompt_template: str = ""
    encoder: str = "lstm"
    encoder_hidden: int = 0
    learning_rate: float = 5e-3

    name: ClassVar[str] = "p_tuning"
    capabilities: ClassVar[frozenset[str]] = frozenset({"detachable", "virtual_tokens", "slow_start"})

    def __post_init__(self) -> None:
        if self.encoder_hidden < 0:
            raise TechniqueError(f"p_tuning: encoder_hidden is {self.encoder_hidden}; it must not be negative")
        if self.encoder not in ENCODERS:
            raise TechniqueError(f"p_tuning: encoder is {self.encoder!r}; known: {', '.join(ENCODERS)}")
        front, inner = self.places
        if front + inner < 1 or self.virtual_tokens not in (None, front + inner):
            raise TechniqueError(
                f"p_tuning: prompt_template {self.prompt_template!r} places {front + inner} pseudo tokens and "
                f"virtual_tokens is {self.virtual_tokens}; at least one is needed, and the two must agree"
            )

    @property
    def places(self) -> tuple[int, int]:
        """Pseudo tokens before the text, and between the text and the answer."""
        if not self.prompt_template:
            return (20 if self.virtual_tokens is None else self.virtual_tokens), 0
        found = _TEMPLATE.fullmatch(self.prompt_template)
        if found is None:
            raise TechniqueError(
                f"p_tuning: prompt_template {self.prompt_template!r} is not understood; it is the text with pseudo "
                "tokens before it, behind it or both: '{p:12} text {p:8}'"
            )
        return int(found[1] or 0), int(found[2] or 0)

    def attach(self, anatomy: Anatomy, seed: int, encode: Encode | None = None) -> AttachedSoftPrompt:
        """Puts the pseudo tokens into every input."""
        return self._attach(anatomy, self._network(anatomy.shape, seed))

    def _network(self, shape: ModelShape, seed: int) -> nn.Module:
        positions, width = sum(self.places), shape.embedding
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, self.name, "encoder"))
            if self.encoder == "none":
                return Table(nn.Embedding(positions, width).weight.detach())
            return PromptEncoder(self.encoder, positions, width, self._hidden(shape))

    def _hidden(self, shape: ModelShape) -> int:
        return self.encoder_hidden or (shape.embedding // 2 if self.encoder == "lstm" else shape.embedding)

    def _attach(self, anatomy: Anatomy, network: nn.Module) -> AttachedSoftPrompt:
        front, inner = self.places
        return AttachedSoftPrompt(self, anatomy, network, lambda own: VirtualTokens(anatomy, front, inner, own.table))

    def cost(self, shape: ModelShape) -> Cost:
        """Trained elements: table and encoder. P rows: those in front once a batch, others in each example."""
        width, hidden = shape.embedding, self._hidden(shape)
        trainable = sum(self.places) * width
        if self.encoder == "mlp":
            trainable += (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * width
        if self.encoder == "lstm":
            gates = 4 * hidden  # of each direction: a matrix over the input, one over the state, and two biases
            trainable += 2 * gates * (width + hidden + 2) + 2 * gates * (2 * hidden + hidden + 2)
            trainable += (2 * hidden + 1) * 2 * hidden + (2 * hidden + 1) * width
        return Cost(trainable, 2 * trainable, tokens=sum(self.places))

    def peft_config(self, shape: ModelShape) -> dict[str, Any]:
        """As PEFT's PromptEncoderConfig names it."""
        return {
            "peft_type": "P_TUNING",
            "num_virtual_tokens": sum(self.places),
            "token_dim": shape.embedding,
            "num_attention_heads": shape.heads,
            "encoder_reparameterization_type": "LSTM" if self.encoder == "lstm" else "MLP",
            "encoder_hidden_size": self._hidden(shape),
            "encoder_num_layers": LSTM_LAYERS,
            "encoder_dropout": 0.0,
        }

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether a folder holds P-Tuning's vectors in PEFT's layout."""
        return _peft.recognises(folder, cls.name, "P_TUNING")

    @classmethod
    def restore(cls, anatomy: Anatomy, folder: Path) -> AttachedSoftPrompt:
        """Puts in pseudo tokens that Heptune or PEFT saved.

        PEFT keeps the vectors alone: its encoder is lost, and training goes on from them directly.
        """
        config = _soft_prompt.read_config(folder, "P_TUNING", anatomy, anatomy.shape.embedding)
        settings = _note.settings(folder / _peft.WEIGHTS_FILE, cls, anatomy.shape.architecture) or cls(
            config["num_virtual_tokens"], encoder="none"
        )
        table = _soft_prompt.read_table(folder, anatomy.shape.embedding, anatomy, sum(settings.places))
        network: nn.Module = Table(table)
        if settings.encoder != "none":
            network = _soft_prompt.read_network(folder, settings._network(anatomy.shape, 0), table, anatomy)
        return settings._attach(anatomy, network)


class PromptEncoder(nn.Module):
    """h = MLP(BiLSTM(E)) or h = MLP(E): [P, d]. Names and shapes are those of PEFT's PromptEncoder."""

    def __init__(self, kind: str, positions: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(positions, width)
        self.lstm_head: nn.LSTM | None = None
        if kind == "lstm":
            self.lstm_head = nn.LSTM(width, hidden, LSTM_LAYERS, bidirectional=True, batch_first=True)
            wide = 2 * hidden
            layers = [nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, width)]
        else:
            layers = [
                nn.Linear(width, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, width),
            ]
        self.mlp_head = nn.Sequential(*layers)

    def forward(self) -> torch.Tensor:
        """[P, d]."""
        table = self.embedding.weight
        return self.mlp_head(table if self.lstm_head is None else self.lstm_head(table[None])[0][0])


TECHNIQUE = PTuning
