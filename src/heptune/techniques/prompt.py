"""Prompt Tuning: a soft prompt before the input

Principle
    The base's weights stay frozen. P vectors, as wide as a word's embedding, stand before every input; only they are
    trained:

        input = [p_1, ..., p_P, embedding(x_1), ..., embedding(x_n)]

    A prompt made of words can only choose among the vocabulary's embeddings; these vectors may lie anywhere between.

Advantages
    The fewest trained parameters of all: P times the base's width, some kilobytes. Nothing inside the model changes,
    so one base serves any number of tasks, each with its own prompt. Hard to overfit, and little of the base is
    forgotten.

Costs
    trainable elements: P * d (d: the width of the embeddings). Every sequence grows by P positions, at use as well. In
    training the prompt is computed once for a whole batch, not once for each example. Activations are kept through
    every layer: the gradient has to come back to the input, so a step takes about as long as with LoRA.

Use it when
    the base is large (in the paper, prompts reach full tuning at 11 billion parameters), the task is near to what it
    can do when asked, and many tasks share one base.

Rather not when
    the base is small: there it learns less than every other technique here and needs more steps. Generation of long
    texts in a new form, and positions that are scarce, speak against it too.

Paper
    Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", sections 2 and 3.2.

Differs from the paper
    The paper tunes T5 with Adafactor at a learning rate of 0.3; here it is AdamW, whose steps have another scale. The
    default start is common words, as the paper's best but one; class labels as a start are `init=text` with the
    labels as the text. After 15 steps on SST-2 with smollm2-135m the validation loss is 0.49 from a text that
    asks the question, 0.47 from common words and 0.55 from random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from heptune.models.anatomy import Anatomy
from heptune.models.shape import ModelShape
from heptune.models.virtual import VirtualTokens
from heptune.techniques import _note, _peft, _soft_prompt
from heptune.techniques._contract import Cost, Encode
from heptune.techniques._soft_prompt import AttachedSoftPrompt, Table


@dataclass(frozen=True)
class Prompt:
    """Prompt Tuning's hyperparameters.

    Attributes:
        virtual_tokens: P, the positions that the prompt takes.
        init: what the prompt starts as: vocabulary (common words, drawn at random), text (the words of init_text), or
            random.
        init_text: the text whose words the prompt starts as, repeated or cut to its length.
        learning_rate: peak learning rate. On SST-2 1e-2 and 5e-2 did as well as each other after fifteen steps, 3e-3
            less well; on TREC 6e-2 was the best of 7e-3 to 0.18 after ten (docs/results/techniques.md).
    """

    virtual_tokens: int = 20
    init: str = "vocabulary"
    init_text: str = ""
    learning_rate: float = 2e-2

    name: ClassVar[str] = "prompt"
    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"detachable", "virtual_tokens", "slow_start", "starts_from_text"}
    )

    def __post_init__(self) -> None:
        _soft_prompt.check(self.name, self.virtual_tokens, self.init, self.init_text)

    def attach(self, anatomy: Anatomy, seed: int, encode: Encode | None = None) -> AttachedSoftPrompt:
        """Puts the vectors before every input."""
        shape = (self.virtual_tokens, anatomy.shape.embedding)
        if self.init == "random":
            vectors = _soft_prompt.normal(shape, _soft_prompt.deviation_of_words(anatomy), seed, self.name)
        else:
            vectors = _soft_prompt.embedded_words(anatomy, shape[0], self.init_text, encode, seed, self.name)
        return self._attach(anatomy, Table(vectors))

    def _attach(self, anatomy: Anatomy, network: Table) -> AttachedSoftPrompt:
        place = lambda own: VirtualTokens(anatomy, self.virtual_tokens, 0, own.table)  # noqa: E731
        return AttachedSoftPrompt(self, anatomy, network, place)

    def cost(self, shape: ModelShape) -> Cost:
        """P * d trained elements, and P rows in every batch."""
        trainable = self.virtual_tokens * shape.embedding
        return Cost(trainable, 2 * trainable, tokens=self.virtual_tokens)

    def peft_config(self, shape: ModelShape) -> dict[str, Any]:
        """As PEFT's PromptTuningConfig names it."""
        return {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": self.virtual_tokens,
            "token_dim": shape.embedding,
            "num_attention_heads": shape.heads,
            "prompt_tuning_init": "RANDOM",  # how it started no longer matters; TEXT would ask for a tokenizer
            "prompt_tuning_init_text": None,
            "tokenizer_name_or_path": None,
        }

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Whether a folder holds a soft prompt in PEFT's layout."""
        return _peft.recognises(folder, cls.name, "PROMPT_TUNING")

    @classmethod
    def restore(cls, anatomy: Anatomy, folder: Path) -> AttachedSoftPrompt:
        """Puts in a soft prompt that Heptune or PEFT saved."""
        config = _soft_prompt.read_config(folder, "PROMPT_TUNING", anatomy, anatomy.shape.embedding)
        settings = _note.settings(folder / _peft.WEIGHTS_FILE, cls, anatomy.shape.architecture) or cls(
            config["num_virtual_tokens"], init="random"
        )
        table = _soft_prompt.read_table(folder, anatomy.shape.embedding, anatomy, settings.virtual_tokens)
        return settings._attach(anatomy, Table(table))


TECHNIQUE = Prompt
