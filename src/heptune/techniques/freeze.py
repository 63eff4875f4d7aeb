"""Freezing: only the last layers are trained

Principle
    Of the L decoder layers, the first L - k stay as they are; the last k and the final norm are trained like in full
    fine-tuning. Early layers hold general features of language, late ones what the output depends on most.

Advantages
    The backward pass stops at the lowest trained layer: less time, and no activations kept below it. Nothing is added
    to the model, so use costs nothing extra.

Costs
    trainable elements: those of k layers and the final norm (and the head, if chosen). Gradient and optimizer state
    in proportion.

Use it when
    memory or time is short and the task is near to what the base can do already: classification, a change of style.

Rather not when
    the task needs new features from early layers (a new language or domain), or the adaptation should be a small file.

Paper
    Common practice; Howard & Ruder 2018, section 3.3 (gradual unfreezing), and Lee et al. 2019, "What Would Elsa Do?
    Freezing Layers During Transformer Fine-Tuning".

Differs from the paper
    The set of trained layers does not change during training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from heptune.core.errors import TechniqueError
from heptune.models.anatomy import Anatomy
from heptune.models.shape import ModelShape
from heptune.techniques._contract import Cost, Encode
from heptune.techniques._weights import TrainedWeights, read, recognises


@dataclass(frozen=True)
class Freeze:
    """Freezing's hyperparameters.

    Attributes:
        layers: how many of the last decoder layers are trained, 1 to all of them.
        head: also train the output head. Where it is tied to the input embeddings, those are trained with it, and the
            backward pass then runs through every layer.
        learning_rate: peak learning rate; between full tuning's and LoRA's, as fewer weights move. On TREC 4.5e-4 was
            the best of 2e-5 to 4.5e-4, on SST-2 all of them were alike (docs/results/techniques.md).
    """

    layers: int = 4
    head: bool = False
    learning_rate: float = 1e-4

    name: ClassVar[str] = "freeze"
    capabilities: ClassVar[frozenset[str]] = frozenset({"mergeable", "detachable", "identity_start", "trains_base"})

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise TechniqueError(f"freeze: layers is {self.layers}; at least one layer must be trained")

    def attach(self, anatomy: Anatomy, seed: int, encode: Encode | None = None) -> TrainedWeights:
        """Unfreezes the last `layers` layers, the final norm, and the head if chosen."""
        self._check(anatomy.shape)
        modules = [*anatomy.layers[-self.layers :], *([anatomy.final_norm] if anatomy.final_norm is not None else [])]
        modules += [anatomy.output_head[1]] if self.head else []
        return TrainedWeights(self, anatomy, (p for m in modules for p in m.parameters()), keep_originals=True)

    def cost(self, shape: ModelShape) -> Cost:
        """The parameters of those modules, and two optimizer elements for each."""
        self._check(shape)
        trained = sum(shape.layer_parameters[-self.layers :]) + shape.final_norm_parameters
        trained += shape.head_parameters if self.head else 0
        return Cost(trained, 2 * trained)

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether a folder holds trained last layers."""
        return recognises(folder, cls.name)

    @classmethod
    def restore(cls, anatomy: Anatomy, folder: Path) -> TrainedWeights:
        """Puts saved layers into a base of the same architecture."""
        settings, tensors = read(folder, cls)
        attached = settings.attach(anatomy, seed=0)
        try:
            attached.fill(tensors, folder)
        except TechniqueError:
            attached.detach()
            raise
        return attached

    def _check(self, shape: ModelShape) -> None:
        if self.layers > shape.layers:
            raise TechniqueError(f"freeze: layers is {self.layers}, but {shape.architecture} has {shape.layers} layers")


TECHNIQUE = Freeze
