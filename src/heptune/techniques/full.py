"""Full fine-tuning: every weight of the base is trained

Principle
    All parameters theta move down the gradient of the loss on the new examples: theta <- theta - lr * step(gradient).
    Nothing is added to the model and nothing is frozen.

Advantages
    The most room to learn: new languages, new domains, large corpora. No difference between training and use, and no
    adapter to carry: the result is an ordinary model.

Costs
    trainable elements: all of them. AdamW keeps two more for each, and the gradient a third, so float32 tuning needs
    about 16 bytes per parameter before any activation. The artifact is as large as the base, for each task.

Use it when
    there is much data (tens of thousands of examples, or continued pre-training) and memory to spare, or the base
    is small.

Rather not when
    examples are few: it overfits sooner and forgets more of what the base knew than the techniques that add a little.

Paper
    Common practice since Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", and
    Devlin et al. 2019, "BERT", section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from heptune.models.anatomy import Anatomy
from heptune.models.shape import ModelShape
from heptune.techniques._contract import Cost, Encode
from heptune.techniques._weights import TrainedWeights, read, recognises


@dataclass(frozen=True)
class Full:
    """Full fine-tuning's hyperparameters.

    Attributes:
        learning_rate: peak learning rate. 2e-5 was the best of 7e-6 to 6e-5 on SST-2, 6e-5 of 7e-6 to 2e-4 on TREC
            (docs/results/techniques.md); about a tenth of LoRA's, as "LoRA Without Regret" (2025) finds.
    """

    learning_rate: float = 3e-5

    name: ClassVar[str] = "full"
    capabilities: ClassVar[frozenset[str]] = frozenset({"mergeable", "identity_start", "trains_base"})

    def attach(self, anatomy: Anatomy, seed: int, encode: Encode | None = None) -> TrainedWeights:
        """Unfreezes every parameter. No copy of the originals is kept: it would cost as much memory as the model."""
        return TrainedWeights(self, anatomy, anatomy.model.parameters(), keep_originals=False)

    def cost(self, shape: ModelShape) -> Cost:
        """Every parameter, and two optimizer elements for each."""
        return Cost(shape.parameters, 2 * shape.parameters)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether a folder holds a fully tuned model's weights."""
        return recognises(folder, cls.name)

    @classmethod
    def restore(cls, anatomy: Anatomy, folder: Path) -> TrainedWeights:
        """Puts saved weights into a base of the same architecture."""
        settings, tensors = read(folder, cls)
        attached = settings.attach(anatomy, seed=0)
        attached.fill(tensors, folder)
        return attached


TECHNIQUE = Full
