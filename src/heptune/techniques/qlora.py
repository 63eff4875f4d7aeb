"""QLoRA: low-rank adaptation of a base that is stored in 4 bits

Principle
    The frozen base is rounded once: each weight to one of 16 numbers that lie as the quantiles of a normal distribution
    do (NF4), times the largest weight of its block of 64. Beside each chosen matrix runs a LoRA:

        y = dequantize(W4) x + b + s * B A x        s = alpha / rank   (rank-stabilised: alpha / sqrt(rank))

    A [rank, in] starts random, B [out, rank] at zero. W is made in floating point for the moment of its product, and
    once more for the gradient, which flows through it into the layers below; only A and B are trained. They learn the
    task and, beside it, what the rounding lost.

Advantages
    The base's linear layers take about a quarter of their bfloat16 memory, an eighth of float32: a model that did not
    fit beside its activations does. What is trained, saved and read by PEFT is the same as with LoRA.

Costs
    trainable elements: the sum over its sites of rank * (in + out), as with LoRA. Base memory: 4.127 bits for each
    weight of a linear layer (4 + 8/64 for the blocks' maxima + 32/16384 for theirs); embeddings, norms, biases and the
    head keep their type. Time: each layer's weight is made twice in a step, three times with recomputed activations.

Use it when
    the frozen base itself is what does not fit into memory.

Rather not when
    the base fits: LoRA on the unrounded base is faster and starts from a better model. Rounding moves a linear layer's
    weights by 9% (root mean square, relative to them), so the base is another one even before training. A small base
    suffers: smollm2-135m's loss on 20 examples of the demo's validation part rose from 2.11 to 3.75 nats by the
    rounding alone; 8 steps later it was 1.81 with LoRA and 2.06 with QLoRA.

Paper
    Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", section 3: NF4, double quantization.

Differs from the paper
    There is no paged optimizer: paging is a feature of CUDA's unified memory, and the optimizer's state is small beside
    the base. The default targets are those of LoRA here, every linear layer but the head, as in the paper; the rank is
    16 instead of 64, dropout is off. Merging gives floating point weights, dequantize(W4) + s B A: rounded to 4 bits
    anew, the sum would lose part of what was learned. Taking it out does not give the base back: only the rounded
    weights are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from heptune.core.errors import TechniqueError
from heptune.models.anatomy import Anatomy
from heptune.models.quantization import quantize
from heptune.models.shape import Site
from heptune.techniques import _note, _peft
from heptune.techniques._lora_peft import Size
from heptune.techniques.lora import AttachedLora, Lora


@dataclass(frozen=True)
class QLora(Lora):
    """QLoRA's hyperparameters: those of LoRA. The 4-bit format has none.

    Attributes:
        rank: width of the bottleneck, 1 or more. With a LoRA on every layer, the paper saw no difference from 8 to 256.
        alpha: numerator of the scale s. Twice the rank is the common choice (s = 2).
        targets: roles of linear sites that get a LoRA, as in lora. All linear layers but the head are stored in 4 bits,
            whatever is chosen here.
        dropout: probability of dropping an input of A during training, 0 to below 1. In a forest one mask is shared by
            all who share a token.
        rank_stabilised: s = alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023); for ranks above 32.
        dora: train each output's magnitude apart from its direction (DoRA, Liu et al. 2024).
        learning_rate: peak learning rate. 6e-4 was the best of 7e-5 to 2e-3 on TREC (docs/results/techniques.md); the
            paper takes 2e-4 for models of 7 and 13 billion parameters.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("linear",)
    dropout: float = 0.0
    rank_stabilised: bool = False
    dora: bool = False
    learning_rate: float = 5e-4

    name: ClassVar[str] = "qlora"
    capabilities: ClassVar[frozenset[str]] = frozenset({"mergeable", "quantizes_base"})

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether Heptune noted QLoRA in a folder. PEFT's files do not tell on which base they were trained: LoRA's."""
        return _note.read(folder / _peft.WEIGHTS_FILE) is not None and _peft.recognises(folder, cls.name, "LORA")

    def _put(self, anatomy: Anatomy, sizes: Mapping[Site, Size], seed: int, own_head: bool = False) -> AttachedLora:
        quantize(anatomy)
        return AttachedQLora(self, anatomy, sizes, seed, own_head)


class AttachedQLora(AttachedLora):
    """QLoRA inside a model."""

    def detach(self) -> None:
        """Refuses: the base's own weights are gone."""
        raise TechniqueError(
            "qlora stored the base's weights in 4 bits, and what they were before is gone; "
            "load the base again to have it back"
        )


TECHNIQUE = QLora
